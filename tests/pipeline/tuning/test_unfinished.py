"""What is told of a fine-tuning that has not finished, without reading its tensors."""

import contextlib
import json
import os
from pathlib import Path

import pytest

from features.lock import writer_lock
from pipeline.runs import building, lock_path
from pipeline.tuning.unfinished import fold_folder, tuning_folder, unfinished
from tests.command_line import last_json, vp

GIVE_UP = ("prune", "--unfinished", "tuned", "--yes")


def begun(run=Path("work/runs/tuned"), *states):
    """The folder of an unfinished fine-tuning whose folds say `states`."""
    folder = tuning_folder(run)
    folder.mkdir(parents=True)
    (folder / "begun.json").write_text("{}")
    for fold, state in enumerate(states):
        fold_folder(folder, fold).mkdir()
        (fold_folder(folder, fold) / "state.json").write_text(state)
    return folder


def test_the_epochs_of_each_fold_are_counted(tmp_path):
    folder = begun(tmp_path / "a", json.dumps({"epoch": 3}), json.dumps({"epoch": 2}))
    (found,) = unfinished(tmp_path)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert (found.name, found.folder, found.epochs, found.size_bytes) == ("a", folder, {"fold0": 3, "fold1": 2}, size)
    assert found.told == f"fine-tuning a is unfinished (epochs: fold0 3, fold1 2; {size} B)"


@pytest.mark.parametrize("damage", ["", "[", "[]", "{}", '{"epoch": null}'])
def test_a_damaged_state_has_no_finished_epoch(tmp_path, damage):
    begun(tmp_path / "a", damage)
    assert unfinished(tmp_path)[0].epochs == {"fold0": 0}


def test_before_the_first_epoch_there_is_none(tmp_path):
    begun(tmp_path / "a")
    assert "epochs: none yet" in unfinished(tmp_path)[0].told


def test_a_link_is_not_followed(tmp_path):
    folder = begun(tmp_path / "elsewhere" / "a")
    tuning_folder(tmp_path / "b").symlink_to(folder)
    assert unfinished(tmp_path) == []


def test_status_tells_who_trains_it_and_calls_nothing_of_it_left_over(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    begun(Path("work/runs/tuned"), json.dumps({"epoch": 1}))
    with contextlib.suppress(KeyboardInterrupt), building(Path("work/runs/tuned")):
        told = vp("status", "--json")
        assert f"14 B): it is being trained by process {os.getpid()} on " in told.output
        facts = last_json(told)
        assert facts["unfinished"][0]["writer"]["pid"] == os.getpid()
        assert facts["abandoned"] == []
        raise KeyboardInterrupt


def test_status_tells_of_it_and_prune_leaves_it_until_it_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = begun(Path("work/runs/tuned"), json.dumps({"epoch": 1}))
    told = "fine-tuning tuned is unfinished (epochs: fold0 1; "
    assert f"{told}14 B): the same `vp finetune` goes on with it" in vp("status").stdout
    assert last_json(vp("status", "--json"))["unfinished"] == [{"run": "tuned", "epochs": {"fold0": 1}, "writer": None}]
    listed = vp("prune", "--yes")
    assert f"left alone: {told}14 B) in {folder}: `vp prune --unfinished tuned` gives it up" in listed.stdout
    assert folder.is_dir()
    assert "unfinished fine-tuning" in vp("prune", "--unfinished", "tuned").stdout
    assert folder.is_dir()
    assert vp("prune", "--unfinished", "tuned", "--yes").exit_code == 0
    assert not folder.exists()


def test_giving_it_up_leaves_the_finished_run_of_that_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = begun(Path("work/runs/tuned"), json.dumps({"epoch": 1}))
    run = folder.with_name("tuned")
    run.mkdir()
    (run / "run.json").write_text("{}")
    assert vp("prune", "--unfinished", "tuned", "--yes").exit_code == 0
    assert not folder.exists()
    assert (run / "run.json").is_file()


def test_a_folder_with_files_of_mine_or_outside_of_the_work_folder_stays(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = begun(Path("work/runs/tuned"), json.dumps({"epoch": 1}))
    (folder / "fold0" / "notes.txt").write_text("mine")
    assert f"{folder} stays, as vp did not write fold0/notes.txt in it" in vp(*GIVE_UP).stdout
    assert folder.is_dir()
    (folder / "fold0" / "notes.txt").unlink()
    Path("work/runs").rename("elsewhere")
    Path("work/runs").symlink_to(tmp_path / "elsewhere")
    assert "lies outside of the work folder" in vp(*GIVE_UP).stdout
    assert folder.is_dir()


@pytest.mark.parametrize("name", ["..tuning", ".a b.tuning", ".study.tuning"])
def test_folders_that_only_look_like_one_are_none(tmp_path, name):
    (tmp_path / name).mkdir()
    if name != ".study.tuning":
        (tmp_path / name / "begun.json").write_text("{}")
    assert unfinished(tmp_path) == []


def test_one_that_is_being_trained_is_not_given_up(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = begun(Path("work/runs/tuned"))
    with writer_lock(lock_path(Path("work/runs/tuned"))):
        assert vp(*GIVE_UP).exit_code == 6
    assert folder.is_dir()
