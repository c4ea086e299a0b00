import numpy as np
import pandas as pd
import pytest
import sklearn
from scipy import sparse
from sklearn.base import clone
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV, cross_val_predict, cross_val_score

from heads import folds
from heads.errors import UnfitDataError
from heads.folds import UNKNOWN_TIME, FoldPlan
from heads.splitters import ExpandingTimeSplit, HashedGroupKFold, PlannedFolds, StratifiedTargetKFold

N_VIDEOS = 120
RNG = np.random.default_rng(5)
X = RNG.normal(size=(N_VIDEOS, 4))
Y = 9 + X @ np.array([1.0, 0.5, 0.0, -1.0]) + 0.1 * RNG.normal(size=N_VIDEOS)
CHANNELS = [f"channel {index}" if index else "" for index in RNG.integers(0, 25, size=N_VIDEOS)]
SECONDS = np.where(RNG.random(N_VIDEOS) < 0.1, UNKNOWN_TIME, RNG.integers(0, 10**9, size=N_VIDEOS))

CASES = {
    "stratified": (StratifiedTargetKFold(3, seed=1), None, folds.stratified(Y, 3, 1)),
    "group": (HashedGroupKFold(3, seed=1), CHANNELS, folds.group(CHANNELS, [str(i) for i in range(N_VIDEOS)], 3, 1)),
    "time": (ExpandingTimeSplit(4), SECONDS, folds.time(SECONDS, 4)),
    "planned": (PlannedFolds(folds.kfold(N_VIDEOS, 5, 1)), None, folds.kfold(N_VIDEOS, 5, 1)),
}
every_splitter = pytest.mark.parametrize(("splitter", "groups", "plan"), CASES.values(), ids=CASES)


def slow_scores(plan: FoldPlan) -> list[float]:
    scores = []
    for fold in range(plan.n_folds):
        train, val = plan.train_rows(fold), plan.val_rows(fold)
        scores.append(Ridge().fit(X[train], Y[train]).score(X[val], Y[val]))
    return scores


@every_splitter
def test_a_splitter_yields_the_rows_of_the_plan(splitter, groups, plan):
    splits = list(splitter.split(X, Y, groups))
    assert len(splits) == splitter.get_n_splits(X, Y, groups) == plan.n_folds
    for fold, (train_rows, val_rows) in enumerate(splits):
        np.testing.assert_array_equal(train_rows, plan.train_rows(fold))
        np.testing.assert_array_equal(val_rows, plan.val_rows(fold))


@every_splitter
def test_a_splitter_plugs_into_cross_val_score(splitter, groups, plan):
    scores = cross_val_score(Ridge(), X, Y, cv=splitter, groups=groups)
    np.testing.assert_allclose(scores, slow_scores(plan))


@every_splitter
def test_a_splitter_plugs_into_a_grid_search(splitter, groups, plan):
    search = GridSearchCV(Ridge(), {"alpha": [1.0, 1e6]}, cv=splitter).fit(X, Y, groups=groups)
    assert search.best_params_ == {"alpha": 1.0}
    assert search.best_score_ == pytest.approx(np.mean(slow_scores(plan)))
    assert search.n_splits_ == plan.n_folds
    assert clone(search).get_params()["cv"].get_n_splits() == plan.n_folds


@pytest.mark.parametrize("kind", ["group", "time"])
def test_groups_reach_a_splitter_by_metadata_routing_too(kind):
    splitter, groups, plan = CASES[kind]
    with sklearn.config_context(enable_metadata_routing=True):
        scores = cross_val_score(Ridge(), X, Y, cv=splitter, params={"groups": groups})
    np.testing.assert_allclose(scores, slow_scores(plan))


def test_out_of_fold_predictions_come_from_the_member_that_did_not_train_on_the_row():
    splitter, groups, plan = CASES["group"]
    predicted = cross_val_predict(Ridge(), X, Y, cv=splitter, groups=groups)
    expected = np.empty(N_VIDEOS)
    for fold in range(plan.n_folds):
        train, val = plan.train_rows(fold), plan.val_rows(fold)
        expected[val] = Ridge().fit(X[train], Y[train]).predict(X[val])
    np.testing.assert_allclose(predicted, expected)


@pytest.mark.parametrize("rows", [X.tolist(), pd.DataFrame(X), sparse.csr_array(X), CHANNELS], ids=type)
def test_rows_may_be_of_any_kind_that_scikit_learn_takes(rows):
    (_, val_rows), *_ = StratifiedTargetKFold(3, seed=1).split(rows, pd.Series(Y))
    np.testing.assert_array_equal(val_rows, CASES["stratified"][2].val_rows(0))


@pytest.mark.parametrize("groups", [np.array([1, 2, 1, 3, 4, 5]), pd.Series(["1", "2", "1", "3", "4", "5"])], ids=type)
def test_groups_may_be_integers_or_texts(groups):
    fold_of = folds.group(["1", "2", "1", "3", "4", "5"], ["", "", "", "", "", ""], 2, seed=0)
    for fold, (_, val_rows) in enumerate(HashedGroupKFold(2, seed=0).split(groups, groups=groups)):
        np.testing.assert_array_equal(val_rows, fold_of.val_rows(fold))


@pytest.mark.parametrize("unit", ["s", "ns"])
def test_times_may_be_datetimes(unit):
    published = pd.Series(SECONDS.astype("datetime64[s]").astype(f"datetime64[{unit}]"))
    assert published.isna().any()
    for fold, (train_rows, _) in enumerate(ExpandingTimeSplit(4).split(X, groups=published)):
        np.testing.assert_array_equal(train_rows, CASES["time"][2].train_rows(fold))


@pytest.mark.parametrize("groups", [None, ["a", None, "b"], ["a", float("nan"), "b"]], ids=str)
def test_groups_of_another_kind_are_refused(groups):
    with pytest.raises(
        ValueError, match=r"a group must be a text \('' where unknown\) or an integer, given (None|nan)"
    ):
        next(HashedGroupKFold(2, seed=0).split(np.zeros(3), groups=groups))


@pytest.mark.parametrize("groups", [None, [1.5, 2.5, 3.5], ["2024-01-01", "2024-01-02", "2024-01-03"]], ids=str)
def test_times_of_another_kind_are_refused(groups):
    with pytest.raises(ValueError, match="groups must be times, as datetime64 or integer seconds"):
        next(ExpandingTimeSplit(2).split(np.zeros(3), groups=groups))


def test_rows_that_do_not_fit_the_plan_are_refused():
    with pytest.raises(ValueError, match="the plan is for 120 rows, given 3"):
        next(CASES["planned"][0].split(np.zeros(3)))
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        next(StratifiedTargetKFold(2, seed=0).split(np.zeros(3), [1.0, 2.0]))
    with pytest.raises(ValueError, match="1d array"):
        next(StratifiedTargetKFold(2, seed=0).split(np.zeros(3)))
    with pytest.raises(UnfitDataError, match="--folds must lie between 2 and the number of rows"):
        next(StratifiedTargetKFold(4, seed=0).split(np.zeros(3), [1.0, 2.0, 3.0]))
