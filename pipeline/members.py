"""The members of an ensemble: the folds of one run, or several runs, with their predictions and weights."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pandas as pd
from jaxtyping import Float64

from features.errors import CacheError, UsageError
from features.videos import VideoTable
from heads.ensemble import combine, inverse_msle_weights, nested_msle, stack_weights
from heads.metrics import msle
from heads.targets import Target
from pipeline.finetuned import stored_predictions
from pipeline.inputs import Source, gather
from pipeline.runs import Run
from pipeline.workspace import Workspace

Moment = Literal["best", "final"]
Space = Literal["log", "views"]

WEIGHTS_SUM_TO_ONE_WITHIN = 1e-3
ROWS_PER_STACKED_RUN = 50
"""Below this, weights fitted on out-of-fold predictions mostly fit noise."""


@dataclass(frozen=True, eq=False)
class Members:
    """Named predictions of the same videos, in log views; `facts` are kept beside the submission."""

    names: Sequence[str]
    log_views: Float64[np.ndarray, "member video"]
    facts: Mapping[str, Any] = field(default_factory=dict)


def fold_members(workspace: Workspace, run: Run, videos: VideoTable, moment: Moment) -> Members:
    """Every fold of a run predicts every video.

    Raises
    ------
    CacheError
        A checkpoint or a cache is missing or damaged, or the videos were embedded by another encoder than the run's.
    """
    names = [f"fold_{fold}" for fold in range(run.n_folds)]
    if (stored := stored_predictions(run, videos, moment)) is not None:
        return Members(names, stored.log_views)
    heads = [run.checkpoint(fold, moment).heads for fold in range(run.n_folds)]
    sources = [Source(**source) for source in run.part("sources")]
    gathered = gather(workspace, sources, videos, np.datetime64(run.part("reference_date")))
    for tag, encoder in gathered.encoders.items():
        trained_on = run.part("encoders")[tag]
        if encoder != trained_on:
            raise CacheError(
                f"run {run.name} was trained on vectors of encoder {tag} {trained_on[:12]}, but the {videos.split} "
                f"cache was made by {encoder[:12]}: run `vp extract` and `vp train-heads` again"
            )
    predictions = np.stack([member.predict(gathered.inputs) for member in heads])
    return Members(names, predictions)


def run_members(workspace: Workspace, runs: Sequence[Run], videos: VideoTable, moment: Moment, space: Space) -> Members:
    """Every run predicts every video, as the mean of its folds."""
    predictions = []
    for run in runs:
        folds = fold_members(workspace, run, videos, moment)
        predictions.append(combine(folds.log_views, "mean", space=space, target=Target(run.part("target"))))
    return Members([run.name for run in runs], np.stack(predictions))


def given_weights(texts: Sequence[str], names: Sequence[str]) -> Float64[np.ndarray, " member"]:
    """Weights as a user wrote them: numbers in the order of the members, or `name=number` in any order.

    >>> given_weights(["fold_1=0.75", "fold_0=0.25"], ["fold_0", "fold_1"])
    array([0.25, 0.75])
    """
    named = [text.partition("=") for text in texts]
    if any(separator for _, separator, _ in named):
        by_name = {name.strip(): number for name, separator, number in named if separator}
        if sorted(by_name) != sorted(names) or len(named) != len(names):
            raise UsageError(f"--weights must name each of {', '.join(names)} once, not {', '.join(texts)}")
        texts = [by_name[name] for name in names]
    try:
        weights = np.array([float(text) for text in texts])
    except ValueError:
        raise UsageError(f"--weights takes numbers, not {', '.join(texts)}") from None
    if len(weights) != len(names):
        raise UsageError(f"--weights needs one number for each of {', '.join(names)}, {len(weights)} were given")
    if not (weights >= 0).all() or not abs(weights.sum() - 1) <= WEIGHTS_SUM_TO_ONE_WITHIN:
        raise UsageError(
            f"--weights must be 0 or more and sum to 1, however: {', '.join(texts)} sum to {weights.sum():g}"
        )
    return np.asarray(weights / weights.sum())


def fold_weights(run: Run, moment: Moment) -> Float64[np.ndarray, " fold"]:
    """Inverse to each fold's validation error, which tells how hard a fold was as well as how good its member is."""
    errors = np.array(run.read_json("metrics.json")["fold_msle" if moment == "best" else "fold_msle_final"])
    if not (errors > 0).all():
        raise UsageError(f"a fold of run {run.name} has no error at all, so nothing is inverse to it: give --weights")
    return inverse_msle_weights(errors)


def stacked_weights(runs: Sequence[Run], moment: Moment) -> tuple[Float64[np.ndarray, " run"], dict[str, Any]]:
    """Weights on the simplex that fit the runs' out-of-fold predictions best, with their honest (nested) score.

    Raises
    ------
    CacheError
        The runs were validated on other rows or other folds: their predictions cannot be compared.
    """
    tables = [_out_of_fold(run) for run in runs]
    first = tables[0]
    for run, table in zip(runs[1:], tables[1:], strict=True):
        if not (table["id"].equals(first["id"]) and table["fold"].equals(first["fold"])):
            raise CacheError(
                f"runs {runs[0].name} and {run.name} were not validated on the same rows and folds: train both with "
                "the same dataset, --folds, --split and --seed, or give --weights"
            )
    validated = (first["fold"] >= 0).to_numpy()
    oof = np.stack([table[f"log_pred_{moment}"].to_numpy(np.float64)[validated] for table in tables])
    truth = first["log_views"].to_numpy(np.float64)[validated]
    fold_of = first["fold"].to_numpy(np.int32)[validated]
    weights = stack_weights(oof, truth)
    return weights, {
        "oof_msle_of_each": dict(zip((run.name for run in runs), (msle(truth, each) for each in oof), strict=True)),
        "oof_msle_in_sample": msle(truth, weights @ oof),
        "oof_msle_nested": nested_msle(oof, truth, fold_of),
        "too_few_rows": bool(len(truth) < ROWS_PER_STACKED_RUN * len(runs)),
    }


def _out_of_fold(run: Run) -> pd.DataFrame:
    path = run.verified("oof.csv")
    return pd.read_csv(
        path, dtype={"id": str}, keep_default_na=False, na_values={"log_pred_best": [""], "log_pred_final": [""]}
    )
