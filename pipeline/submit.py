"""`vp submit`: runs -> submission for the videos of test.csv; complete and finite, or not written at all."""

import hashlib
import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import numpy as np
from jaxtyping import Float64

from features import durable
from features.errors import CacheError, UsageError
from features.hashing import sha256_of
from features.plan import digest
from features.progress import Progress
from features.videos import VideoTable
from heads.ensemble import combine
from heads.targets import Target
from pipeline.config import SubmitConfig
from pipeline.dataset import Dataset, read_dataset, require_test
from pipeline.distributions import Distribution, Shift, weighted_effects
from pipeline.members import (
    Members,
    fold_members,
    fold_weights,
    given_weights,
    run_members,
    stacked_weights,
    unfitted_scores,
)
from pipeline.oof import NotComparableError, read_oof
from pipeline.outcome import Outcome, table
from pipeline.outdated import tell_outdated
from pipeline.run_record import open_whole_run
from pipeline.runs import Run, only_run
from pipeline.sample import submission_shape
from pipeline.settings import to_plain
from pipeline.workspace import Workspace

PACKAGES = ("vp", "numpy", "scipy", "scikit-learn", "safetensors")
"""What computes a submission from finished runs and caches."""


def submit(config: SubmitConfig, progress: Progress) -> Outcome:
    """Predict the test videos with every member, combine the members, and write the submission.

    Raises
    ------
    UsageError, DataError, StorageError, CacheError
        See `pipeline.errors` for what each means and its exit code.
    """
    ensemble = _read(config, progress)
    target, runs = ensemble.target, ensemble.runs
    shape = submission_shape(config.sample, ensemble.videos, progress)
    weights, facts = _weights(config, runs, ensemble.members, progress)
    log_views = combine(ensemble.members.log_views, config.method, weights=weights, space=config.space, target=target)
    text = shape.as_csv(ensemble.videos.ids, target.from_log(log_views), non_negative=target.kind == "log1p")
    shift = _shift(config, ensemble, weights, log_views)
    path = ensemble.workspace.submission([run.name for run in runs], config.method)
    durable.remove_leftovers(path.parent)
    durable.publish(path, text)
    info = _info(config, ensemble, weights, log_views) | facts | {"distribution": shift.to_dict()}
    info["submission"] = {
        "header": shape.header,
        "order": shape.order_of,
        "sha256": hashlib.sha256(text.encode()).hexdigest(),
    }
    durable.publish(path.with_name(f"{path.stem}_info.json"), json.dumps(info, indent=1) + "\n")
    shift.tell(progress)
    summary = [*_told(ensemble.members, weights, facts), "", *shift.table(), ""]
    done = f"{len(log_views)} videos, {config.method} of {len(ensemble.members.names)} members -> {path}"
    following = f"vp score --submission {shlex.quote(str(path))} --truth TRUE_VIEWS.csv"
    return Outcome([*summary, done], {"path": str(path), "rows": len(log_views), **info}, following)


@dataclass(frozen=True, eq=False)
class _Ensemble:
    """The runs, what their members predict for the test videos, and where all of it came from."""

    workspace: Workspace
    runs: Sequence[Run]
    dataset: Dataset
    videos: VideoTable
    members: Members
    target: Target


def _read(config: SubmitConfig, progress: Progress) -> _Ensemble:
    workspace = Workspace(config.work)
    names = config.run or (only_run(workspace.runs),)
    if len(set(names)) < len(names):
        raise UsageError(f"--run must name each run once, however: {', '.join(names)}")
    runs = [open_whole_run(workspace.run(name)) for name in names]
    target = _common_target(runs)
    dataset = read_dataset(config, progress, non_negative=target.kind == "log1p")
    videos = require_test(dataset, config)
    if len(runs) == 1:
        members = fold_members(workspace, runs[0], videos, config.checkpoint, stream=config.stream)
    else:
        members = run_members(workspace, runs, videos, config.checkpoint, config.space, stream=config.stream)
    tell_outdated(config, members.plans, videos, progress)
    return _Ensemble(workspace, runs, dataset, videos, members, target)


def _common_target(runs: Sequence[Run]) -> Target:
    kinds = {run.part("target") for run in runs}
    if len(kinds) > 1:
        raise CacheError(f"runs with different --target cannot be combined: {', '.join(sorted(kinds))}")
    return Target(kinds.pop())


