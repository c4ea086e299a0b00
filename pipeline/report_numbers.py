"""Every number of a report, ready for JSON: the page is drawn from these and knows nothing else.

Scores, reliability and errors by group are of the final predictions, which saw no row that scores them; contributions
are those of the best ones, because `oof.csv` holds those. Errors are prediction less truth in log units.
"""

from collections.abc import Mapping, Sequence
from math import exp
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int64

from heads.metrics import score
from heads.targets import Target
from pipeline.report_sources import OofTable, RunFiles, Videos

DECILES = 10
DENSITY_BINS = 32
AGE_CURVE_BINS = 16
AGE_CURVE_ROWS = 8
"""Rows that a bin of the age curve needs, so that a fold is not told by one or two videos."""

CHANNELS_SHOWN = 12
MIN_CHANNEL_ROWS = 10

NEIGHBOUR_SPLITS = {"kfold": "random videos", "group": "channels never seen", "time": "the newest videos"}
"""What the rows that score the linear head are, under each split of `pipeline.diagnostics`."""


def numbers_of(files: RunFiles, videos: Videos | None) -> dict[str, Any]:
    """Everything that follows from the run's own files and its dataset."""
    ages = None if videos is None else videos.ages(np.datetime64(files.run.part("reference_date")))
    return {
        "run": _run(files),
        "score": _score(files),
        "splits": _splits(files.metrics.get("diagnostics", {}), files.target),
        "test_against_train_auc": files.metrics.get("diagnostics", {}).get("test_against_train_auc", {}),
        "modalities": _modalities(files.metrics),
        "reliability": reliability(files.oof),
        "errors": _errors(files, videos, ages),
        "age_effect": _age_effect(files, ages),
        "intervals": files.metrics.get("intervals", {}),
        "coverage": files.metrics.get("coverage", []),
        "age_bin_edges_years": files.metrics.get("age_bin_edges_years", []),
        "training": _training(files),
        "duplicates_across_folds": files.metrics.get("duplicates_across_folds", {}),
        "chosen": files.metrics.get("chosen", {}),
        "other": {name: files.metrics[name] for name in OPTIONAL if name in files.metrics},
    }


OPTIONAL = ("seeds", "sweep")
"""Parts of metrics.json that only some runs have; they are shown as they are."""


def _run(files: RunFiles) -> dict[str, Any]:
    record, metrics = files.run.record, files.metrics
    kept = ("modalities", "sources", "encoders", "reference_date", "target", "folds", "training_log_views")
    return {
        "name": files.run.name,
        "head": metrics["head"],
        "rows": len(files.oof.ids),
        "validated": int(files.oof.validated.sum()),
        "seconds": metrics.get("seconds"),
        **{name: files.run.part(name) for name in kept},
        "config": record.get("config", {}),
        "versions": record.get("versions", {}),
        "created_utc": record.get("created_utc", ""),
    }


def _score(files: RunFiles) -> dict[str, Any]:
    rows, metrics = files.oof.validated, files.metrics
    truth = files.oof.log_views[rows]
    constant = float(metrics["oof_msle_constant"])
    found: dict[str, Any] = {
        "final": scored(truth, files.oof.final[rows]),
        "best": scored(truth, files.oof.best[rows]),
        "constant": {"msle": constant, "rmse": constant**0.5},
    }
    found |= {name: entry | _factor(entry, files.target) for name, entry in found.items()}
    return found | {
        "explained": 1 - found["final"]["msle"] / constant if constant > 0 else None,
        "fold_msle": metrics["fold_msle"],
        "fold_msle_final": metrics["fold_msle_final"],
        "folds": list(files.fold_info),
    }


def scored(truth: Float64[np.ndarray, " row"], pred: Float64[np.ndarray, " row"]) -> dict[str, float]:
    """The metrics of `heads.metrics`, and the mean error.

    >>> scored(np.array([1.0, 3.0]), np.array([2.0, 5.0]))["bias"]
    1.5
    """
    return score(truth, pred) | {"bias": float((pred - truth).mean())}


def _factor(entry: Mapping[str, Any], target: Target) -> dict[str, float]:
    """exp(RMSE), by which a prediction is typically off; nothing where the target is no count."""
    return {"typical_factor": exp(min(entry["rmse"], 700.0))} if target.kind == "log1p" else {}


def _splits(diagnostics: Mapping[str, Any], target: Target) -> list[dict[str, Any]]:
    """The linear head under each split; `reason` in place of a score where the videos cannot be split so."""
    found = []
    for split, value in diagnostics.get("linear_msle_by_split", {}).items():
        entry = {"split": split, "scored_on": NEIGHBOUR_SPLITS.get(split, split), "msle": None, "reason": ""}
        if isinstance(value, int | float):
            entry |= {"msle": value, "rmse": value**0.5}
            entry |= _factor(entry, target)
        else:
            entry["reason"] = str(value)
        found.append(entry)
    return found


