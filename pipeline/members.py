"""The members of an ensemble: the folds of one run, or several runs, with their predictions and weights."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from jaxtyping import Float64

from features.errors import CacheError, UsageError
from features.plan import CachePlan
from features.videos import VideoTable
from heads.ensemble import Method, combine, inverse_msle_weights, nested_msle, stack_weights
from heads.inputs import JOINT, Inputs
from heads.members import FittedModel
from heads.metrics import msle
from heads.targets import Target
from pipeline.inputs import Source
from pipeline.memory import submission_streams
from pipeline.oof import NotComparableError, SavedOutOfFold, other_folds, read_oof, side_by_side
from pipeline.run_record import read_metrics
from pipeline.runs import Moment, Run
from pipeline.stream import read_inputs
from pipeline.tuning.finetuned import stored_predictions
from pipeline.workspace import Workspace

Space = Literal["log", "views"]

WEIGHTS_SUM_TO_ONE_WITHIN = 1e-3
ROWS_PER_STACKED_RUN = 50
"""Below this, weights fitted on out-of-fold predictions mostly fit noise."""


EFFECT_ROWS = 2000
"""Videos, evenly spaced, whose contributions tell what a modality adds on average: trees take long to explain all."""


@dataclass(frozen=True, eq=False)
class Members:
    """Named predictions of the same videos, in log views, and what each modality adds to them on average.

    `plans` are the manifests of the caches that they were made from, by tag.
    """

    names: Sequence[str]
    log_views: Float64[np.ndarray, "member video"]
    effects: Sequence[Mapping[str, float]] = field(default_factory=list)
    plans: Mapping[str, CachePlan] = field(default_factory=dict)


def models_of(run: Run, moment: Moment) -> dict[str, FittedModel]:
    """Every member of a run by name, read and checked; the one place that knows which members a run has."""
    models = {f"fold_{fold}": run.checkpoint(fold, moment).heads for fold in range(run.n_folds)}
    for name, model in models.items():
        if other := set(model.modalities) - {*run.modalities, JOINT}:
            raise CacheError(
                f"{name} of run {run.name} reads {', '.join(sorted(other))}, which the run does not: "
                f"run `{run.command}` again"
            )
    return models


def fold_members(
    workspace: Workspace, run: Run, videos: VideoTable, moment: Moment, *, stream: bool | None = None
) -> Members:
    """Every member of a run predicts every video; with `stream` from the shards, one by one (None: if need be).

    Raises
    ------
    CacheError
        A checkpoint or a cache is missing or damaged, or the videos were embedded by another encoder than the run's.
    """
    if (stored := stored_predictions(run, videos, moment)) is not None:
        return Members([f"fold_{fold}" for fold in range(run.n_folds)], stored.log_views, stored.effects)
    models = models_of(run, moment)
    sources = [Source(**source) for source in run.part("sources")]
    reference = np.datetime64(run.part("reference_date"))
    streams = submission_streams(stream, workspace, sources, videos.split)
    gathered = read_inputs(workspace, sources, videos, reference, stream=streams)
    for tag, encoder in gathered.encoders.items():
        trained_on = run.part("encoders")[tag]
        if encoder != trained_on:
            raise CacheError(
                f"run {run.name} was trained on vectors of encoder {tag} {trained_on[:12]}, but the {videos.split} "
                f"cache was made by {encoder[:12]}: run `vp extract` and `vp train-heads` again"
            )
    predictions = np.empty((len(models), len(videos)))
    for rows, inputs in gathered.inputs:
        predictions[:, rows] = [model.predict(inputs) for model in models.values()]
    some = np.unique(np.linspace(0, len(videos) - 1, min(len(videos), EFFECT_ROWS)).astype(np.int64))
    sample = gathered.inputs.take(some)
    effects = [_effects(model, sample) for model in models.values()]
    return Members(list(models), predictions, effects, gathered.plans)


def run_members(
    workspace: Workspace,
    runs: Sequence[Run],
    videos: VideoTable,
    moment: Moment,
    space: Space,
    *,
    stream: bool | None = None,
) -> Members:
    """Every run predicts every video, as the mean of its members.

    Raises
    ------
    CacheError
        As `fold_members` does, or a cache was extracted anew between two runs.
    """
    predictions, effects = [], []
    plans: dict[str, CachePlan] = {}
    for run in runs:
        members = fold_members(workspace, run, videos, moment, stream=stream)
        predictions.append(combine(members.log_views, "mean", space=space, target=Target(run.part("target"))))
        if changed := [tag for tag, plan in members.plans.items() if plans.setdefault(tag, plan) != plan]:
            raise CacheError(f"the cache of {changed[0]} was extracted again meanwhile: run the same command again")
        own = members.effects
        effects.append({name: float(np.mean([effect[name] for effect in own])) for name in own[0]})
    return Members([run.name for run in runs], np.stack(predictions), effects, plans)


def _effects(model: FittedModel, inputs: Inputs) -> dict[str, float]:
    """Mean contribution of each modality over the videos, in log units; about 0 over the training videos."""
    return dict(zip(model.modalities, model.contributions(inputs).mean(axis=1).tolist(), strict=True))


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
    name = "fold_msle" if moment == "best" else "fold_msle_final"
    errors = np.array(read_metrics(run, name)[name])
    if not (errors > 0).all():
        raise UsageError(f"a fold of run {run.name} has no error at all, so nothing is inverse to it: give --weights")
    return inverse_msle_weights(errors)


def stacked_weights(runs: Sequence[Run], moment: Moment) -> tuple[Float64[np.ndarray, " run"], dict[str, Any]]:
    """Weights on the simplex that fit the runs' out-of-fold predictions best, with their honest (nested) score.

    They are fitted in log space, the scale of the metric, even where views are averaged in the end.

    Raises
    ------
    NotComparableError
        The runs were validated on other videos, views or folds; the message says which differ.
    """
    tables = side_by_side([read_oof(run) for run in runs])
    first = tables[0]
    for table in tables[1:]:
        if difference := other_folds(first, table):
            raise NotComparableError(
                f"weights can be fitted to runs with the same folds, but of {first.run} and {table.run} {difference}: "
                "train both with the same --split, --folds and --seed, or give --weights"
            )
    expanding = any(run.part("folds").get("expanding", False) for run in runs)
    oof = _stack(tables, moment)
    weights = stack_weights(oof, first.log_views)
    return weights, _scores(tables, oof, weights @ oof) | {
        "msle_nested": nested_msle(oof, first.log_views, first.fold_of, expanding=expanding),
        "nested_on": "earlier folds" if expanding else "the other folds",
        "too_few_rows": bool(len(first.ids) < ROWS_PER_STACKED_RUN * len(runs)),
    }


def unfitted_scores(
    runs: Sequence[Run], moment: Moment, method: Method, weights: Float64[np.ndarray, " run"] | None, space: Space
) -> dict[str, Any]:
    """Out-of-fold scores of the runs and of their combination, where no weight was fitted to them.

    Each row is predicted by members that did not train on it, whichever folds a run has.
    Raises NotComparableError as `stacked_weights` does, though folds may differ.
    """
    tables = side_by_side([read_oof(run) for run in runs])
    oof = _stack(tables, moment)
    together = combine(oof, method, weights=weights, space=space, target=Target(runs[0].part("target")))
    return _scores(tables, oof, together)


def _stack(tables: Sequence[SavedOutOfFold], moment: Moment) -> Float64[np.ndarray, "run video"]:
    return np.stack([table.at(moment) for table in tables])


def _scores(
    tables: Sequence[SavedOutOfFold], oof: Float64[np.ndarray, "run video"], together: Float64[np.ndarray, " video"]
) -> dict[str, Any]:
    truth = tables[0].log_views
    return {
        "rows": len(truth),
        "msle_of_each": {table.run: msle(truth, own) for table, own in zip(tables, oof, strict=True)},
        "msle_together": msle(truth, together),
    }
