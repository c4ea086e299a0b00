"""Conformal intervals: how far the truth lies from a prediction, read off the out-of-fold residuals.

A residual is log views minus the out-of-fold prediction (log units). Sorted, r_(1) <= ... <= r_(n), they give the band
of level 1 - a around a prediction f:

    [f + r_(k),  f + r_(n + 1 - k)],   k = floor((n + 1) a / 2),   so n + 1 - k = ceil((n + 1)(1 - a / 2)).

A new residual that is exchangeable with these n falls into each of the n + 1 gaps between them equally often, hence
into the band with probability 1 - 2k / (n + 1) >= 1 - a. Fewer than 2 / a - 1 rows (19 for 90 %) would need k = 0;
k is then 1: the band reaches from the lowest to the highest residual and promises (n - 1) / (n + 1) only.

The symmetric band is f ± q, with q the residual of rank ceil((n + 1)(1 - a)) by size, clipped to the largest.
(Lei et al., Distribution-free predictive inference for regression, JASA 2018.)

Residuals of several members are exchangeable only nearly, which `coverage` measures; new channels and later dates are
not exchangeable with old ones: calibrate on folds that are split as videos will come.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import floor, isfinite
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int, Int32

from heads.errors import UnfitDataError

LEVELS = (0.5, 0.9)
"""Default levels. The band of 50 % tells more than that of 90 %, which is wide for views."""

MIN_BIN_ROWS = 500
"""Rows that a bin needs for bands of its own, so that 25 lie beyond each end at 90 %; others use the pooled ones."""


@dataclass(frozen=True, kw_only=True)
class Band:
    """The truth lies within the offsets of the prediction with probability `level`; offsets in log units.

    Raises ValueError for a level outside (0, 1) and offsets that are not finite or in the wrong order.
    """

    level: float
    lower_offset: float
    upper_offset: float

    def __post_init__(self) -> None:
        if not 0 < self.level < 1:
            raise ValueError(f"a level must lie between 0 and 1, such as 0.9 for 90 %; given {self.level}")
        if not (isfinite(self.lower_offset) and isfinite(self.upper_offset) and self.lower_offset <= self.upper_offset):
            raise ValueError(f"offsets must be finite and in order, given {self.lower_offset} and {self.upper_offset}")

    def apply(
        self, log_pred: Float64[np.ndarray, " video"]
    ) -> tuple[Float64[np.ndarray, " video"], Float64[np.ndarray, " video"]]:
        """Lower and upper end for each prediction, in log views; `Target.from_log` turns them into views.

        >>> Band(level=0.9, lower_offset=-1.0, upper_offset=2.0).apply(np.array([5.0]))
        (array([4.]), array([7.]))
        """
        return log_pred + self.lower_offset, log_pred + self.upper_offset


@dataclass(frozen=True, kw_only=True)
class Intervals:
    """One band per level, for all videos alike; bins with enough rows may have bands of their own.

    Raises ValueError unless there is a band and every bin has bands of the same levels.
    """

    pooled: tuple[Band, ...]
    by_bin: Mapping[int, tuple[Band, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.pooled or any(_levels(bands) != self.levels for bands in self.by_bin.values()):
            raise ValueError(f"intervals need a level, the same ones in every bin; given {self.pooled}, {self.by_bin}")

    @property
    def levels(self) -> tuple[float, ...]:
        """The levels, in the order of the bands."""
        return _levels(self.pooled)

    def apply(
        self, log_pred: Float64[np.ndarray, " video"], bin_of: Int[np.ndarray, " video"] | None = None
    ) -> tuple[Float64[np.ndarray, "level video"], Float64[np.ndarray, "level video"]]:
        """Lower and upper ends in log views. A bin without bands of its own uses the pooled ones.

        Raises ValueError where bins have bands, but the videos' bins are not given.

        >>> band = Band(level=0.9, lower_offset=-1.0, upper_offset=2.0)
        >>> Intervals(pooled=(band,)).apply(np.array([5.0, 6.0]))
        (array([[4., 5.]]), array([[7., 8.]]))
        """
        if self.by_bin and bin_of is None:
            raise ValueError("these intervals differ by bin: give the bin of every video")
        lower, upper = _ends(self.pooled, log_pred)
        for bin_, bands in self.by_bin.items():
            rows = bin_of == bin_
            lower[:, rows], upper[:, rows] = _ends(bands, log_pred[rows])
        return lower, upper

    def to_dict(self) -> dict[str, Any]:
        """The intervals for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "Intervals":
        """The intervals of `to_dict`, before or after JSON; raises ValueError for other keys."""
        _check_keys(fields, ("pooled", "by_bin"))
        return cls(
            pooled=_bands_from(fields["pooled"]),
            by_bin={int(bin_): _bands_from(bands) for bin_, bands in fields["by_bin"].items()},
        )


@dataclass(frozen=True, kw_only=True)
class Tally:
    """How many rows there were, and the share of them that lay within their bands."""

    rows: int
    share: float


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """Measured coverage of the bands of one level: over all validated rows, in each fold and in each bin.

    `dataclasses.asdict` makes it fit for JSON.
    """

    level: float
    overall: Tally
    by_fold: Mapping[int, Tally]
    by_bin: Mapping[int, Tally]


