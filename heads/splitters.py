"""Fold plans as cross-validators of scikit-learn, for its `cross_val_score` and whatever else takes one.

They yield the rows that the plans in `heads.folds` hold, which is imported without scikit-learn. The plan of `kfold`
is scikit-learn's own `KFold(n_folds, shuffle=True, random_state=seed)`.
"""

from abc import abstractmethod
from collections.abc import Iterator
from numbers import Integral
from typing import Any

import numpy as np
from jaxtyping import Int64
from sklearn.model_selection import BaseCrossValidator
from sklearn.utils import column_or_1d, indexable

from heads import folds
from heads.folds import FoldPlan

Split = tuple[Int64[np.ndarray, " train"], Int64[np.ndarray, " val"]]


class _Planned(BaseCrossValidator):  # type: ignore[misc]  # scikit-learn ships no types
    """Splits by a fold plan; X and y go by scikit-learn's names."""

    n_splits: int

    def split(self, X: Any, y: Any = None, groups: Any = None) -> Iterator[Split]:  # noqa: N803
        """Yield the rows that train and the rows that are validated, fold by fold.

        Raises ValueError where the arguments differ in length, and what the plan raises.
        """
        indexable(X, y, groups)
        plan = self._plan(np.shape(X)[0], y, groups)
        for fold in range(plan.n_folds):
            yield plan.train_rows(fold), plan.val_rows(fold)

    def get_n_splits(self, X: Any = None, y: Any = None, groups: Any = None) -> int:  # noqa: ARG002, N803
        """Return the number of folds."""
        return self.n_splits

    @abstractmethod
    def _plan(self, n_rows: int, y: Any, groups: Any) -> FoldPlan: ...


class PlannedFolds(_Planned):
    """The splits of a plan that exists already, such as the one saved with a run.

    Raises ValueError for data with another number of rows.

    >>> plan = folds.from_table(np.array([0, 1, -1]))
    >>> [(train.tolist(), val.tolist()) for train, val in PlannedFolds(plan).split(np.zeros(3))]
    [([1, 2], [0]), ([0, 2], [1])]
    """

    def __init__(self, plan: FoldPlan) -> None:
        self.plan = plan
        self.n_splits = plan.n_folds

    def _plan(self, n_rows: int, y: Any, groups: Any) -> FoldPlan:  # noqa: ARG002
        if n_rows != len(self.plan.fold_of):
            raise ValueError(f"the plan is for {len(self.plan.fold_of)} rows, given {n_rows}")
        return self.plan


class StratifiedTargetKFold(_Planned):
    """`heads.folds.stratified` over y, a number per row; views and log views give the same splits.

    >>> splits = StratifiedTargetKFold(2, seed=0).split(np.zeros(4), [1, 9, 8, 2])
    >>> [len({0, 3}.intersection(val.tolist())) for _, val in splits]
    [1, 1]
    """

    def __init__(self, n_splits: int, *, seed: int) -> None:
        self.n_splits = n_splits
        self.seed = seed

    def _plan(self, n_rows: int, y: Any, groups: Any) -> FoldPlan:  # noqa: ARG002
        return folds.stratified(column_or_1d(y, dtype=np.float64), self.n_splits, self.seed)


class HashedGroupKFold(_Planned):
    """`heads.folds.group` over groups, a text or an integer per row.

    A row whose group is "" is a group of its own. Its id is the row's number, as scikit-learn knows no ids: only rows
    that are appended leave its fold as it is. Raises ValueError for any other kind of group, such as None or NaN.

    >>> splits = HashedGroupKFold(2, seed=3).split(np.zeros(3), groups=["cats", "dogs", "cats"])
    >>> [val.tolist() for _, val in splits]
    [[0, 2], [1]]
    """

    __metadata_request__split = {"groups": True}  # noqa: RUF012  how scikit-learn's metadata routing learns of groups

    def __init__(self, n_splits: int, *, seed: int) -> None:
        self.n_splits = n_splits
        self.seed = seed

    def _plan(self, n_rows: int, y: Any, groups: Any) -> FoldPlan:  # noqa: ARG002
        return folds.group(_names(groups), [str(row) for row in range(n_rows)], self.n_splits, self.seed)


class ExpandingTimeSplit(_Planned):
    """`heads.folds.time` over groups, which are times: datetime64, or seconds with `UNKNOWN_TIME` where unknown.

    The rows may be in any order. Raises ValueError for times of another kind.

    >>> splits = ExpandingTimeSplit(2).split(np.zeros(4), groups=[30, 10, 20, 40])
    >>> [(train.tolist(), val.tolist()) for train, val in splits]
    [([1, 2], [0]), ([0, 1, 2], [3])]
    """

    __metadata_request__split = {"groups": True}  # noqa: RUF012  as in HashedGroupKFold

    def __init__(self, n_splits: int) -> None:
        self.n_splits = n_splits

    def _plan(self, n_rows: int, y: Any, groups: Any) -> FoldPlan:  # noqa: ARG002
        return folds.time(_seconds(groups), self.n_splits)


def _names(groups: Any) -> list[str]:
    names = [None] if groups is None else list(groups)
    if strange := [name for name in names if not isinstance(name, str | Integral)]:
        raise ValueError(f"a group must be a text ('' where unknown) or an integer, given {strange[0]!r}")
    return [str(name) for name in names]


def _seconds(times: Any) -> Int64[np.ndarray, " video"]:
    moments = np.asarray(times)
    if moments.dtype.kind == "M":
        return moments.astype("datetime64[s]").astype(np.int64)
    if moments.dtype.kind != "i":
        raise ValueError(f"groups must be times, as datetime64 or integer seconds, given {moments.dtype}")
    return moments.astype(np.int64)