def _weights(
    config: SubmitConfig, runs: Sequence[Run], members: Members, progress: Progress
) -> tuple[Float64[np.ndarray, " member"] | None, dict[str, Any]]:
    """The members' weights, for weighted_mean alone, and how they came about."""
    if config.method != "weighted_mean" and config.weights:
        raise UsageError(f"--weights belong to --method weighted_mean, not to {config.method}")
    if config.method != "weighted_mean":
        return None, _unfitted(config, runs, None, progress)
    if config.weights:
        weights = given_weights(config.weights, members.names)
        return weights, {"weights_from": "given"} | _unfitted(config, runs, weights, progress)
    if len(runs) == 1:
        return fold_weights(runs[0], config.checkpoint), {"weights_from": "inverse validation MSLE of each fold"}
    weights, scores = stacked_weights(runs, config.checkpoint)
    if scores["too_few_rows"]:
        progress.warn(
            f"{scores['rows']} validated rows are too few for {len(runs)} runs: the fitted weights are mostly noise; "
            "prefer --method mean"
        )
    return weights, {"weights_from": "out-of-fold predictions", "out_of_fold": scores}


def _unfitted(
    config: SubmitConfig, runs: Sequence[Run], weights: Float64[np.ndarray, " run"] | None, progress: Progress
) -> dict[str, Any]:
    """Out-of-fold scores of several runs that were combined without fitting anything, where they can be compared."""
    if len(runs) == 1:
        return {}
    try:
        return {"out_of_fold": unfitted_scores(runs, config.checkpoint, config.method, weights, config.space)}
    except NotComparableError as error:
        progress.warn(f"no out-of-fold score for this ensemble: {error}")
        return {}


def _info(
    config: SubmitConfig,
    ensemble: _Ensemble,
    weights: Float64[np.ndarray, " member"] | None,
    log_views: Float64[np.ndarray, " video"],
) -> dict[str, Any]:
    """Everything needed to make the file again."""
    names = ensemble.members.names
    return {
        "method": config.method,
        "space": config.space,
        "checkpoint": config.checkpoint,
        "runs": {run.name: _identity(run) for run in ensemble.runs},
        "caches": {tag: digest([shard.file for shard in plan.shards]) for tag, plan in ensemble.members.plans.items()},
        "members": list(names),
        "weights": None if weights is None else dict(zip(names, weights.tolist(), strict=True)),
        "n_models": sum(run.n_folds * len(run.seeds) for run in ensemble.runs),
        "test": {"rows": len(log_views), "sha256": sha256_of(ensemble.videos.path)},
        "spread_between_members": float(ensemble.members.log_views.std(axis=0).mean()),
        "config": to_plain(config),
        "versions": {name: version(name) for name in PACKAGES},
        "created_utc": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _identity(run: Run) -> dict[str, Any]:
    """What tells a run from every other: run.json holds the digest of each of its files."""
    return {"sha256": run.digest(), "folds": run.part("folds"), "checkpoints": run.checkpoint_digests}


def _shift(
    config: SubmitConfig,
    ensemble: _Ensemble,
    weights: Float64[np.ndarray, " member"] | None,
    log_views: Float64[np.ndarray, " video"],
) -> Shift:
    """The submission beside the training videos, and beside what the first run predicts of them out of fold."""
    run, target, members = ensemble.runs[0], ensemble.target, ensemble.members
    oof = read_oof(run)
    reference = np.datetime64(run.part("reference_date"))
    ages = [_median(videos.ages_years(reference)) for videos in (ensemble.videos, ensemble.dataset.train)]
    return Shift(
        submission=Distribution.of(log_views, target),
        run=run.name,
        out_of_fold=Distribution.of(oof.at(config.checkpoint)[oof.validated], target),
        training=Distribution.of(oof.log_views, target),
        effects=weighted_effects(members.effects, _shares(weights, len(members.names))),
        age=ages[0],
        training_age=ages[1],
        target=target,
    )


def _told(members: Members, weights: Float64[np.ndarray, " member"] | None, facts: dict[str, Any]) -> list[str]:
    """The members, and where several runs were combined how good each and all of them are."""
    scores = facts.get("out_of_fold", {})
    each = scores.get("msle_of_each", {})
    lines = [["member", "mean log views", *(["out-of-fold MSLE"] if each else []), "weight"]]
    means = members.log_views.mean(axis=1)
    for name, mean, share in zip(members.names, means, _shares(weights, len(members.names)), strict=True):
        lines.append([name, f"{mean:.3f}", *([f"{each[name]:.4f}"] if each else []), f"{share:.3f}"])
    told = table(lines)
    if "msle_nested" in scores:
        told += ["", f"together, weights fitted on {scores['nested_on']} (nested)  {scores['msle_nested']:.4f}"]
        told += [f"together, on the rows the weights were fitted on  {scores['msle_together']:.4f}"]
    elif scores:
        told += ["", f"together, out of fold  {scores['msle_together']:.4f}"]
    return told


def _shares(weights: Float64[np.ndarray, " member"] | None, n_members: int) -> Float64[np.ndarray, " member"]:
    return np.full(n_members, 1 / n_members) if weights is None else weights


def _median(ages: Float64[np.ndarray, " video"]) -> float:
    known = ages[~np.isnan(ages)]
    return float(np.median(known)) if known.size else float("nan")
