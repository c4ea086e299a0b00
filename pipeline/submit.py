"""`vp submit`: runs -> submission for the videos of test.csv; complete and finite, or not written at all."""

import csv
import io
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
from features.errors import CacheError, DataError, UsageError
from features.progress import Progress
from features.videos import VideoTable
from heads.ensemble import combine
from heads.targets import Target
from pipeline.config import SubmitConfig
from pipeline.dataset import read_dataset, require_test
from pipeline.members import Members, fold_members, fold_weights, given_weights, run_members, stacked_weights
from pipeline.outcome import Outcome, table
from pipeline.runs import Run, only_run, open_run
from pipeline.score import HEADER
from pipeline.workspace import Workspace

SHIFT_WORTH_A_WARNING = 1.5
"""Difference in mean log views between the submission and the training videos: a factor of 4.5."""


def submit(config: SubmitConfig, progress: Progress) -> Outcome:
    """Predict the test videos with every member, combine the members, and write the submission.

    Raises
    ------
    UsageError, DataError, StorageError, CacheError
        See `pipeline.errors` for what each means and its exit code.
    """
    workspace = Workspace(config.work)
    names = config.run or (only_run(workspace.runs),)
    if len(set(names)) < len(names):
        raise UsageError(f"--run must name each run once, however: {', '.join(names)}")
    runs = [open_run(workspace.run(name)) for name in names]
    target = _common_target(runs)
    videos = require_test(read_dataset(config, progress), config)
    shape = _shape(config, videos, progress)
    if len(runs) == 1:
        members = fold_members(workspace, runs[0], videos, config.checkpoint)
    else:
        members = run_members(workspace, runs, videos, config.checkpoint, config.space)
    weights, facts = _weights(config, runs, members, progress)
    log_views = combine(members.log_views, config.method, weights=weights, space=config.space, target=target)
    rows = _guarded(shape, videos, target.from_log(log_views))
    path = workspace.submission("+".join(names), config.method)
    durable.publish(path, _as_csv(shape.header, rows))
    info = _info(config, runs, members, weights, log_views) | facts
    durable.publish(path.with_name(f"{path.stem}_info.json"), json.dumps(info, indent=1) + "\n")
    _warn_of_shift(info, progress)
    lines = [["member", "mean log views", "weight"]]
    shares = np.full(len(members.names), 1 / len(members.names)) if weights is None else weights
    means = members.log_views.mean(axis=1)
    lines += [[n, f"{m:.3f}", f"{w:.3f}"] for n, m, w in zip(members.names, means, shares, strict=True)]
    done = f"{len(rows)} videos, {config.method} of {len(members.names)} members -> {path}"
    outcome_facts = {"path": str(path), "rows": len(rows), **info}
    return Outcome(
        [*table(lines), done], outcome_facts, f"vp score --submission {shlex.quote(str(path))} --truth TRUE_VIEWS.csv"
    )


def _common_target(runs: Sequence[Run]) -> Target:
    kinds = {run.part("target") for run in runs}
    if len(kinds) > 1:
        raise CacheError(f"runs with different --target cannot be combined: {', '.join(sorted(kinds))}")
    return Target(kinds.pop())


@dataclass(frozen=True)
class _Shape:
    """Header of the submission, and which test row stands in each of its rows."""

    header: tuple[str, str]
    order: Sequence[int]


