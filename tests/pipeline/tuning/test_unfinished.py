"""What is told of a fine-tuning that has not finished, without reading its tensors."""

import json
from pathlib import Path

import pytest

from pipeline.tuning.unfinished import fold_folder, tuning_folder, unfinished
from tests.command_line import vp


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
    assert found.told == f"fine-tuning a is unfinished (epochs: 3 of fold0, 2 of fold1; {size} B)"


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


def test_status_tells_of_it_and_prune_leaves_it_until_it_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = begun(Path("work/runs/tuned"), json.dumps({"epoch": 1}))
    told = "fine-tuning tuned is unfinished (epochs: 1 of fold0; "
    assert f"{told}14 B): the same `vp finetune` goes on with it" in vp("status").stdout
    listed = vp("prune", "--yes")
    assert f"left alone: {told}14 B) in {folder}: `vp prune --run tuned` removes it" in listed.stdout
    assert folder.is_dir()
    assert "unfinished fine-tuning" in vp("prune", "--run", "tuned").stdout
    assert folder.is_dir()
    assert vp("prune", "--run", "tuned", "--yes").exit_code == 0
    assert not folder.exists()
