"""`vp compare`: does one run predict better than another, how sure is that, and where.

Both runs must have been scored on the same videos, with the same views and the same kind of split. Their folds may
differ: every prediction is by members that did not train on the row, so each run's error stays an honest one. But then
part of the difference is the draw of the folds, which no interval here covers, and that is told. Different kinds of
splits ask different questions, and a difference would be that of the questions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64

from features.errors import UsageError
from features.progress import Progress
from features.videos import VideoTable
from heads.bootstrap import LEVEL, MeanInterval, mean_interval
from pipeline.config import CompareConfig
from pipeline.dataset import read_training_videos
from pipeline.oof import NotComparableError, SavedOutOfFold, other_folds, read_oof, side_by_side
from pipeline.outcome import Outcome, table
from pipeline.run_record import open_whole_run
from pipeline.runs import Run
from pipeline.settings import repeated_flags
from pipeline.workspace import Workspace

_ALIKE = "{} and {} are equally far off on every video"
LEVEL_TOLD = f"{100 * LEVEL:.0f} %"
CHANNELS_SHOWN = 6
FEW_CHANNELS = 20
"""With fewer clusters than this the bootstrap over them is rough, mostly too narrow."""


def compare(config: CompareConfig, progress: Progress) -> Outcome:
    """Compare the out-of-fold errors of two runs, video by video.

    Raises
    ------
    UsageError, DataError, CacheError
        See `pipeline.errors` for what each means and its exit code.
    """
    if len(config.runs) != 2 or len(set(config.runs)) != 2:
        raise UsageError(f"name two runs to compare, vp compare RUN RUN, however: {', '.join(config.runs) or 'none'}")
    workspace = Workspace(config.work)
    runs = [open_whole_run(workspace.run(name)) for name in config.runs]
    _refuse_other_questions(runs)
    one, other = side_by_side([read_oof(run) for run in runs])
    if difference := other_folds(one, other):
        progress.warn(f"{difference}: part of the difference is the draw of the folds, which no interval here covers")
    videos = read_training_videos(config, progress, non_negative=runs[0].part("target") == "log1p")
    better_by = _squares(one, config) - _squares(other, config)
    labels = _Labels(videos, one.ids)
    over_videos = mean_interval(better_by)
    over_channels = mean_interval(better_by, labels.cluster_of) if labels.have_clusters else None
    if over_channels is not None and over_channels.clusters < FEW_CHANNELS:
        progress.warn(f"only {over_channels.clusters} channels: the interval over channels is rough")
    verdict = (
        _verdict(one.run, other.run, over_videos, over_channels) if better_by.any() else _ALIKE.format(*config.runs)
    )
    groups = {"year": labels.groups(labels.year), "channel": labels.groups(labels.channel)}
    facts = _facts(one, other, config, better_by) | {
        "same_folds": not difference,
        "interval_over_videos": asdict(over_videos),
        "interval_over_channels": None if over_channels is None else asdict(over_channels),
        "verdict": verdict,
    }
    facts |= {f"by_{name}": _by(rows_of, one, other, config) for name, rows_of in groups.items()}
    named = " ".join(f"--run {name}" for name in config.runs)
    following = f"vp submit {named} --method weighted_mean{repeated_flags(config)}"
    return Outcome([*_told(facts, one.run, other.run), "", verdict], facts, following)


def _refuse_other_questions(runs: Sequence[Run]) -> None:
    for what, values in (
        ("--split", [run.part("folds")["split"] for run in runs]),
        ("--target", [run.part("target") for run in runs]),
    ):
        if values[0] != values[1]:
            raise NotComparableError(
                f"{runs[0].name} was scored with {what} {values[0]}, {runs[1].name} with {values[1]}: the difference "
                f"would be that of the questions, not of the runs; train both with the same {what}"
            )


class _Labels:
    """Year and channel of the compared videos; a video without a channel is a cluster of its own."""

    def __init__(self, videos: VideoTable, ids: Sequence[str]) -> None:
        row_of = {id_: row for row, id_ in enumerate(videos.ids)}
        missing = [id_ for id_ in ids if id_ not in row_of]
        if missing:
            raise NotComparableError(
                f"{len(missing)} of {len(ids)} compared videos are not in {videos.path} (first: {missing[0]}): "
                "name the dataset that the runs were trained on with --data"
            )
        rows = [row_of[id_] for id_ in ids]
        self.year = [str(videos.year[row] or "unknown") for row in rows]
        self.channel = [videos.channel[row] for row in rows]
        keys = [f"channel {name}" if name else f"video {id_}" for name, id_ in zip(self.channel, ids, strict=True)]
        number = {key: place for place, key in enumerate(dict.fromkeys(keys))}
        self.cluster_of = np.array([number[key] for key in keys], dtype=np.int64)
        self.have_clusters = any(self.channel) and len(number) > 1

    @staticmethod
    def groups(labels: Sequence[str]) -> dict[str, Int64[np.ndarray, " row"]]:
        """Label -> its rows."""
        rows: dict[str, list[int]] = {}
        for row, label in enumerate(labels):
            rows.setdefault(label, []).append(row)
        return {label: np.array(rows[label], dtype=np.int64) for label in sorted(rows)}


def _squares(table_: SavedOutOfFold, config: CompareConfig) -> Float64[np.ndarray, " video"]:
    squares: Float64[np.ndarray, " video"] = np.square(table_.at(config.checkpoint) - table_.log_views)
    return squares


def _facts(
    one: SavedOutOfFold, other: SavedOutOfFold, config: CompareConfig, better_by: Float64[np.ndarray, " video"]
) -> dict[str, Any]:
    msle = {each.run: float(_squares(each, config).mean()) for each in (one, other)}
    return {"runs": [one.run, other.run], "rows": len(one.ids), "msle": msle, "difference": float(better_by.mean())}


def _by(
    rows_of: Mapping[str, Int64[np.ndarray, " row"]], one: SavedOutOfFold, other: SavedOutOfFold, config: CompareConfig
) -> list[dict[str, Any]]:
    """Rows and MSLE of both runs by label, the largest first."""
    squares = [_squares(each, config) for each in (one, other)]
    entries = [
        {"label": label, "rows": len(rows), "msle": [float(each[rows].mean()) for each in squares]}
        for label, rows in rows_of.items()
    ]
    return sorted(entries, key=lambda entry: -int(str(entry["rows"])))


def _told(facts: Mapping[str, Any], one: str, other: str) -> list[str]:
    columns = ["rows", f"MSLE {one}", f"MSLE {other}", f"{other} better by"]
    whole = {"label": "all", "rows": facts["rows"], "msle": [facts["msle"][name] for name in (one, other)]}
    by_year = sorted(facts["by_year"], key=lambda entry: str(entry["label"]))
    channels = [entry for entry in facts["by_channel"] if entry["label"]][:CHANNELS_SHOWN]
    parts = [("", [whole]), ("by year", by_year), ("by channel", channels if len(channels) > 1 else [])]
    told = [[*table([[name, *columns], *map(_line, entries)]), ""] for name, entries in parts if entries]
    intervals = [[f"{LEVEL_TOLD} interval of the difference", "from", "to", "drawn"]]
    for what in ("videos", "channels"):
        if found := facts[f"interval_over_{what}"]:
            cells = [f"{found['lower']:+.4f}", f"{found['upper']:+.4f}", f"{found['clusters']} {what}"]
            intervals.append([f"over {what}", *cells])
    return [*(line for lines in told for line in lines), *table(intervals)]


def _line(entry: Mapping[str, Any]) -> list[str]:
    first, second = entry["msle"]
    return [entry["label"], str(entry["rows"]), f"{first:.4f}", f"{second:.4f}", f"{first - second:+.4f}"]


def _verdict(one: str, other: str, over_videos: MeanInterval, over_channels: MeanInterval | None) -> str:
    """One sentence; positive differences speak for `other`.

    Videos of one channel are not independent, so only what holds over channels as well is told without reserve.
    """
    lead = over_videos.mean
    better, worse = (other, one) if lead > 0 else (one, other)
    size = f"{abs(lead):.{_digits(lead)}f}"
    decisive = over_videos if over_channels is None else over_channels
    if over_videos.sign and over_videos.sign == decisive.sign:
        low, high = sorted(abs(end) for end in (decisive.lower, decisive.upper))
        return f"{better} is better by {size} ({LEVEL_TOLD}: {low:.{_digits(lead)}f} to {high:.{_digits(lead)}f})"
    if over_videos.sign:
        return (
            f"{better} is better than {worse} by {size} on videos of these channels, but over channels the two cannot "
            f"be told apart ({_range(decisive)})"
        )
    return f"{one} and {other} cannot be told apart ({_range(over_videos)})"


def _range(interval: MeanInterval) -> str:
    digits = _digits(interval.upper - interval.lower)
    return f"{LEVEL_TOLD}: {interval.lower:+.{digits}f} to {interval.upper:+.{digits}f}"


def _digits(size: float) -> int:
    return 2 if abs(size) >= 0.1 else 4
