"""What is said of a dataset when it is read."""

from features.config import DatasetConfig
from features.progress import Silent
from pipeline.dataset import read_dataset


class Told(Silent):
    def __init__(self):
        self.warnings = []

    def warn(self, text):
        self.warnings.append(text)


def warnings_of(tmp_path, *rows):
    (tmp_path / "train_val.csv").write_text("\n".join(["id,title,date,views", *rows]))
    progress = Told()
    read_dataset(DatasetConfig(data=tmp_path), progress)
    return progress.warnings


def test_dates_that_are_none_are_counted_with_the_first_of_them_and_what_would_be_one(tmp_path):
    (said,) = warnings_of(tmp_path, *(f"v{row},t,{row}.12.2020,1" for row in range(10, 30)), "w,t,2020-12-31,1")
    assert said == (
        f"{tmp_path / 'train_val.csv'}: bad date: 20 (first: line 2, '10.12.2020'); dates are ISO 8601, such as "
        "2020-12-31, and years whole numbers, such as 2020; these count as unknown"
    )


def test_dates_out_of_range_are_counted_with_the_first_of_them_and_the_range(tmp_path):
    (said,) = warnings_of(tmp_path, "a,t,2020-12-31,1", "b,t,1800-01-01,1", "c,t,9999-01-01,1")
    assert "date out of range: 2 (first: line 3, '1800-01-01'); dates lie between 1990-01-01 and 20" in said


def test_what_was_repaired_otherwise_is_counted(tmp_path):
    assert warnings_of(tmp_path, "a,t\0,2020-12-31,1") == [f"{tmp_path / 'train_val.csv'}: nul removed: 1"]
