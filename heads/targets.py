"""From views to the scale on which heads learn, and back."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float64, Num

from heads.errors import UnfitDataError

MAX_VIEWS = 2.0**53
"""Largest prediction that is given back: beyond it a float64 cannot count single views, and soon it overflows."""


@dataclass(frozen=True)
class Target:
    """The target and its log scale, the natural logarithm of 1 + views (`none`: the target as it is)."""

    kind: Literal["log1p", "none"] = "log1p"

    def __post_init__(self) -> None:
        if self.kind not in ("log1p", "none"):
            raise ValueError(f"a target is log1p or none, given {self.kind}")

    def to_log(self, views: Num[np.ndarray, " video"]) -> Float64[np.ndarray, " video"]:
        """Log views; raises UnfitDataError where a value is not finite or, for log1p, negative.

        >>> Target("log1p").to_log(np.array([0, 99])).round(3)
        array([0.   , 4.605])
        """
        lowest = 0.0 if self.kind == "log1p" else -np.inf
        unusable = ~(np.isfinite(views) & (views >= lowest))
        if unusable.any():
            row = int(unusable.argmax())
            rule = "finite and >= 0 (or use --target none)" if self.kind == "log1p" else "finite"
            raise UnfitDataError(
                f"a target must be {rule}: {int(unusable.sum())} are not, the first is {views[row]} in row {row}"
            )
        log_views: Float64[np.ndarray, " video"] = views.astype(np.float64)
        return np.log1p(log_views) if self.kind == "log1p" else log_views

    def from_log(self, log_views: Float64[np.ndarray, " video"]) -> Float64[np.ndarray, " video"]:
        """Views; for log1p within 0 and `MAX_VIEWS`, so nothing overflows.

        >>> Target("log1p").from_log(np.array([-1.0, 0.0, np.log(100), 1e6]))
        array([0.00000000e+00, 0.00000000e+00, 9.90000000e+01, 9.00719925e+15])
        """
        if self.kind == "none":
            return log_views.copy()
        views: Float64[np.ndarray, " video"] = np.expm1(np.minimum(log_views, np.log1p(MAX_VIEWS)))
        return views.clip(0.0, MAX_VIEWS)


@dataclass(frozen=True)
class Standardisation:
    """The affine map between log views and z, which has mean 0 and standard deviation 1 on the training rows."""

    mean: float
    sd: float

    @classmethod
    def fit(
        cls, log_views: Float64[np.ndarray, " video"], weights: Float64[np.ndarray, " video"] | None = None
    ) -> "Standardisation":
        """(Weighted) mean and deviation of the training rows; raises UnfitDataError where they teach nothing.

        >>> Standardisation.fit(np.array([1.0, 3.0]))
        Standardisation(mean=2.0, sd=1.0)
        """
        if not log_views.size or not np.isfinite(log_views).all():
            raise UnfitDataError(f"training rows need finite targets, given {log_views.size} rows: drop the others")
        if log_views.min() == log_views.max():
            raise UnfitDataError(
                f"constant target: all {log_views.size} training rows have {log_views[0]:g} on the log scale, "
                "so there is nothing to learn; check the target column"
            )
        mean = float(np.average(log_views, weights=weights))
        return cls(mean=mean, sd=float(np.sqrt(np.average((log_views - mean) ** 2, weights=weights))))

    def apply(self, log_views: Float64[np.ndarray, " video"]) -> Float64[np.ndarray, " video"]:
        """Log views as z."""
        return (log_views - self.mean) / self.sd

    def undo(self, z: Float64[np.ndarray, " video"]) -> Float64[np.ndarray, " video"]:
        """Log views of z."""
        return self.mean + self.sd * z
