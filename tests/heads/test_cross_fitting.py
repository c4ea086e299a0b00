"""What a ridge predicts for training rows that it has not seen."""

import numpy as np
import pytest

from heads.cross_fitting import PARTS, cross_fitted
from heads.fold_ridge import FoldRidge
from heads.folds import FoldPlan, kfold
from heads.inputs import Block, Inputs
from heads.linear import fitted_heads
from heads.ridge import Problem
from heads.targets import Target

TARGET = Target("log1p")
PLAN = FoldPlan(fold_of=np.array([-1] * 10 + [0] * 20 + [1] * 30, dtype=np.int32), split="file", seed=None)


def problem_of(present: np.ndarray | None = None) -> Problem:
    rng = np.random.default_rng(0)
    here = np.ones(60, dtype=bool) if present is None else present
    blocks = (
        Block.embedding("image", rng.normal(size=(60, 80)), np.ones(60, dtype=bool)),
        Block.embedding("text", rng.normal(size=(60, 4)), here),
    )
    return Problem(Inputs(blocks), rng.normal(size=60), PLAN, np.ones(60), 7)


@pytest.mark.parametrize("fold", [0, 1])
def test_each_part_is_predicted_by_a_ridge_on_the_others(fold):
    problem, scales = problem_of(), {"text": 3.0}
    rows = PLAN.train_rows(fold)
    unseen = cross_fitted(problem, fold, 0.5, scales, TARGET)
    parts = kfold(len(rows), PARTS, 7)
    for part in range(PARTS):
        own, others = rows[parts.val_rows(part)], rows[parts.train_rows(part)]
        here = np.concatenate([others, own])
        plan = FoldPlan(
            fold_of=np.where(np.arange(len(here)) < len(others), 1, 0).astype(np.int32), split="file", seed=None
        )
        alone = Problem(problem.inputs.take(here), problem.log_views[here], plan, np.ones(len(here)), 7)
        ridge = FoldRidge.build(alone, 0)
        heads = fitted_heads(ridge, ridge.solve(np.array([0.5]), scales).at(0), TARGET)
        expected = heads.predict(alone.inputs.take(plan.val_rows(0)))
        np.testing.assert_allclose(unseen[parts.val_rows(part)], expected, atol=1e-5)


def test_a_row_does_not_predict_itself():
    problem = problem_of()
    before = cross_fitted(problem, 0, 1e-2, {}, TARGET)
    changed = problem.log_views.copy()
    row = PLAN.train_rows(0)[5]
    changed[row] += 10
    after = cross_fitted(Problem(problem.inputs, changed, PLAN, np.ones(60), 7), 0, 1e-2, {}, TARGET)
    same = np.isclose(before, after, atol=1e-4)
    assert same[5]
    assert not same.all()


def test_a_modality_that_one_part_alone_has_cannot_be_learned_without_it():
    present = np.zeros(60, dtype=bool)
    present[2] = True
    assert cross_fitted(problem_of(present), 0, 1.0, {}, TARGET) is None
