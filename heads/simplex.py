"""Weights that mean something: the canonical gauge of an additive model.

A model f = b + sum_m w_m h_m(x_m) p_m, with weights w on the simplex and presence p, does not determine its weights:
a head can absorb any factor, so trained weights mostly stay where they started. The canonical gauge removes that
freedom. With c_m the mean of h_m over the training rows where m is present, and the contributions

    g_m = w_m (h_m - c_m) p_m            centred on the training rows, 0 where m is absent,

it sets

    weight_m = sd(g_m) / sum_k sd(g_k)   and   head_m = b + sum_k w_k c_k + g_m / weight_m.

sum_m weight_m head_m is then the model itself, and all heads spread alike. Where m is absent its mean stands in.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64

NO_SPREAD = 1e-6
"""A contribution with a smaller standard deviation, in those of the target, is float32 rounding: it counts as none."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Gauge:
    """How a trained model is rewritten: head_m becomes (h_m - centre_m) * scale_m with the given weight."""

    weights: Float64[np.ndarray, " modality"]
    centre: Float64[np.ndarray, " modality"]
    scale: Float64[np.ndarray, " modality"]
    intercept: float


def head_means(
    outputs: Float64[np.ndarray, "modality video"],
    present: Bool[np.ndarray, "modality video"],
    row_weights: Float64[np.ndarray, " video"] | None = None,
) -> Float64[np.ndarray, " modality"]:
    """(Weighted) mean output of each head over the rows where its modality is present; 0 where it never is.

    >>> head_means(np.array([[1.0, 3.0, 9.0]]), np.array([[True, True, False]]))
    array([2.])
    """
    counted = present if row_weights is None else present * row_weights
    totals = counted.sum(axis=1)
    means: Float64[np.ndarray, " modality"] = np.zeros(len(outputs))
    np.divide((outputs * counted).sum(axis=1), totals, out=means, where=totals > 0)
    return means


def head_spreads(
    outputs: Float64[np.ndarray, "modality video"],
    present: Bool[np.ndarray, "modality video"],
    centre: Float64[np.ndarray, " modality"],
    row_weights: Float64[np.ndarray, " video"] | None = None,
) -> Float64[np.ndarray, " modality"]:
    """(Weighted) deviation of each head from its centre, 0 where its modality is absent.

    >>> head_spreads(np.array([[1.0, 3.0, 9.0]]), np.array([[True, True, False]]), np.array([2.0])).round(2)
    array([0.82])
    """
    deviations = (outputs - centre[:, None]) * present
    spreads: Float64[np.ndarray, " modality"] = np.sqrt(np.average(deviations**2, axis=1, weights=row_weights))
    return spreads


def canonical_weights(spreads: Float64[np.ndarray, " modality"]) -> Float64[np.ndarray, " modality"]:
    """Standard deviations of the contributions as shares of their sum; uniform where none contributes.

    >>> canonical_weights(np.array([3.0, 1.0, 0.0]))
    array([0.75, 0.25, 0.  ])
    >>> canonical_weights(np.array([0.0, 0.0]))
    array([0.5, 0.5])
    """
    kept: Float64[np.ndarray, " modality"] = np.where(spreads < NO_SPREAD, 0.0, spreads)
    if not kept.any():
        kept = np.ones_like(kept)
    kept /= kept.sum()
    return kept


def canonical_gauge(
    outputs: Float64[np.ndarray, "modality video"],
    present: Bool[np.ndarray, "modality video"],
    raw_weights: Float64[np.ndarray, " modality"],
    intercept: float,
    row_weights: Float64[np.ndarray, " video"] | None = None,
) -> Gauge:
    """The canonical gauge of a model, from what its heads give on the (weighted) training rows (z scale).

    A modality without spread gets the scale 0, hence no term.

    >>> gauge = canonical_gauge(np.array([[1.0, 3.0], [2.0, 2.0]]), np.ones((2, 2), dtype=bool), np.full(2, 0.5), 0.0)
    >>> gauge.weights, gauge.centre, gauge.scale, gauge.intercept
    (array([1., 0.]), array([2., 2.]), array([0.5, 0. ]), 2.0)
    """
    centre = head_means(outputs, present, row_weights)
    spreads = raw_weights * head_spreads(outputs, present, centre, row_weights)
    return gauge_of_spreads(spreads, centre, raw_weights, intercept)


def gauge_of_spreads(
    spreads: Float64[np.ndarray, " modality"],
    centre: Float64[np.ndarray, " modality"],
    raw_weights: Float64[np.ndarray, " modality"],
    intercept: float,
) -> Gauge:
    """The canonical gauge where deviations of the contributions and means of the heads are known already (z scale)."""
    weights = canonical_weights(spreads)
    scale = np.divide(raw_weights, weights, out=np.zeros_like(weights), where=spreads >= NO_SPREAD)
    return Gauge(weights=weights, centre=centre, scale=scale, intercept=intercept + float(raw_weights @ centre))