def _shape(config: SubmitConfig, videos: VideoTable, progress: Progress) -> _Shape:
    """test.csv gives the rows; a sample gives the header, and the order if it holds the same ids."""
    if config.sample is None:
        return _Shape(HEADER, range(len(videos)))
    try:
        rows = list(csv.reader(io.StringIO(config.sample.read_text(encoding="utf-8-sig")), strict=True))
    except (OSError, UnicodeError, csv.Error) as error:
        raise DataError(f"--sample {config.sample} is not readable as CSV ({error})") from error
    if not rows or len(rows[0]) != len(HEADER):
        raise DataError(f"--sample {config.sample} must have two columns, id and views; its first line is {rows[:1]}")
    header, ids = (rows[0][0], rows[0][1]), [row[0] for row in rows[1:] if row]
    row_of = {id_: row for row, id_ in enumerate(videos.ids)}
    if len(ids) == len(row_of) and set(ids) == set(row_of):
        return _Shape(header, [row_of[id_] for id_ in ids])
    progress.warn(
        f"--sample {config.sample} holds {len(ids)} ids that are not the {len(videos)} of {videos.path.name}: "
        "only its header is followed"
    )
    return _Shape(header, range(len(videos)))


def _weights(
    config: SubmitConfig, runs: Sequence[Run], members: Members, progress: Progress
) -> tuple[Float64[np.ndarray, " member"] | None, dict[str, Any]]:
    """The members' weights, for weighted_mean alone, and how they came about."""
    if config.method != "weighted_mean":
        if config.weights:
            raise UsageError(f"--weights belong to --method weighted_mean, not to {config.method}")
        return None, {}
    if config.weights:
        return given_weights(config.weights, members.names), {"weights_from": "given"}
    if len(runs) == 1:
        return fold_weights(runs[0], config.checkpoint), {"weights_from": "inverse validation MSLE of each fold"}
    weights, scores = stacked_weights(runs, config.checkpoint)
    progress.note(
        f"weights fitted on out-of-fold predictions: MSLE {scores['oof_msle_in_sample']:.4f} on the rows they were "
        f"fitted on, {scores['oof_msle_nested']:.4f} on rows they were not"
    )
    if scores["too_few_rows"]:
        progress.warn("too few validated rows for so many runs: the fitted weights are mostly noise; prefer mean")
    return weights, {"weights_from": "out-of-fold predictions", "stacking": scores}


def _guarded(shape: _Shape, videos: VideoTable, views: Float64[np.ndarray, " video"]) -> list[tuple[str, float]]:
    """The rows of the submission: every test video once, finite and not negative, or none at all."""
    if not np.isfinite(views).all() or (views < 0).any():
        bad = [videos.ids[row] for row in np.flatnonzero(~(np.isfinite(views) & (views >= 0)))[:5]]
        raise CacheError(f"the members predict no usable number for {', '.join(bad)}: run `vp train-heads` again")
    return [(videos.ids[row], float(views[row])) for row in shape.order]


def _as_csv(header: tuple[str, str], rows: Sequence[tuple[str, float]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()


def _info(
    config: SubmitConfig,
    runs: Sequence[Run],
    members: Members,
    weights: Float64[np.ndarray, " member"] | None,
    log_views: Float64[np.ndarray, " video"],
) -> dict[str, Any]:
    """Everything needed to make the file again, and how it compares with the training videos."""
    trained = runs[0].part("training_log_views")
    return {
        "method": config.method,
        "space": config.space,
        "checkpoint": config.checkpoint,
        "runs": {run.name: {"folds": run.part("folds"), "checkpoints": run.checkpoint_digests} for run in runs},
        "members": list(members.names),
        "weights": None if weights is None else dict(zip(members.names, weights.tolist(), strict=True)),
        "n_models": sum(run.n_folds * len(run.seeds) for run in runs),
        "test_rows": len(log_views),
        "log_views": {"mean": float(log_views.mean()), "sd": float(log_views.std()), "max": float(log_views.max())},
        "training_log_views": trained,
        "spread_between_members": float(members.log_views.std(axis=0).mean()),
        "vp": version("vp"),
        "created_utc": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _warn_of_shift(info: dict[str, Any], progress: Progress) -> None:
    here, trained = info["log_views"]["mean"], info["training_log_views"]["mean"]
    if abs(here - trained) > SHIFT_WORTH_A_WARNING:
        progress.warn(
            f"the submission's mean of log views is {here:.2f}, that of the training videos {trained:.2f}: "
            "check that the test videos may differ so much"
        )