def _modalities(metrics: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    return {
        modality: {
            "weight": weight,
            "weight_sd": metrics["weights_sd"][modality],
            "fold_weights": [weights[modality] for weights in metrics["fold_weights"]],
            **metrics["importance"][modality],
        }
        for modality, weight in metrics["weights"].items()
    }


def reliability(oof: OofTable) -> dict[str, Any]:
    """Deciles of the prediction with their mean truth, the line through all rows, and how many rows lie where."""
    truth, pred = oof.log_views[oof.validated], oof.final[oof.validated]
    order = np.argsort(pred, kind="stable")
    deciles = [_decile(truth[rows], pred[rows]) for rows in np.array_split(order, DECILES) if len(rows)]
    centred = pred - pred.mean()
    spread = float(centred @ centred)
    slope = float(centred @ (truth - truth.mean())) / spread if spread > 0 else None
    return {"slope": slope, "deciles": deciles, "density": _density(truth, pred)}


def _decile(truth: Float64[np.ndarray, " row"], pred: Float64[np.ndarray, " row"]) -> dict[str, Any]:
    return {
        "rows": len(truth),
        "log_pred": float(pred.mean()),
        "log_views": float(truth.mean()),
        "standard_error": float(truth.std() / np.sqrt(len(truth))),
    }


def _density(truth: Float64[np.ndarray, " row"], pred: Float64[np.ndarray, " row"]) -> dict[str, Any]:
    """Counts on a square grid; each cell is [bin of the prediction, bin of the truth, rows]."""
    both = np.concatenate([truth, pred])
    edges = np.linspace(both.min(), max(both.max(), both.min() + 1e-6), DENSITY_BINS + 1)
    counts, _, _ = np.histogram2d(pred, truth, bins=[edges, edges])
    cells = [[int(x), int(y), int(counts[x, y])] for x, y in np.argwhere(counts > 0)]
    return {"edges": edges.tolist(), "cells": cells}


def _errors(files: RunFiles, videos: Videos | None, ages: Float64[np.ndarray, " video"] | None) -> dict[str, Any]:
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


def errors_by(oof: OofTable, labels: np.ndarray) -> list[dict[str, Any]]:
    """Rows and errors of the final prediction for each label in their order; numbers below 0 are "unknown", last."""
    known = [label for label in dict.fromkeys(sorted(labels[oof.validated].tolist())) if label != -1]
    there = [*known, -1] if (labels[oof.validated] == -1).any() else known
    return [{"label": "unknown" if label == -1 else label} | _error_of(oof, labels == label) for label in there]


def _error_of(oof: OofTable, rows: Bool[np.ndarray, " video"]) -> dict[str, Any]:
    own = rows & oof.validated
    return {"rows": int(own.sum()), **scored(oof.log_views[own], oof.final[own])}


def _largest_and_rest(oof: OofTable, channels: np.ndarray) -> list[dict[str, Any]]:
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


def _age_effect(files: RunFiles, ages: Float64[np.ndarray, " video"] | None) -> list[dict[str, Any]]:
    places = [place for place, source in enumerate(files.sources) if source.kind == "age"]
    if ages is None or not places:
        return []
    return age_effect(files.oof, files.oof.contributions[places[0]], ages, files.run.n_folds)


def age_effect(
    oof: OofTable,
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
    oof: OofTable,
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


def _training(files: RunFiles) -> list[dict[str, Any]]:
    """The curves of each fold; none where the heads were solved, not trained in epochs."""
    best = {int(row["fold"]): int(row["best_epoch"]) for row in files.fold_info}
    curves = [_curve(files.epochs, fold) | {"best_epoch": best.get(fold)} for fold in range(files.run.n_folds)]
    return curves if any(len(curve["epoch"]) > 1 for curve in curves) else []


def _curve(epochs: Sequence[Mapping[str, Any]], fold: int) -> dict[str, Any]:
    own = [record for record in epochs if f"fold_{fold}/val/msle" in record]
    prefix = f"fold_{fold}/weights/"
    modalities = [key.removeprefix(prefix) for key in (own[0] if own else {}) if key.startswith(prefix)]
    return {
        "fold": fold,
        "epoch": [record["epoch"] for record in own],
        "val_msle": [record[f"fold_{fold}/val/msle"] for record in own],
        "train_loss": [record[f"fold_{fold}/train/loss_epoch"] for record in own],
        "weights": {modality: [record[prefix + modality] for record in own] for modality in modalities},
    }
