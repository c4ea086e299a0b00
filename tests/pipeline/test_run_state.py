"""Whether a run still stands on its caches, told from small files alone."""

import csv
import json

import pytest

from features.inspection import inspect
from pipeline.config import WorkConfig
from pipeline.run_state import cache_changes, run_ids, run_state
from pipeline.runs import Run, read_run
from pipeline.workspace import Workspace


def state(job, record=None):
    workspace = Workspace(job.work)
    inspections = {folder: inspect(folder) for folder in workspace.cache_folders()}
    run = read_run(job.run) if record is None else Run(job.run, record)
    return run_state(run, WorkConfig(), workspace, inspections)


def test_a_whole_run_on_its_own_cache(job):
    found = state(job)
    assert (found.word, found.lines) == ("whole", [])
    assert found.facts["modalities"] == ["image", "text", "age"]
    assert found.facts["oof_msle"] == json.loads((job.run / "metrics.json").read_text())["oof_msle"]


def test_the_ids_are_those_of_the_folds(job):
    assert run_ids(read_run(job.run)) == job.world.table().ids


def test_rows_that_the_cache_gained_or_lost_are_noted(job, fake_encoder):
    del job.world.rows[0]
    job.world.rows += [["new-1", "a", 1, 2020], ["new-2", "b", 1, 2020]]
    job.world.write()
    job.world.make(fake_encoder(), folder=job.cache)
    found = state(job)
    assert found.word == "whole"
    assert found.notes == ["since it was trained, the cache fake has 2 new rows and lacks 1 of its rows"]


def test_an_order_that_changed_is_no_news(job, fake_encoder):
    job.world.rows.reverse()
    job.world.write()
    job.world.make(fake_encoder(), folder=job.cache)
    assert state(job).notes == []


def test_changes_name_what_is_missing_made_otherwise_or_lacking(job):
    found = inspect(job.cache)
    assert cache_changes("fake", found.plan.encoder, ["image", "text"], found) == []
    assert cache_changes("fake", "x", [], None)[0].is_missing
    assert "was made by" in cache_changes("fake", "x", [], found)[0].what
    (lacking,) = cache_changes("fake", found.plan.encoder, ["image", "depth"], found)
    assert lacking.what == "it was trained on depth vectors, which the cache fake lacks"


@pytest.mark.parametrize("name", ["folds", "encoders", "sources", "files", "config", "rows"])
@pytest.mark.parametrize("value", [None, 7, "text", []])
def test_a_record_of_wrong_types_is_a_fault_and_no_crash(job, name, value):
    record = json.loads((job.run / "run.json").read_text()) | {name: value}
    found = state(job, record)
    assert found.word in ("damaged", "whole", "cache changed")
    del record[name]
    assert any(repr(name) in fault for fault in state(job, record).faults)


def test_a_table_of_folds_that_cannot_be_read_is_a_fault(job):
    with (job.run / "folds.csv").open("w", newline="") as file:
        csv.writer(file).writerow(["fold"])
        file.write("0\n")
    assert "folds.csv cannot be read" in state(job).faults[0]
