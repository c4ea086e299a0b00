import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import KFold

from heads.errors import UnfitDataError
from heads.folds import FoldPlan, kfold


def plan_of(*folds: int) -> FoldPlan:
    return FoldPlan(fold_of=np.array(folds, dtype=np.int32), split="file", seed=None)


@given(st.integers(2, 60), st.integers(2, 7), st.integers(0, 99))
@settings(max_examples=25)
def test_the_folds_are_those_of_scikit_learn(n_videos, n_folds, seed):
    if n_folds > n_videos:
        return
    plan = kfold(n_videos, n_folds, seed)
    splits = KFold(n_folds, shuffle=True, random_state=seed).split(np.zeros(n_videos))
    for fold, (train_rows, val_rows) in enumerate(splits):
        np.testing.assert_array_equal(plan.train_rows(fold), train_rows)
        np.testing.assert_array_equal(plan.val_rows(fold), val_rows)


def test_a_row_that_is_never_validated_trains_every_member():
    plan = plan_of(0, -1, 1, 0)
    assert [plan.train_rows(fold).tolist() for fold in range(2)] == [[1, 2], [0, 1, 3]]
    assert [plan.val_rows(fold).tolist() for fold in range(2)] == [[0, 3], [2]]
    assert plan.sizes.tolist() == [2, 1]


@pytest.mark.parametrize("folds", [(), (-1, -1), (0, 0), (0, 2), (0, 1, -2)])
def test_a_plan_with_too_few_empty_or_unknown_folds_is_refused(folds):
    with pytest.raises(UnfitDataError, match="fold"):
        plan_of(*folds)


@pytest.mark.parametrize(("n_videos", "n_folds"), [(10, 1), (2, 3), (0, 2)])
def test_folds_need_at_least_one_row_each(n_videos, n_folds):
    with pytest.raises(UnfitDataError, match="--folds must lie between 2 and the number of rows"):
        kfold(n_videos, n_folds, seed=0)


@pytest.mark.parametrize("fold", [-1, 2])
def test_a_fold_that_the_plan_does_not_have_is_refused(fold):
    with pytest.raises(ValueError, match="folds 0 to 1"):
        plan_of(0, 1).val_rows(fold)


def test_the_digest_tells_ids_and_folds_apart():
    digests = {
        plan_of(0, 1).digest(["a", "b"]),
        plan_of(1, 0).digest(["a", "b"]),
        plan_of(0, 1).digest(["b", "a"]),
        plan_of(0, 1).digest(["a0;1:b", "b"]),
        plan_of(0, 1).digest(["\ud800", "b"]),
    }
    assert len(digests) == 5
    assert plan_of(0, 1).digest(["a", "b"]) in digests


def test_a_digest_needs_one_id_per_row():
    with pytest.raises(ValueError, match="as many ids"):
        plan_of(0, 1).digest(["a"])
