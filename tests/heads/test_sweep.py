"""Which configurations a sweep tries, which it chooses, and how honest the error it reports is."""

from dataclasses import replace

import numpy as np
import pytest

from heads.config import HeadsConfig
from heads.fit import fit, fit_each
from heads.folds import kfold
from heads.inputs import Inputs
from heads.metrics import msle
from heads.sweep import Selection, configurations

CONFIG = HeadsConfig(head="mlp", epochs=3, hidden_dim=8, batch_size=64, seed=3)


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        (["speed=1"], "takes one of lr, hidden-dim, dropout, weight-decay and its values, not 'speed=1'"),
        (["lr"], "lr takes numbers such as lr=A,B, not 'lr'"),
        (["lr="], "lr takes numbers"),
        (["hidden-dim=8.5"], "hidden-dim takes whole numbers such as hidden-dim=A,B, not 'hidden-dim=8.5'"),
        (["lr=nan"], "finite"),
        (["lr=1e-3,0.001"], "each value once"),
        (["lr=1", "lr=2"], "each key once"),
        (["lr=-1"], "--lr must be above 0"),
        (
            ["lr=" + ",".join(map(str, range(1, 14))), "dropout=0,0.1,0.2,0.3,0.4"],
            "at most 64 configurations, given 65",
        ),
    ],
)
def test_a_sweep_that_makes_no_sense_is_refused(texts, said):
    with pytest.raises(ValueError, match=said):
        configurations(HeadsConfig(), texts)


def test_every_combination_is_tried_and_the_rest_stays_as_it_was():
    tried = configurations(replace(CONFIG, epochs=7), ["hidden-dim=8,16", "weight-decay=0,0.1"])
    assert [(c.hidden_dim, c.weight_decay) for c in tried] == [(8, 0.0), (8, 0.1), (16, 0.0), (16, 0.1)]
    assert {(c.epochs, c.head, c.seed) for c in tried} == {(7, "mlp", 3)}


@pytest.mark.parametrize("head", ["mlp", "hybrid"])
def test_a_configuration_among_others_is_the_one_alone(world, head):
    """Rates, decays and dropout differ within a program, widths between programs."""
    config = replace(CONFIG, head=head, epochs=1, search=False, seeds=2)
    configs = configurations(config, ["lr=1e-2,1e-3", "dropout=0,0.3", "hidden-dim=8,16"])
    plan = kfold(240, 3, 0)
    each = fit_each(world.inputs, world.log_views, plan, configs)
    for config, training in zip(configs, each, strict=True):
        alone = fit(world.inputs, world.log_views, plan, config)
        for ours, theirs in zip(training.members, alone.members, strict=True):
            assert (ours.fold, ours.seed) == (theirs.fold, theirs.seed)
            np.testing.assert_allclose(ours.final.predict(world.inputs), theirs.final.predict(world.inputs), atol=1e-4)


def test_the_winner_has_the_lowest_final_error_and_each_fold_is_chosen_for_by_the_others():
    final = np.array([[9.0, 2.0, 2.0], [1.0, 6.0, 4.0], [5.0, 5.0, 5.0]])
    configs = [replace(CONFIG, lr=lr) for lr in (1e-3, 1e-2, 1e-1)]
    selection = Selection(configs, ["lr"], np.zeros((3, 3)), final, np.array([2, 2, 6]))
    assert selection.chosen == 1
    assert [selection.chosen_without(fold) for fold in range(3)] == [0, 1, 1]
    assert selection.nested_msle == (9 + 6 + 4) / 10
    facts = selection.facts()
    assert facts["chosen"] == {"lr": 1e-2}
    assert facts["chosen_without_fold"] == [{"lr": 1e-3}, {"lr": 1e-2}, {"lr": 1e-2}]
    assert (facts["oof_msle_final"], facts["oof_msle_final_nested"]) == (1.1, 1.9)
    assert facts["configurations"][0] == {
        "lr": 1e-3,
        "oof_msle": 0.0,
        "oof_msle_final": 1.3,
        "fold_msle_final": [4.5, 1.0, 2 / 6],
    }


def test_the_chosen_of_many_that_learn_nothing_flatters_and_the_nested_error_does_not():
    rng = np.random.default_rng(0)
    errors = rng.chisquare(5, size=(60, 5))
    selection = Selection([CONFIG] * 60, [], errors, errors, np.full(5, 5))
    chance = errors.sum(axis=1).mean() / 25
    assert selection.final[selection.chosen].sum() / 25 < 0.8 * chance
    assert selection.nested_msle > 0.8 * chance


def test_errors_are_those_of_the_mean_over_the_seeds(world):
    age, plan = Inputs((world.inputs.block("age"),)), kfold(240, 3, 0)
    config = replace(CONFIG, seeds=2)
    trainings = fit_each(age, world.log_views, plan, [config])
    selection = Selection.of([config], ["lr=1"], trainings, inputs=age, log_views=world.log_views, plan=plan)
    for fold, (one, other) in enumerate(trainings[0].of_folds):
        rows = plan.val_rows(fold)
        seen, truth = age.take(rows), world.log_views[rows]
        for moment, errors in (("best", selection.best), ("final", selection.final)):
            mean = (getattr(one, moment).predict(seen) + getattr(other, moment).predict(seen)) / 2
            assert errors[0, fold] / len(rows) == pytest.approx(msle(truth, mean))
