"""The closed form against a library's ridge on columns built by hand, and what may choose what."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from heads import linear
from heads.errors import UnfitDataError
from heads.folds import FoldPlan, group, kfold, time
from heads.inputs import Block, Category, Inputs
from heads.linear import PENALTIES, fit_linear
from heads.readers import fit_readers

SEED = 5


def plans(n_videos: int) -> dict[str, FoldPlan]:
    rng = np.random.default_rng(0)
    uneven = np.repeat(np.arange(-1, 3, dtype=np.int32), [20, 30, 60, n_videos - 110])
    return {
        "kfold": kfold(n_videos, 3, 42),
        "group": group([f"channel {row % 11}" for row in range(n_videos)], list(map(str, range(n_videos))), 3, 42),
        "time": time(rng.integers(0, 10**9, n_videos), 3),
        "unequal": FoldPlan(fold_of=uneven, split="file", seed=None),
    }


def columns_by_hand(inputs, log_views, train_rows, fold, weights):
    """Every modality's columns, centred where it is present and scaled to unit variance, slowly."""
    w = weights[train_rows]
    mean = np.average(log_views[train_rows], weights=w)
    sd = np.sqrt(np.average((log_views[train_rows] - mean) ** 2, weights=w))
    z = (log_views - mean) / sd
    fitted = fit_readers(inputs, z, train_rows, np.random.default_rng((SEED, fold)))
    blocks = []
    for block in inputs.blocks:
        raw = np.array(fitted.columns.get(block.modality, getattr(block, "values", None)), dtype=np.float64)
        here = block.present[train_rows]
        centre = np.average(raw[train_rows][here], axis=0, weights=w[here])
        centred = np.where(block.present[:, None], raw - centre, 0.0)
        variance = (w[:, None] * centred[train_rows] ** 2).sum() / w.sum()
        blocks.append(centred / np.sqrt(variance))
    return np.hstack(blocks), z, mean, sd


@pytest.mark.parametrize("split", ["kfold", "group", "time", "unequal"])
@pytest.mark.parametrize("weighted", [False, True])
def test_every_fold_and_penalty_equals_a_ridge_of_the_library(gappy_world, split, weighted, monkeypatch):
    inputs, log_views = gappy_world.inputs, gappy_world.log_views
    plan = plans(len(log_views))[split]
    weights = np.random.default_rng(1).uniform(0.2, 3.0, len(log_views)) if weighted else np.ones(len(log_views))
    for penalty in PENALTIES[[0, 7, 14, 21, 29]]:
        monkeypatch.setattr(linear, "PENALTIES", np.array([penalty]))
        training = fit_linear(inputs, log_views, plan, seed=SEED, weights=weights, search=False)
        for member in training.members:
            train, val = plan.train_rows(member.fold), plan.val_rows(member.fold)
            x, z, mean, sd = columns_by_hand(inputs, log_views, train, member.fold, weights)
            ridge = Ridge(alpha=penalty, solver="cholesky").fit(x[train], z[train], sample_weight=weights[train])
            expected = mean + sd * ridge.predict(x[val])
            np.testing.assert_allclose(member.final.predict(inputs.take(val)), expected, atol=1e-4)


def test_a_category_is_solved_like_any_other_columns(world, monkeypatch):
    codes = np.random.default_rng(0).integers(0, 9, len(world.log_views))
    block = Category(modality="channel", codes=codes, present=np.ones(240, dtype=bool))
    inputs, log_views = Inputs((*world.inputs.blocks, block)), world.log_views + 0.5 * (codes % 3)
    plan, weights = kfold(len(log_views), 3, 42), np.ones(len(log_views))
    monkeypatch.setattr(linear, "PENALTIES", np.array([3.0]))
    for member in fit_linear(inputs, log_views, plan, seed=SEED, search=False).members:
        train, val = plan.train_rows(member.fold), plan.val_rows(member.fold)
        x, z, mean, sd = columns_by_hand(inputs, log_views, train, member.fold, weights)
        expected = mean + sd * Ridge(alpha=3.0, solver="cholesky").fit(x[train], z[train]).predict(x[val])
        np.testing.assert_allclose(member.final.predict(inputs.take(val)), expected, atol=1e-4)


