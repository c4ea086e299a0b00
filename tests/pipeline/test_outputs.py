"""What `--out` names is written only where it overwrites nothing that is somebody else's."""

import os
from pathlib import Path

import pytest

from features.config import DatasetConfig
from features.errors import UsageError
from pipeline.outputs import check_companion, check_output
from pipeline.workspace import Workspace
from tests.command_line import vp

FORBIDDEN = {
    "dataset/train_val.csv": "a file of the dataset",
    "dataset/test.csv": "a file of the dataset",
    "dataset/train_val/id-001.jpg": "a file of the dataset",
    "dataset/train_val/new.html": "a file of the dataset",
    "dataset/test/../train_val.csv": "a file of the dataset",
    "dataset/more/cover.PNG": "a file of the dataset",
    "same/train_val.csv": "a file of the dataset",
    "work/runs/lines/oof.csv": "vp keeps its own files in work",
    "work/runs/lines/new.html": "vp keeps its own files in work",
    "work/embeddings/fake/train_val/manifest.json": "vp keeps its own files in work",
    "work/submissions/lines_ensemble_mean.csv": "vp keeps its own files in work",
    "work/models/tiny/config.json": "vp keeps its own files in work",
    "to-work/runs/lines/run.json": "vp keeps its own files in work",
    "vp.toml": "overwrite vp.toml",
    "new.csv": "overwrite new.csv, which is read",
    "dataset/../new.csv": "overwrite new.csv, which is read",
    "dataset": "it is a folder",
    "fifo": "a pipe",
    "a link to a fifo": "a pipe",
    "dangling": "a link to nowhere",
}
ALLOWED = ("results.csv", "there/is/no/such/folder/r.csv", "work/r.csv", "dataset/r.csv", "old.html")


@pytest.fixture
def job(job):
    """A finished job, and beside it an input, links, a FIFO and pictures that no video has."""
    for folder in ("dataset/test", "dataset/more"):
        Path(folder).mkdir()
    Path("dataset/more/cover.PNG").touch()
    Path("new.csv").write_text("title\na title\n")
    Path("old.html").write_text("an older page")
    Path("same").symlink_to("dataset")
    Path("to-work").symlink_to("work")
    Path("dangling").symlink_to("nowhere/at/all")
    os.mkfifo("fifo")
    Path("a link to a fifo").symlink_to("fifo")
    return job


def check(path):
    check_output(Path(path), DatasetConfig(data=Path("dataset")), Workspace(Path("work")), inputs=[Path("new.csv")])


@pytest.mark.parametrize("path", FORBIDDEN)
def test_a_file_that_is_not_to_be_overwritten_is_named_with_the_reason(job, path):
    with pytest.raises(UsageError) as told:
        check(path)
    assert f"--out must name another file than {Path(path)}" in str(told.value)
    assert FORBIDDEN[path] in str(told.value)


@pytest.mark.parametrize("path", ALLOWED)
def test_any_other_file_may_be_written(job, path):
    check(path)


def test_where_the_dataset_and_the_work_folder_are_the_current_one_results_can_lie_beside_them(job):
    os.chdir("dataset")
    Path("results.csv").touch()
    check_output(Path("results.csv"), DatasetConfig(data=Path()), Workspace(Path()), inputs=[])


def test_devices_are_refused_before_anything_is_touched(job):
    before = Path("/dev/null").stat()
    with pytest.raises(UsageError, match="device"):
        check("/dev/null")
    assert Path("/dev/null").stat() == before


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"format": "npm"}', "[" * 5000])
def test_numbers_go_beside_the_page_only_over_numbers(tmp_path, content):
    path = tmp_path / "package.json"
    check_companion(path, "vp-report")
    path.write_text(content)
    with pytest.raises(UsageError, match=r"package\.json, which vp did not write"):
        check_companion(path, "vp-report")
    path.write_text('{"format": "vp-report", "schema": 1}')
    check_companion(path, "vp-report")


@pytest.mark.parametrize("out", ["dataset/train_val/id-001.jpg", "work/runs/lines/metrics.html", "fifo", "data.html"])
def test_a_report_goes_nowhere_where_it_does_harm(job, out):
    Path("data.json").write_text("[1, 2, 3]")
    files = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    result = vp("report", "--out", out)
    assert (result.exit_code, "--out" in result.stderr) == (2, True), result.stderr
    assert {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()} == files


@pytest.mark.parametrize("out", ["new.csv", "dataset/train_val.csv", "work/runs/lines/folds.csv", "fifo"])
def test_predictions_go_nowhere_where_they_do_harm(job, monkeypatch, out):
    monkeypatch.setattr("pipeline.predict.Predictor.open", lambda **_: pytest.fail("work was spent"))
    result = vp("predict", "--csv", "new.csv", "--out", out)
    assert (result.exit_code, out in result.stderr) == (2, True), result.stderr


@pytest.mark.usefixtures("undrawn")
def test_a_report_may_be_asked_for_where_it_goes_anyway(job):
    assert vp("report", "--out", "work/runs/lines/report.html").exit_code == 0
    assert vp("report", "--out", "client/page.html").exit_code == 0
    assert vp("report", "--out", "client/page.html").exit_code == 0
