"""Every fault of a run is found, each by its own check."""

import json
import os
import shutil
from pathlib import Path

import pytest

from features.inspection import inspect
from pipeline.config import VerifyConfig
from pipeline.run_faults import run_faults
from pipeline.runs import RECORD, seal
from pipeline.workspace import Workspace

AGAIN = "`vp train-heads --name lines --model fake --no-diagnostics --head linear --no-search`"


def faults(job, name="lines"):
    workspace = Workspace(job.work)
    inspections = {folder: inspect(folder) for folder in workspace.cache_folders()}
    return run_faults(workspace, name, VerifyConfig(), inspections)


def whats(job):
    return [(fault.where.name, fault.what) for fault in faults(job)]


def sealed_again(job, **changes):
    """Give run.json the digests of the files as they are now."""
    record = json.loads((job.run / RECORD).read_text()) | changes
    (job.run / RECORD).unlink()
    seal(job.run, {name: value for name, value in record.items() if name not in ("format", "schema", "files")})


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_a_whole_run_has_no_fault(job):
    assert faults(job) == []


def test_every_file_that_is_missing_or_changed_is_named(job):
    (job.run / "metrics.jsonl").write_text("")
    (job.run / "fold_info.csv").unlink()
    checkpoint = job.run / "checkpoints" / "lines_fold1_best.safetensors"
    checkpoint.write_bytes(checkpoint.read_bytes()[:-3])
    assert whats(job) == [
        ("lines_fold1_best.safetensors", "is not the file that the run was saved with"),
        ("fold_info.csv", "is missing"),
        ("metrics.jsonl", "is not the file that the run was saved with"),
    ]
    assert {fault.repair for fault in faults(job)} == {AGAIN}


def test_a_checkpoint_that_does_not_load_is_found_though_its_digest_is_right(job):
    checkpoint = job.run / "checkpoints" / "lines_fold1_best.safetensors"
    checkpoint.write_bytes(b"\x80\x04 a pickle")
    sealed_again(job)
    ((where, what),) = whats(job)
    assert where == checkpoint.name
    assert "is missing or damaged" in what


def test_a_checkpoint_under_another_name_is_found(job):
    folder = job.run / "checkpoints"
    shutil.copy(folder / "lines_fold0_best.safetensors", folder / "lines_fold1_best.safetensors")
    sealed_again(job)
    assert whats(job) == [("lines_fold1_best.safetensors", "is another member than its name says")]


def test_folds_that_are_not_the_plan_of_the_run_are_found(job):
    edit(job.run / "folds.csv", "id-003,", "id-033,")
    sealed_again(job)
    assert whats(job) == [
        ("folds.csv", "is not the fold plan that run.json names"),
        ("oof.csv", "differs from folds.csv in 1 rows"),
    ]


def test_predictions_of_other_rows_are_found(job):
    lines = (job.run / "oof.csv").read_text().splitlines(keepends=True)
    (job.run / "oof.csv").write_text("".join([lines[0], lines[2], lines[1], *lines[3:-1]]))
    sealed_again(job)
    assert ("oof.csv", "differs from folds.csv in 3 rows") in whats(job)


@pytest.mark.parametrize("value", ["", "nan", "inf"])
def test_a_validated_row_without_a_prediction_is_found(job, value):
    lines = (job.run / "oof.csv").read_text().splitlines(keepends=True)
    fields = lines[1].split(",")
    fields[4] = value
    (job.run / "oof.csv").write_text("".join([lines[0], ",".join(fields), *lines[2:]]))
    sealed_again(job)
    assert whats(job) == [("oof.csv", "1 validated rows have no finite prediction")]


def test_a_score_that_is_not_that_of_the_predictions_is_found(job):
    metrics = json.loads((job.run / "metrics.json").read_text())
    (job.run / "metrics.json").write_text(json.dumps(metrics | {"oof_msle": 0.001}))
    sealed_again(job)
    ((where, what),) = whats(job)
    assert (where, what[:45]) == ("metrics.json", "tells an out-of-fold MSLE of 0.001000, oof.cs")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": "vp-run", "schema": 99}'])
def test_a_record_that_cannot_be_read_is_one_fault(job, text):
    (job.run / RECORD).write_text(text)
    (fault,) = faults(job)
    assert fault.repair == "`vp train-heads --name lines`"


def test_a_pipe_in_place_of_the_record_is_a_fault_and_nothing_to_wait_for(job):
    (job.run / RECORD).unlink()
    os.mkfifo(job.run / RECORD)
    (fault,) = faults(job)
    assert fault.what.endswith(f"{RECORD} is no file: move {job.run} away and run `vp train-heads` again")


def test_a_record_of_the_wrong_types_is_a_fault_and_no_crash(job):
    sealed_again(job, folds="three", encoders=7)
    assert faults(job)


def test_a_run_under_another_name_is_found(job):
    job.run.rename(job.run.with_name("renamed"))
    assert "is the run 'lines' under another name" in [fault.what for fault in faults(job, "renamed")]


def test_a_run_whose_cache_is_gone_or_changed_is_at_fault(job):
    document = json.loads((job.cache / "manifest.json").read_text())
    document["semantic"]["weights"] = "others"
    (job.cache / "manifest.json").write_text(json.dumps(document))
    (changed,) = faults(job)
    assert changed.what.startswith("it was trained on vectors of fake")
    assert changed.repair == AGAIN
    shutil.rmtree(Path("work/embeddings"))
    (gone,) = faults(job)
    assert gone.what == "it was trained on the cache fake, which is not there"
    assert gone.repair == "`vp extract --model PATH/TO/fake`"
