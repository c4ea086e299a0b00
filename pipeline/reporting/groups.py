"""How groups of videos fare: errors by year, age and channel, and what age adds to a prediction.

Errors are of the final prediction, which saw no row that scores it: prediction less truth, in log units.
"""

from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int64

from heads.metrics import score
from pipeline.oof import SavedOutOfFold
from pipeline.reporting.sources import RunFiles, Videos

AGE_CURVE_BINS = 16
AGE_CURVE_ROWS = 8
"""Rows that a bin of the age curve needs, so that a fold is not told by one or two videos."""

CHANNELS_SHOWN = 12
MIN_CHANNEL_ROWS = 10


def scored(truth: Float64[np.ndarray, " row"], pred: Float64[np.ndarray, " row"]) -> dict[str, float]:
    """The metrics of `heads.metrics`, the mean error, and the size of error that half of the rows stay below.

    >>> scored(np.array([1.0, 3.0]), np.array([2.0, 5.0]))["bias"]
    1.5
    """
    errors = pred - truth
    return score(truth, pred) | {"bias": float(errors.mean()), "median_size": float(np.median(np.abs(errors)))}


def errors_of_groups(
    files: RunFiles, videos: Videos | None, ages: Float64[np.ndarray, " video"] | None
) -> dict[str, Any]:
    """Errors by year, age and channel; empty where the dataset does not tell."""
    if videos is None or ages is None:
        return {"year": [], "age": [], "channel": []}
    years, channels = videos.years(), np.array(videos.channels(), dtype=object)
    edges = np.array(files.metrics.get("age_bin_edges_years", []), dtype=np.float64)
    bins = np.where(np.isnan(ages), -1, np.searchsorted(edges, ages, side="right"))
    by_age = errors_by(files.oof, bins) if len(edges) else []
    return {
        "year": errors_by(files.oof, np.where(years > 0, years, -1)),
        "age": [entry | _bin_ends(edges, entry["label"]) for entry in by_age],
        "channel": _largest_and_rest(files.oof, channels) if any(channels) else [],
    }


def errors_by(oof: SavedOutOfFold, labels: np.ndarray) -> list[dict[str, Any]]:
    """Rows and errors of the final prediction for each label in their order; numbers below 0 are "unknown", last."""
    known = [label for label in dict.fromkeys(sorted(labels[oof.validated].tolist())) if label != -1]
    there = [*known, -1] if (labels[oof.validated] == -1).any() else known
    return [{"label": "unknown" if label == -1 else label} | _error_of(oof, labels == label) for label in there]


def _error_of(oof: SavedOutOfFold, rows: Bool[np.ndarray, " video"]) -> dict[str, Any]:
    own = rows & oof.validated
    return {"rows": int(own.sum()), **scored(oof.log_views[own], oof.final[own])}


def _largest_and_rest(oof: SavedOutOfFold, channels: np.ndarray) -> list[dict[str, Any]]:
    """The largest channels that have enough rows, largest first, then all others together."""
    names, counts = np.unique(channels[oof.validated].astype(str), return_counts=True)
    order = sorted(range(len(names)), key=lambda at: (-counts[at], names[at]))
    shown = [str(names[at]) for at in order if names[at] and counts[at] >= MIN_CHANNEL_ROWS][:CHANNELS_SHOWN]
    found = [{"label": name, "channels": 1} | _error_of(oof, channels == name) for name in shown]
    rest = ~np.isin(channels.astype(str), shown)
    if (rest & oof.validated).any():
        found.append({"label": None, "channels": len(names) - len(shown)} | _error_of(oof, rest))
    return found


def _bin_ends(edges: Float64[np.ndarray, " edge"], label: int | str) -> dict[str, Any]:
    if isinstance(label, str):
        return {"from_years": None, "to_years": None}
    return {
        "from_years": float(edges[label - 1]) if label > 0 else None,
        "to_years": float(edges[label]) if label < len(edges) else None,
    }


def age_effect_of(files: RunFiles, ages: Float64[np.ndarray, " video"] | None) -> list[dict[str, Any]]:
    """The age curve of a run; empty where it does not look at ages, or they are not known."""
    names = [source.modality for source in files.sources if source.kind == "age"]
    if ages is None or not names:
        return []
    contribution = files.oof.contribution(names[0])
    return age_effect(files.oof, contribution, ages, files.run.n_folds)


def age_effect(
    oof: SavedOutOfFold,
    contribution: Float64[np.ndarray, " video"],
    ages: Float64[np.ndarray, " video"],
    n_folds: int,
) -> list[dict[str, Any]]:
    """Mean out-of-fold contribution of the age (log units) in bins of about as many rows each, and of each fold."""
    rows = np.flatnonzero(oof.validated & ~np.isnan(ages))
    n_bins = min(AGE_CURVE_BINS, len(rows) // (AGE_CURVE_ROWS * n_folds))
    if n_bins < 2:
        return []
    order = rows[np.argsort(ages[rows], kind="stable")]
    return [_age_bin(oof, contribution, ages, part, n_folds) for part in np.array_split(order, n_bins)]


def _age_bin(
    oof: SavedOutOfFold,
    contribution: Float64[np.ndarray, " video"],
    ages: Float64[np.ndarray, " video"],
    rows: Int64[np.ndarray, " row"],
    n_folds: int,
) -> dict[str, Any]:
    own = [rows[oof.fold_of[rows] == fold] for fold in range(n_folds)]
    return {
        "rows": len(rows),
        "age_years": float(ages[rows].mean()),
        "contribution": float(contribution[rows].mean()),
        "by_fold": [float(contribution[part].mean()) if len(part) else None for part in own],
    }
