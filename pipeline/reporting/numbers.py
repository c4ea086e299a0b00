"""Every number of a report, ready for JSON: the page is drawn from these and knows nothing else.

Scores, reliability and errors by group are of the final predictions, which saw no row that scores them; contributions
are those of the best ones, because `oof.csv` holds those. Errors are prediction less truth in log units.
"""

from collections.abc import Mapping, Sequence
from math import exp
from typing import Any

import numpy as np
from jaxtyping import Float64

from heads.targets import Target
from pipeline.oof import SavedOutOfFold
from pipeline.reporting.groups import age_effect_of, errors_of_groups, scored
from pipeline.reporting.sources import RunFiles, Videos

DECILES = 10
DENSITY_BINS = 32
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
        "errors": errors_of_groups(files, videos, ages),
        "age_effect": age_effect_of(files, ages),
        "intervals": files.metrics.get("intervals", {}),
        "coverage": files.metrics.get("coverage", []),
        "age_bin_edges_years": files.metrics.get("age_bin_edges_years", []),
        "training": _training(files),
        "duplicates_across_folds": files.metrics.get("duplicates_across_folds", {}),
        "chosen": files.metrics.get("chosen", {}),
        "other": {name: files.metrics[name] for name in OPTIONAL if name in files.metrics},
    }


OPTIONAL = ("before_tuning", "seeds", "sweep", "near_duplicates")
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


def reliability(oof: SavedOutOfFold) -> dict[str, Any]:
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
        "train_loss": [record.get(f"fold_{fold}/train/loss_epoch") for record in own],
        "weights": {modality: [record.get(prefix + modality) for record in own] for modality in modalities},
    }
