"""How much each modality matters, as exact Shapley values.

Take an additive model f = b + sum_m g_m, its contributions g_m (log units, centred) and the residuals r = y - b that
it would leave without them. With the modalities of S alone, all others at their mean, the MSLE falls by

    v(S) = mean(r²) - mean((r - sum_{m in S} g_m)²) = sum_{m in S} 2 mean(r g_m) - sum_{j, k in S} mean(g_j g_k).

The Shapley value is linear in v: it gives 2 mean(r g_m) - mean(g_m²) to m alone, and halves what a pair gives,
-2 mean(g_j g_k), between the two. Hence

    phi_m = 2 mean(r g_m) - mean(g_m sum_k g_k)   and   sum_m phi_m = v(all).

As v holds nothing beyond pairs, phi_m is also the mean of what m gives alone and what is lost when it is removed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import factorial

import numpy as np
from jaxtyping import Float64

from heads.errors import UnfitDataError
from heads.simplex import NO_SPREAD


@dataclass(frozen=True, kw_only=True)
class Importance:
    """What one modality is worth. `shapley`, `alone` and `removed` are in MSLE (squared log units).

    `share` is the Shapley value as a share of the total drop; None where the model is no better than its baseline,
    so that there is nothing to share. `covariance_share` looks at the model alone, not at the truth. The two are equal
    where mean(r g_m) = mean(f g_m), f without its baseline: a smaller `share` means that the model trusts this
    modality more than the truth bears out. Both can be negative.
    """

    shapley: float
    share: float | None
    covariance_share: float
    alone: float
    removed: float


def importances(
    modalities: Sequence[str],
    contributions: Float64[np.ndarray, "modality video"],
    residual: Float64[np.ndarray, " video"],
) -> dict[str, Importance]:
    """All numbers of every modality by its name, for JSON by way of `dataclasses.asdict`.

    Raises as `shapley` does, and ValueError unless every contribution has its modality.

    >>> image = importances(["image", "age"], np.array([[1.0, -1.0], [2.0, -2.0]]), np.array([4.0, -4.0]))["image"]
    >>> image.shapley, image.share, image.covariance_share
    (5.0, 0.3333333333333333, 0.3333333333333333)
    """
    if len(modalities) != len(contributions):
        raise ValueError(f"{len(contributions)} contributions need as many modalities, given {', '.join(modalities)}")
    values = shapley(contributions, residual)
    drop = float(values.sum())
    alone, removed = alone_and_removed(contributions, residual)
    columns = (values, covariance_shares(contributions), alone, removed)
    rows = zip(modalities, *(column.tolist() for column in columns), strict=True)
    return {
        modality: Importance(
            shapley=value,
            share=value / drop if drop > 0 else None,
            covariance_share=covariance_share,
            alone=drop_alone,
            removed=rise_removed,
        )
        for modality, value, covariance_share, drop_alone, rise_removed in rows
    }


def shapley(
    contributions: Float64[np.ndarray, "modality video"], residual: Float64[np.ndarray, " video"]
) -> Float64[np.ndarray, " modality"]:
    """Exact Shapley values of the drop in MSLE; they sum to the drop of the whole model.

    `contributions` (log units) are those that each row's own out-of-fold member gave, `residual` is the row's log
    views minus the baseline of that member. Raises UnfitDataError for no rows and for numbers that are not finite.

    >>> shapley(np.array([[1.0, -1.0], [2.0, -2.0]]), np.array([4.0, -4.0]))  # from 16 to 1
    array([ 5., 10.])
    """
    _check_rows(contributions, residual)
    values: Float64[np.ndarray, " modality"] = contributions @ (2 * residual - contributions.sum(axis=0))
    return values / residual.size


def alone_and_removed(
    contributions: Float64[np.ndarray, "modality video"], residual: Float64[np.ndarray, " video"]
) -> tuple[Float64[np.ndarray, " modality"], Float64[np.ndarray, " modality"]]:
    """Drop in MSLE where only this modality is present, and rise where only this one is absent; raises as `shapley`.

    Nothing is trained again: an absent modality stands at its mean, and the others do not take over its part.

    >>> alone_and_removed(np.array([[1.0, -1.0], [2.0, -2.0]]), np.array([4.0, -4.0]))
    (array([ 7., 12.]), array([3., 8.]))
    """
    _check_rows(contributions, residual)
    error = residual - contributions.sum(axis=0)
    alone: Float64[np.ndarray, " modality"] = (contributions * (2 * residual - contributions)).mean(axis=1)
    removed: Float64[np.ndarray, " modality"] = (contributions * (2 * error + contributions)).mean(axis=1)
    return alone, removed


def covariance_shares(contributions: Float64[np.ndarray, "modality video"]) -> Float64[np.ndarray, " modality"]:
    """Cov(g_m, f) / Var(f): how much of the predictions' variance runs through each modality.

    The shares sum to 1 and may be negative. Where f has no variance, as no modality contributes or they cancel, the
    shares are uniform, like canonical weights. Raises UnfitDataError as `shapley` does.

    >>> covariance_shares(np.array([[3.0, -3.0], [-1.0, 1.0]]))
    array([ 1.5, -0.5])
    >>> covariance_shares(np.zeros((4, 2)))
    array([0.25, 0.25, 0.25, 0.25])
    """
    _check_rows(contributions)
    centred = contributions - contributions.mean(axis=1, keepdims=True)
    total = centred.sum(axis=0)
    if total.std() <= NO_SPREAD * centred.std(axis=1).sum():
        return np.full(len(contributions), 1 / len(contributions))
    shares: Float64[np.ndarray, " modality"] = centred @ total / (total @ total)
    return shares


def coalition_shapley(log_pred: Float64[np.ndarray, "coalition video"]) -> Float64[np.ndarray, "modality video"]:
    """Contributions of any model, additive or not: the Shapley values of each video's own prediction.

    A coalition is a set of modalities: bit m of its row's number says whether modality m is present, the absent ones
    standing at their mean. Row 0 is the prediction from none of them, the last row the one from all; a video's
    contributions sum to the difference. Raises ValueError unless there are 2^M rows with M >= 1.

    >>> coalition_shapley(np.array([[8.0], [9.0], [8.0], [11.0]]))  # none, image, age, both
    array([[2.],
           [1.]])
    """
    n_modalities = len(log_pred).bit_length() - 1
    if n_modalities < 1 or len(log_pred) != 2**n_modalities:
        raise ValueError(f"give one row for each of the 2^M sets of M modalities, M >= 1; given {len(log_pred)} rows")
    _check_rows(log_pred)
    contributions: Float64[np.ndarray, "modality video"] = _coalition_weights(n_modalities) @ log_pred
    return contributions


def _coalition_weights(n_modalities: int) -> Float64[np.ndarray, "modality coalition"]:
    # A modality that joins S changes its value by v(S + m) - v(S), and does so in |S|! (M - |S| - 1)! of M! orders
    # of joining. A row with m thus counts positively by |S| = size - 1, a row without it negatively by |S| = size.
    # (L. S. Shapley, A value for n-person games, 1953.)
    orders = [factorial(size) * factorial(n_modalities - size - 1) for size in range(n_modalities)]
    joining = np.array([*orders, 0]) / factorial(n_modalities)  # the 0 answers sizes M and -1, where nothing joins
    present = (np.arange(2**n_modalities) >> np.arange(n_modalities)[:, None]) & 1 == 1
    size = present.sum(axis=0)
    weights: Float64[np.ndarray, "modality coalition"] = np.where(present, joining[size - 1], -joining[size])
    return weights


def _check_rows(*arrays: Float64[np.ndarray, "..."]) -> None:
    if not all(array.size and np.isfinite(array).all() for array in arrays):
        raise UnfitDataError("importance needs at least one row and finite numbers: leave out rows never validated")
