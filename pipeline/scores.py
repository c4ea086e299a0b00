"""What a run's members predict for rows they have not seen, and every number that follows from it."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float64, Int64

from heads.chunks import Chunks, validated_rows
from heads.folds import FoldPlan
from heads.importance import importances
from heads.intervals import calibrate, coverage
from heads.members import FittedModel, TrainedMember, Training
from heads.metrics import msle, score
from pipeline.oof import CONTRIBUTION

AGE_BINS = 5


@dataclass(frozen=True, eq=False)
class OutOfFold:
    """Each row as predicted by the member that did not train on it, in log views; NaN where none validated it.

    Where a fold has members of several seeds, it is their mean that predicts.
    """

    plan: FoldPlan
    log_views: Float64[np.ndarray, " video"]
    best: Float64[np.ndarray, " video"]
    final: Float64[np.ndarray, " video"]
    baseline: Float64[np.ndarray, " video"]
    contributions: Float64[np.ndarray, "modality video"]  # of best, beside its baseline

    @classmethod
    def predict(
        cls,
        members: Sequence[TrainedMember[FittedModel]],
        plan: FoldPlan,
        inputs: Chunks,
        log_views: Float64[np.ndarray, " video"],
    ) -> "OutOfFold":
        """Let every member predict the rows that its fold validates."""
        best, final, baseline = np.full((3, len(log_views)), np.nan)
        contributions = np.full((len(members[0].best.modalities), len(log_views)), np.nan)
        members_of = {own[0].fold: own for own in Training(members).of_folds}
        for fold, rows, seen in validated_rows(inputs, plan):
            own = members_of[fold]
            baseline[rows] = np.mean([member.best.baseline for member in own])
            contributions[:, rows] = np.mean([member.best.contributions(seen) for member in own], axis=0)
            best[rows] = baseline[rows] + contributions[:, rows].sum(axis=0)
            solved = all(member.final is member.best for member in own)
            final[rows] = best[rows] if solved else np.mean([member.final.predict(seen) for member in own], axis=0)
        return cls(plan, log_views, best, final, baseline, contributions)

    def fold_msle(self, log_pred: Float64[np.ndarray, " video"]) -> list[float]:
        """Error of `best` or `final` on the rows of each fold."""
        folds = (self.plan.val_rows(fold) for fold in range(self.plan.n_folds))
        return [msle(self.log_views[rows], log_pred[rows]) for rows in folds]

    @property
    def validated(self) -> Bool[np.ndarray, " video"]:
        """Rows that some member validated."""
        return self.plan.fold_of >= 0

    def constant_msle(self) -> float:
        """Error of predicting each fold with the mean of its training rows: what any model has to beat."""
        squares = [
            (self.log_views[self.plan.val_rows(fold)] - self.log_views[self.plan.train_rows(fold)].mean()) ** 2
            for fold in range(self.plan.n_folds)
        ]
        return float(np.concatenate(squares).mean())

    def table(self, ids: Sequence[str], modalities: Sequence[str]) -> pd.DataFrame:
        """One row per video, as `oof.csv` holds them."""
        columns = {
            "id": ids,
            "fold": self.plan.fold_of,
            "log_views": self.log_views,
            "log_pred_best": self.best,
            "log_pred_final": self.final,
        }
        names = [CONTRIBUTION + modality for modality in modalities]
        return pd.DataFrame(columns | dict(zip(names, self.contributions, strict=True)))


def metrics_of(
    training: Training[FittedModel], oof: OutOfFold, modalities: Sequence[str], age_years: Float64[np.ndarray, " video"]
) -> dict[str, Any]:
    """Every number of a run, ready for JSON; errors are MSLE, weights canonical."""
    rows = oof.validated
    truth, best, final = oof.log_views[rows], oof.best[rows], oof.final[rows]
    weights = np.array([np.mean([member.best.weights for member in own], axis=0) for own in training.of_folds])
    importance = importances(modalities, oof.contributions[:, rows], (oof.log_views - oof.baseline)[rows])
    return {
        "oof_msle": msle(truth, best),
        "oof_msle_final": msle(truth, final),
        "oof_msle_constant": oof.constant_msle(),
        "fold_msle": oof.fold_msle(oof.best),
        "fold_msle_final": oof.fold_msle(oof.final),
        "weights": dict(zip(modalities, weights.mean(axis=0).tolist(), strict=True)),
        "weights_sd": dict(zip(modalities, weights.std(axis=0).tolist(), strict=True)),
        "fold_weights": [dict(zip(modalities, row, strict=True)) for row in weights.tolist()],
        "importance": {modality: asdict(numbers) for modality, numbers in importance.items()},
        "oof": score(truth, best),
        "oof_final": score(truth, final),
        "chosen": dict(training.facts),
        **({"seeds": _seeds(training)} if len(training.seeds) > 1 else {}),
        **_intervals(oof, age_years),
    }


def _seeds(training: Training[FittedModel]) -> dict[str, Any]:
    """What the members of each fold score one by one, and what the out-of-fold error of one seed is on average."""
    own = training.of_folds
    sizes = [member.val_size for member in training.members]
    final = [[member.final_msle for member in members] for members in own]
    return {
        "seeds": training.seeds,
        "oof_msle_of_one": float(np.average([member.best_msle for member in training.members], weights=sizes)),
        "oof_msle_final_of_one": float(np.average([member.final_msle for member in training.members], weights=sizes)),
        "fold_msle": [[member.best_msle for member in members] for members in own],
        "fold_msle_final": final,
        "fold_msle_final_sd": [float(np.std(errors)) for errors in final],
    }


def fold_info(training: Training[FittedModel], metrics: Mapping[str, Any]) -> pd.DataFrame:
    """One row per fold, as `fold_info.csv` holds them; sizes and best epoch are those of its first seed."""
    first = pd.DataFrame(
        {
            name: [getattr(own[0], name) for own in training.of_folds]
            for name in ("fold", "train_size", "val_size", "best_epoch")
        }
    )
    return first.assign(best_msle=metrics["fold_msle"], final_msle=metrics["fold_msle_final"])


def distribution(log_views: Float64[np.ndarray, " video"]) -> Mapping[str, float]:
    """Mean, deviation and largest value."""
    return {"mean": float(log_views.mean()), "sd": float(log_views.std()), "max": float(log_views.max())}


def _intervals(oof: OutOfFold, age_years: Float64[np.ndarray, " video"]) -> dict[str, Any]:
    """Bands around the final prediction, and how many rows of each fold and age lay in bands of the other folds."""
    rows = oof.validated
    residuals = (oof.log_views - oof.final)[rows]
    edges, bin_of = _age_bins(age_years[rows])
    measured = coverage(residuals, oof.plan.fold_of[rows], bin_of=bin_of)
    return {
        "intervals": calibrate(residuals).to_dict(),
        "coverage": [asdict(level) for level in measured],
        "age_bin_edges_years": edges,
    }


def _age_bins(age_years: Float64[np.ndarray, " row"]) -> tuple[list[float], Int64[np.ndarray, " row"] | None]:
    """Bins of about as many rows each; rows of unknown age have the bin -1."""
    known = ~np.isnan(age_years)
    if not known.any():
        return [], None
    edges = np.unique(np.quantile(age_years[known], np.linspace(0, 1, AGE_BINS + 1)[1:-1]))
    return edges.tolist(), np.where(known, np.searchsorted(edges, age_years, side="right"), -1)
