"""What a command trains: one configuration, or the best of a sweep."""

from dataclasses import replace

import numpy as np
import pytest

from features.errors import UsageError
from features.progress import Silent
from heads.folds import kfold
from heads.inputs import Block, Inputs
from pipeline.config import TrainHeadsConfig
from pipeline.fitting import told_sweep, train, tried

CONFIG = TrainHeadsConfig(head="mlp", epochs=2, hidden_dim=4, batch_size=64, device="cpu", seed=3)
RNG = np.random.default_rng(0)
INPUTS = Inputs((Block.scalar("age", RNG.uniform(0, 9, 60)),))
LOG_VIEWS = 5 + INPUTS.blocks[0].values[:, 0] + 0.1 * RNG.normal(size=60)
PLAN = kfold(60, 3, 0)


class Counted(Silent):
    def __init__(self):
        self.total, self.done, self.warnings = 0, 0, []

    def begin(self, what, total, unit):
        self.total = total

    def advance(self, count, **_):
        self.done += count

    def warn(self, text):
        self.warnings.append(text)


def trained(config, progress):
    records = []
    fitted = train(config, INPUTS, LOG_VIEWS, PLAN, told=records.append, progress=progress)
    return fitted, records


@pytest.mark.parametrize(("head", "why"), [("linear", "solves every penalty"), ("trees", "fixed settings")])
def test_a_sweep_of_a_head_that_tunes_itself_is_refused(head, why):
    with pytest.raises(UsageError, match=f"--sweep is for --head mlp and hybrid: .*{why}"):
        tried(replace(CONFIG, head=head, sweep=("lr=1",)))


def test_a_sweep_that_makes_no_sense_is_a_mistake_of_the_user():
    with pytest.raises(UsageError, match="--sweep takes one of lr"):
        tried(replace(CONFIG, sweep=("speed=1",)))


def test_without_a_sweep_the_configuration_itself_is_trained_and_every_epoch_told():
    progress = Counted()
    fitted, records = trained(replace(CONFIG, seeds=2), progress)
    assert fitted.config == replace(CONFIG, seeds=2)
    assert fitted.sweep == {}
    assert len(records) == progress.done == progress.total == 2 * 2 * 3


def test_a_sweep_keeps_the_winner_and_tells_of_its_epochs_alone():
    progress, config = Counted(), replace(CONFIG, sweep=("lr=1e-6,3e-2", "weight-decay=0,0.01"))
    fitted, records = trained(config, progress)
    assert fitted.config.lr == 3e-2
    assert progress.done == progress.total == 4 * 2 * 3
    assert records == [record for member in fitted.training.members for record in member.history]
    assert {record.learning_rate for record in records} == {3e-2}
    lines = told_sweep(fitted.sweep)
    assert len(lines) == 1 + 4 + 1
    assert sum(line.endswith("chosen") for line in lines) == 1
    assert f"{fitted.sweep['oof_msle_final_nested']:.4f} where each fold is chosen for by the other folds" in lines[-1]


def test_several_seeds_of_a_head_without_randomness_are_told_to_be_one():
    progress = Counted()
    fitted, _ = trained(replace(CONFIG, head="linear", seeds=3), progress)
    assert fitted.training.seeds == [None]
    assert any("nothing about the linear head is random" in warning for warning in progress.warnings)
    assert progress.done == progress.total == 3
