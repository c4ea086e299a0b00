"""Who trains and who validates: a plan that is made once, saved and never recomputed."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int32, Int64, Integer, UInt8

from heads.errors import UnfitDataError

UNKNOWN_TIME = int(np.iinfo(np.int64).min)
"""The second of a video whose time is unknown; datetime64 spells NaT so."""

STRATA = 10
"""Most quantile bins of the target that a stratified plan spreads over its folds."""

MOST_ADVISED = 100
"""Most folds that are advised where those asked for cannot be made."""

EXAMPLES = 5
"""Most groups of duplicates that are listed row by row."""


@dataclass(frozen=True, eq=False, kw_only=True)
class FoldPlan:
    """The fold that validates each video; -1 for a video that is never validated and always trains.

    In an `expanding` plan the folds follow each other in time, and a member trains on what came before its own fold.
    Raises UnfitDataError for fewer than two folds, an empty fold, a number below -1, or a fold that nothing trains.
    """

    fold_of: Int32[np.ndarray, " video"]
    split: str
    seed: int | None
    expanding: bool = False

    def __post_init__(self) -> None:
        if self.fold_of.size and self.fold_of.min() < -1:
            raise UnfitDataError(f"a fold is 0, 1, 2, ... or -1 for never validated, given {self.fold_of.min()}")
        if self.n_folds < 2:
            raise UnfitDataError(f"a plan needs at least 2 folds, given {self.n_folds}")
        if (empty := np.flatnonzero(self.sizes == 0)).size:
            raise UnfitDataError(f"every fold must validate a row; of {self.n_folds} folds these are empty: {empty}")
        if self.expanding and self.fold_of.min() >= 0:
            raise UnfitDataError("fold 0 of an expanding plan trains on the videos of fold -1, however there are none")

    @property
    def n_folds(self) -> int:
        """Number of folds, hence of members."""
        return int(self.fold_of.max(initial=-1)) + 1

    @property
    def sizes(self) -> Int64[np.ndarray, " fold"]:
        """Number of rows that each fold validates."""
        return np.bincount(self.fold_of[self.fold_of >= 0], minlength=self.n_folds)

    def train_rows(self, fold: int) -> Int64[np.ndarray, " row"]:
        """Rows that train the member of `fold`: all others, or those of lower folds alone if the plan is expanding.

        Rows that are never validated are always among them.
        """
        own = self._checked(fold)
        return np.flatnonzero(self.fold_of < own if self.expanding else self.fold_of != own)

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
        digest = hashlib.sha256(b"expanding;" if self.expanding else b"")
        for video_id, fold in zip(ids, self.fold_of.tolist(), strict=True):
            encoded = video_id.encode("utf-8", "surrogatepass")
            # The length stands first, so no id can be mistaken for the end of another.
            digest.update(b"%d:%b%d;" % (len(encoded), encoded, fold))
        return digest.hexdigest()

    def _checked(self, fold: int) -> int:
        if not 0 <= fold < self.n_folds:
            raise ValueError(f"the plan has folds 0 to {self.n_folds - 1}, asked for {fold}")
        return fold


@dataclass(frozen=True, kw_only=True)
class Duplicates:
    """Groups of equal videos that a plan tears apart: how many, and the rows of the first of them."""

    n_groups: int
    first: tuple[tuple[int, ...], ...]


def kfold(n_videos: int, n_folds: int, seed: int) -> FoldPlan:
    """The folds of scikit-learn's `KFold(n_folds, shuffle=True, random_state=seed)` over the rows in file order.

    Raises UnfitDataError for fewer than two folds or fewer rows than folds.
    """
    from sklearn.model_selection import KFold  # noqa: PLC0415  takes a second, which reading a saved plan can spare

    _check_n_folds(n_folds, n_videos)
    splits = KFold(n_folds, shuffle=True, random_state=seed).split(np.empty(n_videos))
    return FoldPlan(fold_of=_fold_of(splits, n_videos), split="kfold", seed=seed)


def stratified(log_views: Float64[np.ndarray, " video"], n_folds: int, seed: int) -> FoldPlan:
    """Random folds that all have the same spread of the target: scikit-learn's `StratifiedKFold` over quantile bins.

    There are `STRATA` bins, fewer where a bin would have fewer rows than there are folds. Bins count ranks, so any
    increasing function of the views gives the same folds; rows with the same target are ranked in file order.
    Raises UnfitDataError as `kfold` does, and for a target that is not finite.

    >>> plan = stratified(np.array([1.0, 9.0, 8.0, 2.0]), n_folds=2, seed=0)
    >>> sorted(plan.fold_of[[0, 3]].tolist()), sorted(plan.fold_of[[1, 2]].tolist())
    ([0, 1], [0, 1])
    """
    from sklearn.model_selection import StratifiedKFold  # noqa: PLC0415  as in `kfold`

    n_videos = len(log_views)
    _check_n_folds(n_folds, n_videos)
    if not np.isfinite(log_views).all():
        raise UnfitDataError("a stratified plan needs finite targets: drop the other rows, or use --split kfold")
    bin_of = np.empty(n_videos, dtype=np.int64)
    bin_of[np.argsort(log_views, kind="stable")] = np.arange(n_videos) * min(STRATA, n_videos // n_folds) // n_videos
    splits = StratifiedKFold(n_folds, shuffle=True, random_state=seed).split(bin_of, bin_of)
    return FoldPlan(fold_of=_fold_of(splits, n_videos), split="stratified", seed=seed)


def group(groups: Sequence[str], ids: Sequence[str], n_folds: int, seed: int) -> FoldPlan:
    """Each group, such as a channel, in one fold as a whole; a video without one ("") is a group of its own.

    The fold is a hash of seed and group, so it stays when rows are added, removed or reordered; folds are therefore
    only roughly of one size, the less so the larger the groups.
    Raises UnfitDataError as `kfold` does, and where no group falls into a fold.

    >>> plan = group(["cats", "dogs", "cats"], ["a", "b", "c"], n_folds=2, seed=3)
    >>> [plan.val_rows(fold).tolist() for fold in range(2)]
    [[0, 2], [1]]
    """
    if len(groups) != len(ids):
        raise ValueError(f"a plan by group needs one id per video, given {len(groups)} groups and {len(ids)} ids")
    _check_n_folds(n_folds, len(ids))
    keys = [f"group {name}" if name else f"video {video_id}" for name, video_id in zip(groups, ids, strict=True)]
    n_rows = Counter(keys)
    hash_of = {key: _hashed(f"{seed} {key}") for key in n_rows}
    if empty := sorted(set(range(n_folds)) - {number % n_folds for number in hash_of.values()}):
        raise UnfitDataError(
            f"every fold must validate a group, but of {n_folds} folds these would be empty: {empty}; the videos form "
            f"{len(n_rows)} groups, the largest with {max(n_rows.values())} of {len(ids)} rows: "
            f"{_way_out([*hash_of.values()], n_folds)}"
        )
    fold_of = np.array([hash_of[key] % n_folds for key in keys], dtype=np.int32)
    return FoldPlan(fold_of=fold_of, split="group", seed=seed)


def time(published_seconds: Int64[np.ndarray, " video"], n_folds: int) -> FoldPlan:
    """An expanding window: each fold validates a block of time and its member trains on all that is older.

    The oldest block only trains, the newest is the last fold. Blocks are of equal size, the remainder in the oldest,
    as scikit-learn's `TimeSeriesSplit(n_folds)` makes them of rows in order; but rows of one second stay together.
    Rows at `UNKNOWN_TIME` train every member, although they may lie in its future.
    Raises UnfitDataError for fewer than two folds, or no more different times than folds.

    >>> time(np.array([30, 10, UNKNOWN_TIME, 20, 20]), n_folds=2).fold_of
    array([ 1, -1, -1,  0,  0], dtype=int32)
    """
    known = published_seconds != UNKNOWN_TIME
    moments, moment_of, n_rows = np.unique(published_seconds[known], return_inverse=True, return_counts=True)
    if not 2 <= n_folds < len(moments):
        raise UnfitDataError(
            f"--folds must be at least 2 and less than the number of different times, {len(moments)}; given {n_folds}: "
            "use another number, or --split kfold"
        )
    fold_of = np.full(len(published_seconds), -1, dtype=np.int32)
    fold_of[known] = _equal_blocks(n_rows, n_folds + 1)[moment_of] - 1
    return FoldPlan(fold_of=fold_of, split="time", seed=None, expanding=True)


def from_table(
    fold_of: Integer[np.ndarray, " video"], *, split: str = "file", seed: int | None = None, expanding: bool = False
) -> FoldPlan:
    """The plan that a table's column of folds gives, such as one that was saved; -1: never validated.

    Raises UnfitDataError unless the folds are 0, 1, 2, ... without a gap, at least two of them.

    >>> from_table(np.array([1, 0, -1])).val_rows(0)
    array([1])
    """
    folds = np.unique(fold_of[fold_of != -1])
    if not np.array_equal(folds, np.arange(len(folds))):
        raise UnfitDataError(f"a column of folds must hold 0, 1, 2, ... without a gap, or -1: renumber {folds}")
    return FoldPlan(fold_of=fold_of.astype(np.int32), split=split, seed=seed, expanding=expanding)


def duplicates_across_folds(
    digests: UInt8[np.ndarray, "video 16"], plan: FoldPlan, ignore: Bool[np.ndarray, " video"] | None = None
) -> Duplicates:
    """Groups of videos with equal digests, of which some train a member that others validate.

    Rows whose digest is all zeros do not count, nor do those to `ignore` (such as empty titles). Of the groups, the
    `EXAMPLES` that begin first are listed. Raises ValueError for arrays of different length.

    >>> digests = np.repeat(np.array([[7], [8], [7]], dtype=np.uint8), 16, axis=1)
    >>> duplicates_across_folds(digests, from_table(np.array([0, 0, 1])))
    Duplicates(n_groups=1, first=((0, 2),))
    """
    if len(digests) != len(plan.fold_of):
        raise ValueError(f"a plan for {len(plan.fold_of)} videos needs as many digests, given {len(digests)}")
    rows = np.flatnonzero(digests.any(axis=1) if ignore is None else digests.any(axis=1) & ~ignore)
    _, begins, group_of = np.unique(digests[rows].view("V16")[:, 0], return_index=True, return_inverse=True)
    # If a group is in several folds, those of its rows that are in lower ones train the member of its highest fold,
    # in an expanding plan too. If it is in one fold, none of its rows trains that fold's member.
    fold_of = plan.fold_of[rows]
    highest, lowest = fold_of[begins], fold_of[begins]
    np.maximum.at(highest, group_of, fold_of)
    np.minimum.at(lowest, group_of, fold_of)
    torn = np.flatnonzero(lowest < highest)
    first = torn[np.argsort(begins[torn])][:EXAMPLES]
    return Duplicates(n_groups=len(torn), first=tuple(tuple(rows[group_of == index].tolist()) for index in first))


def _check_n_folds(n_folds: int, n_videos: int) -> None:
    if not 2 <= n_folds <= n_videos:
        raise UnfitDataError(f"--folds must lie between 2 and the number of rows, {n_videos}; given {n_folds}")


def _fold_of(splits: Iterable[tuple[np.ndarray, np.ndarray]], n_videos: int) -> Int32[np.ndarray, " video"]:
    fold_of = np.empty(n_videos, dtype=np.int32)
    for fold, (_, val_rows) in enumerate(splits):
        fold_of[val_rows] = fold
    return fold_of


def _hashed(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


def _way_out(hashes: Sequence[int], n_folds: int) -> str:
    """What to do where `n_folds` leave one empty; the number of folds that is named fits this seed."""
    fewer = range(min(n_folds - 1, len(hashes), MOST_ADVISED), 1, -1)
    fitting = next((n for n in fewer if len({number % n for number in hashes}) == n), None)
    too_many = n_folds > len(hashes)
    ways = [f"--folds {fitting}"] if fitting else []
    ways += ["--split kfold"] if too_many else ["another --seed", "--split kfold"]
    limit = f"at most {len(hashes)} folds can hold one each; " if too_many else ""
    return f"{limit}use {' or '.join(filter(None, (', '.join(ways[:-1]), ways[-1])))}"


def _equal_blocks(n_rows: Int64[np.ndarray, " moment"], n_blocks: int) -> Int64[np.ndarray, " moment"]:
    """The block of each moment: contiguous, none empty, of equally many rows as far as the moments allow."""
    later = np.arange(1, n_blocks)  # block 0 begins at moment 0
    size = n_rows.sum() // n_blocks
    begins = np.searchsorted(np.cumsum(n_rows) - n_rows, n_rows.sum() - (n_blocks - later) * size)
    begins = np.maximum.accumulate(begins - later) + later  # at least one moment after the block before ...
    begins = np.minimum(begins, len(n_rows) - n_blocks + later)  # ... and early enough for those that follow
    return np.searchsorted(begins, np.arange(len(n_rows)), side="right")
