"""The state of a fold: whole after a crash at any file, and the same when it is read back."""

import pytest
import torch

from features import durable
from features.errors import CacheError
from heads.members import EpochRecord
from pipeline.tuning import state as module
from pipeline.tuning.state import FoldState
from pipeline.tuning.unfinished import records_so_far

NAMES = ("values", "average", "first", "second", "best")


def state(epoch, best_epoch=0):
    """Tensors that tell their epoch, by name."""
    tensors = {name: {"heads.a": torch.full((2,), float(epoch))} for name in NAMES}
    tensors["best"] = {"heads.a": torch.full((2,), float(best_epoch))}
    numbers = {"val_loss": 1.0, "msle": 1.0, "mae": 1.0, "rmse": 1.0, "learning_rate": 0.1, "train_loss": None}
    records = [
        EpochRecord(fold=0, epoch=each, weights={"image": 1.0}, raw_weights={"image": 1.0}, seconds=0.0, **numbers)
        for each in range(epoch + 1)
    ]
    return FoldState(epoch, 10 * epoch, **tensors, best_epoch=best_epoch, records=records)


def names(folder):
    return {path.name for path in folder.glob("*.safetensors")}


def assert_same(found, expected):
    assert (found.epoch, found.steps, found.best_epoch) == (expected.epoch, expected.steps, expected.best_epoch)
    assert (found.records, found.errors) == (expected.records, expected.errors)
    for name in NAMES:
        assert torch.equal(getattr(found, name)["heads.a"], getattr(expected, name)["heads.a"])


def test_what_was_written_is_read_back(tmp_path):
    written = state(2, 1)
    written.write(tmp_path)
    assert_same(FoldState.read(tmp_path), written)
    assert records_so_far(tmp_path) == written.records


def test_before_the_first_state_there_is_none(tmp_path):
    assert FoldState.read(tmp_path) is None
    assert records_so_far(tmp_path) == []


def test_what_is_trained_to_its_end_keeps_what_members_are_made_of(tmp_path):
    written = state(3, 1)
    written.write(tmp_path)
    written.errors = {"best": [1.0], "final": [2.0]}
    written.write(tmp_path)
    found = FoldState.read(tmp_path)
    assert names(tmp_path) == {"average-epoch3.safetensors", "average-epoch1.safetensors"}
    assert (found.values, found.first, found.second, found.errors) == ({}, {}, {}, written.errors)
    assert found.average["heads.a"].tolist() == [3.0, 3.0]
    assert found.best["heads.a"].tolist() == [1.0, 1.0]


def test_older_files_go_and_the_best_epoch_stays(tmp_path):
    for epoch, best in ((0, 0), (1, 1), (2, 1)):
        state(epoch, best).write(tmp_path)
    assert names(tmp_path) == {f"{name}-epoch2.safetensors" for name in NAMES[:-1]} | {"average-epoch1.safetensors"}


@pytest.mark.parametrize("files_written", range(5))
def test_a_crash_while_an_epoch_is_written_leaves_the_epoch_before(tmp_path, monkeypatch, files_written):
    """Four files of tensors and the document: whichever comes last, a reader sees one epoch or the other, whole."""
    state(0).write(tmp_path)
    publish, done = durable.publish, []

    def dies(path, content):
        if len(done) == files_written:
            raise KeyboardInterrupt
        done.append(path)
        return publish(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(module.durable, "publish", dies)
        with pytest.raises(KeyboardInterrupt):
            state(1, 1).write(tmp_path)
    assert_same(FoldState.read(tmp_path), state(0))
    state(1, 1).write(tmp_path)  # the one that goes on
    assert_same(FoldState.read(tmp_path), state(1, 1))
    assert names(tmp_path) == {f"{name}-epoch1.safetensors" for name in NAMES[:-1]}


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"epoch": 1, "files": {"values": "../x"}}'])
def test_a_damaged_document_is_told(tmp_path, damage):
    state(1).write(tmp_path)
    (tmp_path / "state.json").write_bytes(damage)
    with pytest.raises(CacheError, match="remove"):
        FoldState.read(tmp_path)


def test_a_damaged_tensor_file_is_told(tmp_path):
    state(1).write(tmp_path)
    path = tmp_path / "values-epoch1.safetensors"
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(CacheError, match="cannot be continued"):
        FoldState.read(tmp_path)
