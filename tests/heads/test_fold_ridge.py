"""What follows from sums equals what looking at every row gives."""

import numpy as np
import pytest

from heads.fold_ridge import FoldRidge
from heads.folds import FoldPlan
from heads.ridge import Problem

PLAN = FoldPlan(
    fold_of=np.random.default_rng(0).permutation(np.repeat(np.arange(-1, 2, dtype=np.int32), [40, 60, 140])),
    split="file",
    seed=None,
)
PENALTIES = np.logspace(-2, 4, 5)


@pytest.fixture(scope="module")
def problem(gappy_world):
    weights = np.random.default_rng(2).uniform(0.2, 3.0, len(PLAN.fold_of))
    return Problem(gappy_world.inputs, gappy_world.log_views, PLAN, weights, seed=1)


def columns_of_all(problem, ridge):
    """The fold's dense columns of every video, centred where present, slowly."""
    columns = problem.columns(slice(None), problem.inputs).astype(np.float64)[:, problem.places(ridge.fold)]
    for modality, own in ridge.slices.items():
        columns[:, own] -= problem.inputs.block(modality).present[:, None] * ridge.means[own]
    return columns[:, : len(ridge.means)]


@pytest.mark.parametrize("fold", [0, 1])
def test_the_errors_of_every_penalty_are_those_of_its_predictions(problem, fold):
    ridge = FoldRidge.build(problem, fold)
    solutions = ridge.solve(PENALTIES, {"image": 3.0})
    z = columns_of_all(problem, ridge) @ solutions.dense
    errors = ridge.standardisation.mean + ridge.standardisation.sd * z - problem.log_views[:, None]
    rows = PLAN.val_rows(fold)
    expected = problem.weights[rows] @ errors[rows] ** 2
    np.testing.assert_allclose(ridge.squared_errors(solutions), expected, rtol=1e-5)


@pytest.mark.parametrize("fold", [0, 1])
def test_normal_equations_are_those_of_the_centred_training_rows(problem, fold):
    ridge, rows = FoldRidge.build(problem, fold), PLAN.train_rows(fold)
    columns, z = columns_of_all(problem, ridge)[rows], ridge.standardisation.apply(problem.log_views)[rows]
    weighted = columns * problem.weights[rows, None]
    np.testing.assert_allclose(ridge.gram, weighted.T @ columns, atol=2e-5)
    np.testing.assert_allclose(ridge.rhs, weighted.T @ z, atol=2e-5)
    np.testing.assert_allclose(weighted.sum(axis=0), 0, atol=2e-5)


def test_the_spread_of_an_embedding_is_that_of_what_it_adds_to_the_training_rows(problem):
    ridge, rows = FoldRidge.build(problem, 0), PLAN.train_rows(0)
    solution = ridge.solve(PENALTIES[:1], {})
    for modality in ("image", "text"):
        own = ridge.slices[modality]
        added = columns_of_all(problem, ridge)[rows][:, own] @ solution.dense[own, 0]
        expected = np.sqrt(np.average(added**2, weights=problem.weights[rows]))
        assert ridge.spread(modality, solution) == pytest.approx(expected, rel=1e-5)


def test_a_modality_that_the_ridge_lacks_is_told(problem):
    ridge = FoldRidge.build(problem, 0)
    with pytest.raises(ValueError, match="no columns of smell"):
        ridge.of_modality("smell", ridge.solve(PENALTIES[:1], {}))
