"""The record of a training: always on disk, to Weights & Biases if asked, and never at the cost of the training."""

import errno
import fnmatch
import json
import sys
from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest

from features import durable
from features.errors import StorageError
from features.progress import Silent
from heads.members import EpochRecord
from pipeline.tracking import run_log

RECORD = EpochRecord(
    fold=1,
    epoch=2,
    train_loss=0.5,
    val_loss=0.25,
    msle=1.5,
    mae=1.0,
    rmse=1.25,
    learning_rate=1e-3,
    weights={"image": 0.75, "age": 0.25},
    raw_weights={"image": 0.5, "age": 0.5},
    seconds=0.1,
)
RESULT = {"fold_1/best_epoch": 2, "ensemble/oof_msle": 1.5}
LINES = [
    {
        "epoch": 2,
        "fold_1/train/loss_epoch": 0.5,
        "fold_1/val/loss_epoch": 0.25,
        "fold_1/val/msle": 1.5,
        "fold_1/val/mae": 1.0,
        "fold_1/val/rmse": 1.25,
        "fold_1/learning_rate": 1e-3,
        "fold_1/weights/image": 0.75,
        "fold_1/weights/age": 0.25,
        "fold_1/raw_weights/image": 0.5,
        "fold_1/raw_weights/age": 0.5,
    },
    RESULT,
]


class Told(Silent):
    def __init__(self):
        self.warnings = []

    def warn(self, text):
        self.warnings.append(text)


class Service:
    """Stands for the package wandb and for the run that it starts; fails at the n-th thing it is asked."""

    def __init__(self, fails_at=0):
        self.fails_at, self.asked = fails_at, []
        self.started, self.step_of, self.logged, self.kept, self.ended = [], {}, [], {}, []
        self.summary = SimpleNamespace(update=lambda values: self._do("summary", self.kept.update, values))

    def _do(self, what, act, values):
        self.asked.append(what)
        if len(self.asked) == self.fails_at:
            raise RuntimeError(f"{what} failed")
        act(values)

    def init(self, **options):
        self._do("init", self.started.append, options)
        return self

    def define_metric(self, name, step_metric=None):
        self._do("define_metric", self.step_of.update, {name: step_metric})

    def log(self, values):
        self._do("log", self.logged.append, values)

    def finish(self, exit_code):
        self._do("finish", self.ended.append, exit_code)


def opened(file, told, mode="disabled"):
    """The record of a training."""
    return run_log(file, mode=mode, name="a run", folder=file.parent / "work", config={"lr": 1e-3}, progress=told)


@pytest.fixture
def train(tmp_path, monkeypatch):
    """Log a short training; returns what the user was told."""

    def run(service, mode="offline", stop=None):
        monkeypatch.setitem(sys.modules, "wandb", service)
        told = Told()
        with opened(tmp_path / "metrics.jsonl", told, mode) as log:
            log.epoch(RECORD)
            if stop is not None:
                raise stop
            log.result(RESULT)
        return told.warnings

    return run


def test_the_first_seed_has_the_keys_of_its_fold_and_the_others_keys_of_their_own(tmp_path):
    file = tmp_path / "metrics.jsonl"
    silent = {"mode": "disabled", "name": "a run", "folder": tmp_path, "config": {}, "progress": Told()}
    with run_log(file, **silent, first_seed=42) as log:
        log.epoch(replace(RECORD, seed=42))
        log.epoch(replace(RECORD, seed=43))
        assert (log.key(1, 42), log.key(1, 43), log.key(1, None)) == ("fold_1", "fold_1/seed_43", "fold_1")
    first, second = lines(tmp_path)
    assert first == LINES[0]
    assert second == {key.replace("fold_1", "fold_1/seed_43"): value for key, value in LINES[0].items()}


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def test_each_epoch_and_each_result_is_one_line(train, tmp_path):
    assert train(None, "disabled") == []
    assert lines(tmp_path) == LINES


def test_a_line_can_be_read_while_the_training_goes_on(tmp_path):
    with opened(tmp_path / "metrics.jsonl", Told()) as log:
        log.epoch(RECORD)
        assert lines(tmp_path) == LINES[:1]


def test_a_new_training_begins_a_new_record(train, tmp_path):
    train(None, "disabled")
    train(None, "disabled")
    assert lines(tmp_path) == LINES


