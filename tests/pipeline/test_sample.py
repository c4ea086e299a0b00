"""The form of a submission: whose rows, whose order, whose header."""

import csv
import io

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from features.config import DatasetConfig
from features.errors import CacheError, DataError
from features.progress import Silent
from features.videos import read_videos
from pipeline.sample import SubmissionShape, submission_shape
from tests.mutations import damaged


@pytest.fixture
def videos(tmp_path):
    (tmp_path / "test.csv").write_text('id,title,year\n-Abc,x,2024\n=1+1,x,2023\n"a,b",x,2020\n')
    return read_videos(DatasetConfig(data=tmp_path), "test")


def shape(tmp_path, videos, text, encoding="utf-8"):
    path = tmp_path / "sample.csv"
    path.write_text(text, encoding=encoding)
    return submission_shape(path, videos, Silent())


def test_without_a_sample_the_test_table_gives_everything(videos):
    found = submission_shape(None, videos, Silent())
    rows = list(csv.reader(io.StringIO(found.as_csv(videos.ids, np.array([1.5, 0.0, 3.0]), non_negative=True))))
    assert rows == [["ID", "views"], ["-Abc", "1.5"], ["=1+1", "0.0"], ["a,b", "3.0"]]
    assert found.order_of == "test.csv"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_sample_with_the_same_ids_gives_header_and_order(tmp_path, videos, encoding):
    found = shape(tmp_path, videos, 'Id,Target\n"a,b",0\n-Abc,0\n=1+1,0\n', encoding)
    text = found.as_csv(videos.ids, np.array([1.0, 2.0, 3.0]), non_negative=True)
    assert text == 'Id,Target\n"a,b",3.0\n-Abc,1.0\n=1+1,2.0\n'
    assert found.order_of == "sample.csv"


@pytest.mark.parametrize(
    "rows",
    ["", "-Abc,0\n", "-Abc,0\n=1+1,0\nother,0\n", '-Abc,0\n-Abc,0\n"a,b",0\n'],
    ids=["none", "few", "other", "twice"],
)
def test_other_ids_give_the_header_alone(tmp_path, videos, rows):
    found = shape(tmp_path, videos, f"Id,Target\n{rows}")
    assert (found.header, list(found.order), found.order_of) == (("Id", "Target"), [0, 1, 2], "test.csv")


@pytest.mark.parametrize(
    "text", ["", "id\n", "a,b,c\n", 'id,"views\n'], ids=["empty", "one column", "three", "a quote"]
)
def test_a_sample_that_is_none_is_refused(tmp_path, videos, text):
    with pytest.raises(DataError, match="--sample"):
        shape(tmp_path, videos, text)


def test_the_first_line_of_a_wrong_sample_is_told_as_it_is_written(tmp_path, videos):
    with pytest.raises(DataError, match=r"its first line is 'id,\"a b\",views'$"):
        shape(tmp_path, videos, 'id,"a b",views\nx,y,1\n')


def test_a_sample_that_is_not_there_is_named(tmp_path, videos):
    with pytest.raises(DataError, match=r"^--sample .*none\.csv does not exist$"):
        submission_shape(tmp_path / "none.csv", videos, Silent())


@pytest.mark.parametrize("bad", [np.nan, np.inf, -1.0])
def test_a_number_that_nobody_can_score_is_never_written(bad):
    with pytest.raises(CacheError, match="no usable number for v1"):
        SubmissionShape(("ID", "views"), range(2), "test.csv").as_csv(
            ["v0", "v1"], np.array([1.0, bad]), non_negative=True
        )


def test_what_is_no_count_may_be_negative():
    shape = SubmissionShape(("ID", "x"), range(1), "test.csv")
    assert shape.as_csv(["v"], np.array([-1.5]), non_negative=False) == "ID,x\nv,-1.5\n"


@settings(deadline=None, derandomize=True, max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(raw=damaged(b'Id,Target\r\n"a,b",0\r\n-Abc,0\r\n=1+1,0\r\n'))
def test_any_change_of_a_sample_gives_an_order_of_all_videos_or_is_refused(tmp_path, videos, raw):
    (tmp_path / "sample.csv").write_bytes(raw)
    try:
        found = submission_shape(tmp_path / "sample.csv", videos, Silent())
    except DataError:
        return
    assert sorted(found.order) == [0, 1, 2]
    found.as_csv(videos.ids, np.array([1.0, 2.0, 3.0]), non_negative=True).encode()