def calibrate(
    residuals: Float64[np.ndarray, " video"],
    levels: Sequence[float] = LEVELS,
    *,
    symmetric: bool = False,
    bin_of: Int[np.ndarray, " video"] | None = None,
) -> Intervals:
    """Bands from out-of-fold residuals; with `bin_of` also one set for each bin of at least `MIN_BIN_ROWS` rows.

    Bands per bin (Mondrian conformal prediction) promise their level within each such bin, pooled ones only over all
    videos together. Raises UnfitDataError for no residuals and for residuals that are not finite.

    >>> calibrate(np.array([-1.0, 0.0, 4.0]), [0.5]).pooled
    (Band(level=0.5, lower_offset=-1.0, upper_offset=4.0),)
    """
    if not residuals.size or not np.isfinite(residuals).all():
        raise UnfitDataError(f"intervals need finite residuals, given {residuals.size}: leave out rows never validated")
    bins, counts = np.unique([] if bin_of is None else bin_of, return_counts=True)
    return Intervals(
        pooled=_bands(residuals, levels, symmetric=symmetric),
        by_bin={
            int(bin_): _bands(residuals[bin_of == bin_], levels, symmetric=symmetric)
            for bin_ in bins[counts >= MIN_BIN_ROWS]
        },
    )


def coverage(
    residuals: Float64[np.ndarray, " video"],
    fold_of: Int32[np.ndarray, " video"],
    levels: Sequence[float] = LEVELS,
    *,
    symmetric: bool = False,
    bin_of: Int[np.ndarray, " video"] | None = None,
    per_bin: bool = False,
) -> tuple[Coverage, ...]:
    """Honest coverage, one per level: each fold is counted with bands that the other folds' residuals calibrated.

    `bin_of` tells the bins apart in the result; with `per_bin` they are calibrated apart as well. Rows that were never
    validated (fold -1) are left out. The bands alone have not seen the rows they are counted on: the members behind
    the other folds' residuals trained on them. Raises UnfitDataError as `calibrate` does and for fewer than two folds,
    ValueError for `per_bin` without bins.

    >>> coverage(np.array([-1.0, 1.0, 0.0, 2.0]), np.array([0, 0, 1, 1], dtype=np.int32), [0.5])[0].by_fold
    {0: Tally(rows=2, share=0.5), 1: Tally(rows=2, share=0.5)}
    """
    if per_bin and bin_of is None:
        raise ValueError("bands per bin need the bin of every video: give bin_of")
    validated = fold_of >= 0
    seen, folds = residuals[validated], fold_of[validated]
    bins = np.zeros_like(folds) if bin_of is None else bin_of[validated]
    if len(np.unique(folds)) < 2:
        raise UnfitDataError(f"honest coverage needs at least 2 folds, given {len(np.unique(folds))}")
    inside = np.empty((len(levels), len(seen)), dtype=bool)
    for fold in np.unique(folds):
        own = folds == fold
        elsewhere = calibrate(seen[~own], levels, symmetric=symmetric, bin_of=bins[~own] if per_bin else None)
        lower, upper = elsewhere.apply(np.zeros(own.sum()), bins[own])
        inside[:, own] = (lower <= seen[own]) & (seen[own] <= upper)
    by_bin = [{} if bin_of is None else _tally_by(row, bins) for row in inside]
    return tuple(
        Coverage(level=level, overall=_tally(row), by_fold=_tally_by(row, folds), by_bin=tallies)
        for level, row, tallies in zip(levels, inside, by_bin, strict=True)
    )


def _bands(residuals: Float64[np.ndarray, " row"], levels: Sequence[float], *, symmetric: bool) -> tuple[Band, ...]:
    ordered = np.sort(np.abs(residuals) if symmetric else residuals)
    bands = []
    for level in levels:
        outside = 1 - level
        rank = _tail_rank(len(ordered), outside if symmetric else outside / 2)
        upper = float(ordered[-rank])
        lower = -upper if symmetric else float(ordered[rank - 1])
        bands.append(Band(level=level, lower_offset=lower, upper_offset=upper))
    return tuple(bands)


def _tail_rank(n_rows: int, tail: float) -> int:
    # Rounded first: 20 * (1 - 0.9) / 2 is 0.9999999999999998, whose floor would cost a whole rank.
    rank = floor(round((n_rows + 1) * tail, 9))
    return min(max(rank, 1), n_rows)


def _ends(
    bands: Sequence[Band], log_pred: Float64[np.ndarray, " row"]
) -> tuple[Float64[np.ndarray, "level row"], Float64[np.ndarray, "level row"]]:
    lower, upper = zip(*(band.apply(log_pred) for band in bands), strict=True)
    return np.stack(lower), np.stack(upper)


def _tally(inside: Bool[np.ndarray, " row"]) -> Tally:
    return Tally(rows=inside.size, share=float(inside.mean()))


def _tally_by(inside: Bool[np.ndarray, " row"], group_of: Int[np.ndarray, " row"]) -> dict[int, Tally]:
    return {int(group): _tally(inside[group_of == group]) for group in np.unique(group_of)}


def _levels(bands: Sequence[Band]) -> tuple[float, ...]:
    return tuple(band.level for band in bands)


def _bands_from(entries: Sequence[Mapping[str, Any]]) -> tuple[Band, ...]:
    for entry in entries:
        _check_keys(entry, ("level", "lower_offset", "upper_offset"))
    return tuple(Band(**{key: float(number) for key, number in entry.items()}) for entry in entries)


def _check_keys(fields: Mapping[str, Any], known: Sequence[str]) -> None:
    if set(fields) != set(known):
        raise ValueError(f"an entry must have exactly {', '.join(known)}; given {', '.join(map(str, fields))}")