def test_numbers_survive_the_record_to_the_last_bit(tmp_path):
    values = {"ensemble/a": 0.1 + 0.2, "ensemble/b": 1e-320, "ensemble/c": 2**60}
    with opened(tmp_path / "metrics.jsonl", Told()) as log:
        log.result(values)
    assert lines(tmp_path) == [values]


def test_wandb_gets_the_same_records_and_the_results_as_its_summary(train, tmp_path):
    service = Service()
    assert train(service) == []
    assert lines(tmp_path) == LINES
    assert service.logged == LINES[:-1], "a result is one number and no curve"
    assert service.kept == RESULT
    assert service.ended == [0]


@pytest.mark.parametrize("mode", ["offline", "online"])
def test_wandb_is_started_once_in_the_mode_that_was_asked_for(train, tmp_path, mode):
    service = Service()
    train(service, mode)
    options = {"project": "vp", "name": "a run", "mode": mode, "dir": tmp_path / "work", "config": {"lr": 1e-3}}
    assert service.started == [options]
    assert (tmp_path / "work").is_dir()


def test_every_value_of_an_epoch_is_drawn_over_the_epoch(train):
    service = Service()
    train(service)
    globs = [name for name, step in service.step_of.items() if step == "epoch"]
    assert all(glob.find("*") in {-1, len(glob) - 1} for glob in globs), "wandb knows no other globs"
    drawn = service.logged[0].keys() - {"epoch"}
    assert drawn == {key for key in drawn if any(fnmatch.fnmatch(key, glob) for glob in globs)}


def test_a_later_change_by_wandb_does_not_reach_the_results(train):
    service = Service()
    service.log = lambda values: values.clear()
    train(service)
    assert service.kept == RESULT == {"fold_1/best_epoch": 2, "ensemble/oof_msle": 1.5}


def test_a_wandb_that_fails_anywhere_is_told_once_and_costs_nothing(train, tmp_path):
    whole = Service()
    train(whole)
    assert whole.asked == ["init", "define_metric", "define_metric", "log", "summary", "finish"]
    for at, what in enumerate(whole.asked[:-1], 1):
        service = Service(fails_at=at)
        (warning,) = train(service)
        assert f"({what} failed)" in warning
        assert service.asked[at:] == ([] if what == "init" else ["finish"]), "nothing more is asked of it"
        assert lines(tmp_path) == LINES


def test_a_wandb_that_cannot_end_is_let_go(train, tmp_path):
    service = Service(fails_at=7)
    assert train(service) == []
    assert (service.asked[-1], lines(tmp_path)) == ("finish", LINES)


@pytest.mark.parametrize("stop", [ValueError("diverged"), KeyboardInterrupt()])
def test_a_training_that_fails_is_a_failed_run(train, tmp_path, stop):
    service = Service()
    with pytest.raises(type(stop)):
        train(service, stop=stop)
    assert service.ended == [1]
    assert lines(tmp_path) == LINES[:1]


def test_a_failure_of_wandb_does_not_make_the_run_a_failed_one(train):
    service = Service(fails_at=4)
    train(service)
    assert service.ended == [0]


def test_without_the_package_the_record_is_written_all_the_same(train, tmp_path):
    (warning,) = train(None, "online")
    assert "wandb" in warning
    assert lines(tmp_path) == LINES


def test_a_package_that_cannot_be_imported_for_any_reason_costs_nothing(tmp_path, monkeypatch):
    (tmp_path / "wandb.py").write_text("raise TypeError('Descriptors cannot be created directly.')")
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    told = Told()
    with opened(tmp_path / "metrics.jsonl", told, mode="offline") as log:
        log.result(RESULT)
    assert len(told.warnings) == 1
    assert lines(tmp_path) == [RESULT]


@pytest.mark.parametrize("step", ["create", "write", "sync"])
def test_a_full_disk_is_told_with_what_to_do_and_is_a_failed_run(train, monkeypatch, step):
    service = Service()

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(durable.calls, step, full)
    with pytest.raises(StorageError, match=r"metrics\.jsonl: No space left on device .*make room"):
        train(service)
    assert service.ended == [1]


def test_folds_do_not_share_keys(tmp_path):
    with opened(tmp_path / "metrics.jsonl", Told()) as log:
        for fold in (0, 10):
            log.epoch(replace(RECORD, fold=fold))
    first, second = lines(tmp_path)
    assert first.keys() & second.keys() == {"epoch"}
    assert len(first) == len(second) == len(asdict(RECORD)) - 5 + 4
