"""Several members' predictions become one."""

from typing import Literal

import numpy as np
from jaxtyping import Float64, Int32

from heads.errors import UnfitDataError
from heads.metrics import msle
from heads.targets import Target

Method = Literal["mean", "median", "weighted_mean"]

VIEWS = Target()
"""The default target: views, averaged as log1p."""


def combine(
    log_predictions: Float64[np.ndarray, "member video"],
    method: Method,
    weights: Float64[np.ndarray, " weight"] | None = None,
    space: Literal["log", "views"] = "log",
    target: Target = VIEWS,
) -> Float64[np.ndarray, " video"]:
    """Log views of the ensemble. `weights`, for `weighted_mean` alone, are scaled to sum to 1.

    The log space is the one to average in: the MSLE is least at the mean of log views, and a mean of views lies
    above it. `space="views"` averages views all the same, for results that were made so.
    Raises ValueError for weights that are missing, not wanted, or not usable.

    >>> members = np.log1p(np.array([[0.0], [99.0]]))
    >>> np.expm1(combine(members, "mean")), np.expm1(combine(members, "mean", space="views"))
    (array([9.]), array([49.5]))
    """
    shares = _shares(method, weights, len(log_predictions))
    if space == "log":
        return _central(log_predictions, method, shares)
    views = np.stack([target.from_log(member) for member in log_predictions])
    return target.to_log(_central(views, method, shares))


def inverse_msle_weights(fold_msle: Float64[np.ndarray, " member"]) -> Float64[np.ndarray, " member"]:
    """Weights on the simplex, each inverse to a member's validation MSLE.

    >>> inverse_msle_weights(np.array([1.0, 3.0]))
    array([0.75, 0.25])
    """
    if not (np.isfinite(fold_msle).all() and (fold_msle > 0).all()):
        raise ValueError(f"weights inverse to the MSLE need values above 0, given {fold_msle}")
    weights: Float64[np.ndarray, " member"] = (1 / fold_msle) / (1 / fold_msle).sum()
    return weights


def stack_weights(
    oof: Float64[np.ndarray, "model video"], log_views: Float64[np.ndarray, " video"]
) -> Float64[np.ndarray, " model"]:
    """Weights on the simplex with the least MSLE on out-of-fold predictions, exactly.

    >>> stack_weights(np.array([[0.0, 2.0, 4.0], [1.0, 1.0, 1.0]]), np.array([0.5, 1.5, 2.5])).round(6)
    array([0.5, 0.5])
    """
    from scipy.optimize import nnls  # noqa: PLC0415  slow, and only stacking needs it

    if not (np.isfinite(oof).all() and np.isfinite(log_views).all() and log_views.size):
        raise UnfitDataError("stacking needs finite out-of-fold predictions: leave out rows that were never validated")
    # On the simplex the ensemble's error is E w, with one column of E per model. Minimise |E u|² + (sum(u) - 1)² over
    # u >= 0 instead, and write u = t w: for any w the best t leaves q / (1 + q) with q = |E w|², so the best u is a
    # multiple of the best w. E enters through its triangular factor alone, which is as small as there are models.
    errors = (oof - log_views).T / np.sqrt(log_views.size)
    triangle = np.linalg.qr(errors, mode="r")
    system = np.vstack([triangle, np.ones(len(oof))])
    solution, _ = nnls(system, np.append(np.zeros(len(triangle)), 1.0))
    weights: Float64[np.ndarray, " model"] = solution / solution.sum()
    return weights


def nested_msle(
    oof: Float64[np.ndarray, "model video"],
    log_views: Float64[np.ndarray, " video"],
    fold_of: Int32[np.ndarray, " video"],
    *,
    expanding: bool = False,
) -> float:
    """Honest MSLE of stacking: each fold is scored with weights fitted on the other folds.

    In an `expanding` plan the folds follow each other in time, and later ones would tell the future: a fold is scored
    with weights fitted on earlier ones alone, the first, before which there is nothing, with equal weights.
    Rows that were never validated (fold -1) are left out. Raises UnfitDataError for fewer than two folds.
    """
    folds = np.unique(fold_of[fold_of >= 0])
    if len(folds) < 2:
        raise UnfitDataError(f"a nested score needs at least 2 folds, given {len(folds)}")
    log_pred = np.zeros_like(log_views)
    for fold in folds:
        scored = fold_of == fold
        fitted = (fold_of >= 0) & (fold_of < fold if expanding else ~scored)
        weights = stack_weights(oof[:, fitted], log_views[fitted]) if fitted.any() else np.full(len(oof), 1 / len(oof))
        log_pred[scored] = weights @ oof[:, scored]
    validated = fold_of >= 0
    return msle(log_views[validated], log_pred[validated])


def _shares(
    method: Method, weights: Float64[np.ndarray, " weight"] | None, n_members: int
) -> Float64[np.ndarray, " member"]:
    if (weights is None) == (method == "weighted_mean"):
        raise ValueError(f"weights belong to the method weighted_mean, and only to it; given {weights} for {method}")
    if weights is None:
        return np.full(n_members, 1 / n_members)
    if len(weights) != n_members or not np.isfinite(weights).all() or weights.min() < 0 or weights.sum() <= 0:
        raise ValueError(f"weights must be {n_members} numbers >= 0 that are not all 0, given {weights}")
    shares: Float64[np.ndarray, " member"] = weights / weights.sum()
    return shares


def _central(
    predictions: Float64[np.ndarray, "member video"], method: Method, shares: Float64[np.ndarray, " member"]
) -> Float64[np.ndarray, " video"]:
    if method == "median":
        return np.asarray(np.median(predictions, axis=0), dtype=np.float64)
    centre: Float64[np.ndarray, " video"] = shares @ predictions
    return centre