def test_few_penalties_by_factorisation_equal_many_by_eigenvectors(gappy_world, monkeypatch):
    plan = kfold(len(gappy_world.log_views), 3, 42)
    many = fit_linear(gappy_world.inputs, gappy_world.log_views, plan, seed=SEED, search=False)
    (penalty,) = set(many.facts["penalty"][:1])
    monkeypatch.setattr(linear, "PENALTIES", np.array([penalty]))
    few = fit_linear(gappy_world.inputs, gappy_world.log_views, plan, seed=SEED, search=False)
    one, other = (training.members[0].final.predict(gappy_world.inputs) for training in (many, few))
    np.testing.assert_allclose(one, other, atol=1e-5)


def test_the_targets_of_a_fold_choose_nothing_about_its_member(world):
    plan = kfold(len(world.log_views), 3, 42)
    changed = world.log_views.copy()
    rows = plan.val_rows(1)
    changed[rows] = changed[rows][::-1]
    ours = fit_linear(world.inputs, world.log_views, plan, seed=SEED, search=False).members[1].final.to_arrays()
    theirs = fit_linear(world.inputs, changed, plan, seed=SEED, search=False).members[1].final.to_arrays()
    # The other folds' members have trained on these rows, so the penalty may move by a step, and nothing else may.
    assert ours.keys() == theirs.keys()
    ratio = ours["image.0.weight_0"] / theirs["image.0.weight_0"]
    assert np.corrcoef(ours["image.0.weight_0"][:, 0], theirs["image.0.weight_0"][:, 0])[0, 1] > 0.999
    assert 0.5 < np.median(ratio) < 2


def test_the_search_never_scores_worse_than_equal_terms_on_all_folds_together(world):
    noise = Block.embedding("noise", np.random.default_rng(0).normal(size=(240, 60)), np.ones(240, dtype=bool))
    inputs, plan = Inputs((*world.inputs.blocks, noise)), kfold(240, 3, 42)
    equal, searched = (
        sum(m.final_msle for m in fit_linear(inputs, world.log_views, plan, search=search).members)
        for search in (False, True)
    )
    assert searched < equal


def test_a_grid_that_ends_too_early_is_told_and_one_that_does_not_is_not(world, monkeypatch):
    noisy = world.log_views + np.random.default_rng(0).normal(size=240)
    plan = kfold(240, 3, 42)
    assert not fit_linear(world.inputs, noisy, plan, search=False).notes
    monkeypatch.setattr(linear, "PENALTIES", np.logspace(-4, -1, 12))
    (note,) = fit_linear(world.inputs, noisy, plan, search=False).notes
    assert "edge of the grid from 0.0001 to 0.1 (fold 0: 0.1, fold 1: 0.1, fold 2: 0.1)" in note


def test_a_video_of_which_nothing_is_known_gets_the_baseline(gappy_world):
    plan = kfold(len(gappy_world.log_views), 3, 42)
    nothing = Inputs(
        tuple(
            replace(block.take(slice(0, 1)), present=np.zeros(1, dtype=bool), values=0 * block.values[:1])
            for block in gappy_world.inputs.blocks
        )
    )
    for member in fit_linear(gappy_world.inputs, gappy_world.log_views, plan).members:
        assert member.final.predict(nothing) == pytest.approx(member.final.baseline)


def test_the_same_rows_give_the_same_bytes(gappy_world):
    plan = kfold(len(gappy_world.log_views), 3, 42)
    once, again = (fit_linear(gappy_world.inputs, gappy_world.log_views, plan).members for _ in range(2))
    for one, other in zip(once, again, strict=True):
        ours, theirs = one.final.to_arrays(), other.final.to_arrays()
        assert all(ours[name].tobytes() == theirs[name].tobytes() for name in ours)


def test_a_target_that_is_constant_or_of_other_rows_is_refused(world):
    plan = kfold(len(world.log_views), 3, 42)
    with pytest.raises(UnfitDataError, match="constant"):
        fit_linear(world.inputs, np.full_like(world.log_views, 3.0), plan)
    with pytest.raises(ValueError, match="same videos"):
        fit_linear(world.inputs, world.log_views[1:], plan)
