"""How sure a difference between two models is: the bootstrap over the rows that both were scored on.

Both models are scored on the same rows, so only the differences of their errors count, row by row: what makes a row
hard for both cancels. Rows of one cluster (the videos of one channel) are not independent; drawing whole clusters
instead of rows says what would happen with other channels. (Efron and Tibshirani, An Introduction to the Bootstrap,
1993, chapters 8 and 13.) The trained members stay as they are: what another seed would change is not in the interval.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int

from heads.errors import UnfitDataError

RESAMPLES = 2000
LEVEL = 0.95
SEED = 20_260_101
"""Fixed, so that the same two runs always give the same interval."""


@dataclass(frozen=True, kw_only=True)
class MeanInterval:
    """A mean, and the percentile interval of its bootstrap; `clusters` were drawn, with their rows."""

    mean: float
    lower: float
    upper: float
    clusters: int

    @property
    def sign(self) -> int:
        """1 or -1 where the whole interval lies on one side of 0, else 0."""
        return int(self.lower > 0) - int(self.upper < 0)


def mean_interval(
    values: Float64[np.ndarray, " row"], cluster_of: Int[np.ndarray, " row"] | None = None
) -> MeanInterval:
    """Bootstrap interval of a mean over rows, which are drawn one by one or as whole clusters.

    Raises UnfitDataError for fewer than two rows or clusters, and for values that are not finite.

    >>> mean_interval(np.array([2.0, 2.0, 2.0]))
    MeanInterval(mean=2.0, lower=2.0, upper=2.0, clusters=3)
    """
    if not np.isfinite(values).all():
        raise UnfitDataError("an interval needs finite values: leave out rows that were never validated")
    sums, sizes = _by_cluster(values, cluster_of)
    n_clusters = len(sums)
    if n_clusters < 2:
        raise UnfitDataError(f"an interval needs at least 2 rows or clusters to draw from, given {n_clusters}")
    rng = np.random.default_rng(SEED)
    means = np.empty(RESAMPLES)
    for resample in range(RESAMPLES):
        drawn = rng.integers(n_clusters, size=n_clusters)
        means[resample] = sums[drawn].sum() / sizes[drawn].sum()
    lower, upper = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return MeanInterval(mean=float(values.mean()), lower=float(lower), upper=float(upper), clusters=n_clusters)


def _by_cluster(
    values: Float64[np.ndarray, " row"], cluster_of: Int[np.ndarray, " row"] | None
) -> tuple[Float64[np.ndarray, " cluster"], Float64[np.ndarray, " cluster"]]:
    """Sum and number of rows of each cluster."""
    if cluster_of is None:
        return values, np.ones(len(values))
    _, place = np.unique(cluster_of, return_inverse=True)
    return np.bincount(place, weights=values), np.bincount(place).astype(np.float64)
