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

AGE_BINS = 5


@dataclass(frozen=True, eq=False)
class OutOfFold:
    """Each row as predicted by the member that did not train on it, in log views; NaN where none validated it."""

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
        contributions = np.full((len(inputs.outline.modalities), len(log_views)), np.nan)
        member_of = {member.fold: member for member in members}
        for fold, rows, seen in validated_rows(inputs, plan):
            member = member_of[fold]
            baseline[rows] = member.best.baseline
            contributions[:, rows] = member.best.contributions(seen)
            best[rows] = member.best.baseline + contributions[:, rows].sum(axis=0)
            final[rows] = best[rows] if member.final is member.best else member.final.predict(seen)
        return cls(plan, log_views, best, final, baseline, contributions)

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
        names = [f"contribution_{modality}" for modality in modalities]
        return pd.DataFrame(columns | dict(zip(names, self.contributions, strict=True)))


def metrics_of(
    training: Training[FittedModel], oof: OutOfFold, modalities: Sequence[str], age_years: Float64[np.ndarray, " video"]
) -> dict[str, Any]:
    """Every number of a run, ready for JSON; errors are MSLE, weights canonical."""
    rows, members = oof.validated, training.members
    truth, best, final = oof.log_views[rows], oof.best[rows], oof.final[rows]
    weights = np.array([member.best.weights for member in members])
    importance = importances(modalities, oof.contributions[:, rows], (oof.log_views - oof.baseline)[rows])
    return {
        "oof_msle": msle(truth, best),
        "oof_msle_final": msle(truth, final),
        "oof_msle_constant": oof.constant_msle(),
        "fold_msle": [member.best_msle for member in members],
        "fold_msle_final": [member.final_msle for member in members],
        "weights": dict(zip(modalities, weights.mean(axis=0).tolist(), strict=True)),
        "weights_sd": dict(zip(modalities, weights.std(axis=0).tolist(), strict=True)),
        "fold_weights": [dict(zip(modalities, row, strict=True)) for row in weights.tolist()],
        "importance": {modality: asdict(numbers) for modality, numbers in importance.items()},
        "oof": score(truth, best),
        "oof_final": score(truth, final),
        "chosen": dict(training.facts),
        **_intervals(oof, age_years),
    }


def fold_info(members: Sequence[TrainedMember[FittedModel]]) -> pd.DataFrame:
    """One row per fold, as `fold_info.csv` holds them."""
    names = ("fold", "train_size", "val_size", "best_epoch", "best_msle", "final_msle")
    return pd.DataFrame({name: [getattr(member, name) for member in members] for name in names})


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
