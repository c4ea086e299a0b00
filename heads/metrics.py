"""How far predictions are from the truth, in natural-log units of 1 + views unless a docstring says otherwise."""

import numpy as np
from jaxtyping import Float64

from heads.errors import UnfitDataError


def score(log_views: Float64[np.ndarray, " video"], log_pred: Float64[np.ndarray, " video"]) -> dict[str, float]:
    """All metrics by name.

    >>> score(np.array([0.0, 1.0, 3.0]), np.array([0.0, 2.0, 3.0]))["mae"]  # doctest: +ELLIPSIS
    0.333...
    """
    return {
        "msle": msle(log_views, log_pred),
        "rmse": rmse(log_views, log_pred),
        "mae": mae(log_views, log_pred),
        "spearman": spearman(log_views, log_pred),
        "share_within_factor_2": share_within_factor(log_views, log_pred, 2.0),
    }


def msle(log_views: Float64[np.ndarray, " video"], log_pred: Float64[np.ndarray, " video"]) -> float:
    """Mean squared logarithmic error. The logarithm is natural: base 10 would shrink it by (ln 10)² ≈ 5.3.

    >>> msle(np.array([1.0, 1.0]), np.array([1.0, 3.0]))
    2.0
    """
    return float(np.square(_errors(log_views, log_pred)).mean())


def rmse(log_views: Float64[np.ndarray, " video"], log_pred: Float64[np.ndarray, " video"]) -> float:
    """Root mean squared error in log units, the square root of the MSLE.

    >>> rmse(np.array([1.0, 1.0]), np.array([4.0, 4.0]))
    3.0
    """
    return float(np.sqrt(msle(log_views, log_pred)))


def mae(log_views: Float64[np.ndarray, " video"], log_pred: Float64[np.ndarray, " video"]) -> float:
    """Mean absolute error in log units.

    >>> mae(np.array([1.0, 1.0]), np.array([0.0, 4.0]))
    2.0
    """
    return float(np.abs(_errors(log_views, log_pred)).mean())


def share_within_factor(
    log_views: Float64[np.ndarray, " video"], log_pred: Float64[np.ndarray, " video"], factor: float
) -> float:
    """Share of rows whose 1 + views are at most `factor` times too high or too low.

    >>> share_within_factor(np.log([100.0, 100.0]), np.log([51.0, 201.0]), 2.0)
    0.5
    """
    rounding = 1e-9  # so that exactly `factor` times counts, although the logarithms are rounded
    return float((np.abs(_errors(log_views, log_pred)) <= np.log(factor) + rounding).mean())


def spearman(log_views: Float64[np.ndarray, " video"], log_pred: Float64[np.ndarray, " video"]) -> float:
    """Rank correlation, ties sharing their mean rank; 0 where either side is constant, which orders nothing.

    >>> spearman(np.array([1.0, 2.0, 3.0]), np.array([10.0, 20.0, 15.0]))
    0.5
    """
    _errors(log_views, log_pred)
    ranks_true, ranks_pred = _centred_ranks(log_views), _centred_ranks(log_pred)
    scale = np.sqrt(np.square(ranks_true).sum() * np.square(ranks_pred).sum())
    return float(ranks_true @ ranks_pred / scale) if scale > 0 else 0.0


def _centred_ranks(values: Float64[np.ndarray, " video"]) -> Float64[np.ndarray, " video"]:
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    mean_rank = np.cumsum(count) - (count - 1) / 2
    ranks: Float64[np.ndarray, " video"] = mean_rank[place] - (len(values) + 1) / 2
    return ranks


def _errors(
    log_views: Float64[np.ndarray, " video"], log_pred: Float64[np.ndarray, " video"]
) -> Float64[np.ndarray, " video"]:
    if not log_views.size:
        raise UnfitDataError("a score needs at least one row, given none")
    errors: Float64[np.ndarray, " video"] = log_pred - log_views
    return errors
