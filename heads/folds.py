"""Who trains and who validates: a plan that is made once, saved and never recomputed."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int32, Int64

from heads.errors import UnfitDataError


@dataclass(frozen=True, eq=False, kw_only=True)
class FoldPlan:
    """The fold that validates each video; -1 for a video that is never validated and always trains.

    Raises UnfitDataError for fewer than two folds, an empty fold, or a number below -1.
    """

    fold_of: Int32[np.ndarray, " video"]
    split: str
    seed: int | None

    def __post_init__(self) -> None:
        if self.fold_of.size and self.fold_of.min() < -1:
            raise UnfitDataError(f"a fold is 0, 1, 2, ... or -1 for never validated, given {self.fold_of.min()}")
        if self.n_folds < 2:
            raise UnfitDataError(f"a plan needs at least 2 folds, given {self.n_folds}")
        if (empty := np.flatnonzero(self.sizes == 0)).size:
            raise UnfitDataError(f"every fold must validate a row; of {self.n_folds} folds these are empty: {empty}")

    @property
    def n_folds(self) -> int:
        """Number of folds, hence of members."""
        return int(self.fold_of.max(initial=-1)) + 1

    @property
    def sizes(self) -> Int64[np.ndarray, " fold"]:
        """Number of rows that each fold validates."""
        return np.bincount(self.fold_of[self.fold_of >= 0], minlength=self.n_folds)

    def train_rows(self, fold: int) -> Int64[np.ndarray, " row"]:
        """Rows that train the member of `fold`: all others, those that are never validated among them."""
        return np.flatnonzero(self.fold_of != self._checked(fold))

    def val_rows(self, fold: int) -> Int64[np.ndarray, " row"]:
        """Rows that `fold` validates."""
        return np.flatnonzero(self.fold_of == self._checked(fold))

    def digest(self, ids: Sequence[str]) -> str:
        """SHA-256 over every id and its fold, in row order: equal digests mean the same plan for the same videos.

        >>> plan = FoldPlan(fold_of=np.array([0, 1], dtype=np.int32), split="file", seed=None)
        >>> plan.digest(["a", "b"]) == hashlib.sha256(b"1:a0;1:b1;").hexdigest()
        True
        """
        if len(ids) != self.fold_of.size:
            raise ValueError(f"a plan for {self.fold_of.size} videos needs as many ids, given {len(ids)}")
        digest = hashlib.sha256()
        for video_id, fold in zip(ids, self.fold_of.tolist(), strict=True):
            encoded = video_id.encode("utf-8", "surrogatepass")
            # The length stands first, so no id can be mistaken for the end of another.
            digest.update(b"%d:%b%d;" % (len(encoded), encoded, fold))
        return digest.hexdigest()

    def _checked(self, fold: int) -> int:
        if not 0 <= fold < self.n_folds:
            raise ValueError(f"the plan has folds 0 to {self.n_folds - 1}, asked for {fold}")
        return fold


def kfold(n_videos: int, n_folds: int, seed: int) -> FoldPlan:
    """The folds of scikit-learn's `KFold(n_folds, shuffle=True, random_state=seed)` over the rows in file order.

    Raises UnfitDataError for fewer than two folds or fewer rows than folds.
    """
    from sklearn.model_selection import KFold  # noqa: PLC0415  takes a second, which reading a saved plan can spare

    if not 2 <= n_folds <= n_videos:
        raise UnfitDataError(f"--folds must lie between 2 and the number of rows, {n_videos}; given {n_folds}")
    fold_of = np.empty(n_videos, dtype=np.int32)
    splitter = KFold(n_folds, shuffle=True, random_state=seed)
    for fold, (_, val_rows) in enumerate(splitter.split(fold_of)):
        fold_of[val_rows] = fold
    return FoldPlan(fold_of=fold_of, split="kfold", seed=seed)
