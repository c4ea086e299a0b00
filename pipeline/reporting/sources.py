"""What a report is made from: a run's files, which must be whole, and what is left of its dataset."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float64, Int64

from features.config import DatasetConfig
from features.errors import CacheError, DataError, UsageError
from features.progress import Progress
from features.videos import VideoTable, VideoText, read_videos
from heads.folds import FoldPlan, from_table
from heads.targets import Target
from pipeline.dataset import TRAIN
from pipeline.inputs import Source
from pipeline.json_shape import Every, Maybe, Number, Whole, fault_in
from pipeline.oof import SavedOutOfFold, read_oof
from pipeline.run_record import read_metrics
from pipeline.runs import Run

FOLD_INFO_SHAPE = [
    {
        **dict.fromkeys(("fold", "train_size", "val_size", "best_epoch"), Whole()),
        **dict.fromkeys(("best_msle", "final_msle"), Number(0.0)),
    }
]
EPOCH_SHAPE, NUMBERS = {"epoch": Whole()}, Every(Maybe(Number()))
"""What each line on an epoch has to hold, and what all of its values are."""


class Notices:
    """What a report has to do without: told at once, and kept for the page, which holds no path."""

    def __init__(self, progress: Progress) -> None:
        self.texts: list[str] = []
        self._progress = progress

    def __call__(self, text: str, reason: object = "") -> None:
        """Tell one thing; the reason, which may name files, goes to the terminal alone."""
        self.texts.append(text)
        self._progress.warn(f"{text} ({reason})" if reason else text)


@dataclass(frozen=True, eq=False)
class RunFiles:
    """A run whose every file is the one it was saved with."""

    run: Run
    metrics: Mapping[str, Any]
    oof: SavedOutOfFold
    fold_info: Sequence[Mapping[str, Any]]
    epochs: Sequence[Mapping[str, Any]]

    @property
    def target(self) -> Target:
        """The scale of the run."""
        return Target(self.run.part("target"))

    @property
    def sources(self) -> list[Source]:
        """Where each modality came from."""
        return [Source(**source) for source in self.run.part("sources")]

    @property
    def plan(self) -> FoldPlan:
        """Who validated what."""
        return from_table(self.oof.fold_of, expanding=bool(self.run.part("folds")["expanding"]))


def read_run_files(run: Run) -> RunFiles:
    """Read a run after checking the bytes of every file that it lists.

    Raises
    ------
    CacheError
        A file is missing, changed, or not what vp writes.
    """
    try:
        for name in run.part("files"):
            run.verified(name)
        return RunFiles(
            run=run, metrics=read_metrics(run), oof=read_oof(run), fold_info=_fold_info(run), epochs=_epochs(run)
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CacheError(
            f"{run.folder} is damaged ({type(error).__name__}: {error}): run `{run.command}` again"
        ) from error


def _fold_info(run: Run) -> list[dict[str, Any]]:
    table = pd.read_csv(run.verified("fold_info.csv"))
    rows = [dict(zip(table.columns, row, strict=True)) for row in table.itertuples(index=False)]
    if fault := fault_in(rows, FOLD_INFO_SHAPE, "fold_info.csv"):
        raise ValueError(fault)
    return rows


def _epochs(run: Run) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl that tell of an epoch."""
    lines = run.verified("metrics.jsonl").read_text(encoding="utf-8").splitlines()
    epochs = [record for line in lines if "epoch" in (record := json.loads(line))]
    if fault := fault_in(epochs, [EPOCH_SHAPE], "metrics.jsonl") or fault_in(epochs, [NUMBERS], "metrics.jsonl"):
        raise ValueError(fault)
    return epochs


@dataclass(frozen=True, eq=False)
class Videos:
    """The dataset, as far as it still holds the run's videos; `row_of` is -1 for one that is gone."""

    table: VideoTable
    row_of: Int64[np.ndarray, " video"]

    def channels(self) -> list[str]:
        """The channel of every video of the run; "" where unknown."""
        return [self.table.channel[row] if row >= 0 else "" for row in self.row_of]

    def years(self) -> Int64[np.ndarray, " video"]:
        """The year of every video of the run; 0 where unknown."""
        return np.where(self.row_of >= 0, self.table.year[self.row_of], 0).astype(np.int64)

    def ages(self, reference: np.datetime64) -> Float64[np.ndarray, " video"]:
        """The age in years of every video of the run; NaN where unknown."""
        ages: Float64[np.ndarray, " video"] = self.table.ages_years(reference)[self.row_of]
        ages[self.row_of < 0] = np.nan
        return ages

    def text(self, video: int) -> VideoText | None:
        """Title and description of one video of the run."""
        row = int(self.row_of[video])
        return self.table.texts(row, row + 1)[0] if row >= 0 else None

    def published(self, video: int) -> str:
        """The day of one video of the run, its year where only that is known, or nothing."""
        row = int(self.row_of[video])
        if row < 0:
            return ""
        day, year = self.table.published[row], int(self.table.year[row])
        return str(year or "") if np.isnat(day) else str(day.astype("datetime64[D]"))


def find_videos(config: DatasetConfig, files: RunFiles, notices: Notices) -> Videos | None:
    """The run's videos in the dataset; None, and a notice, where it cannot be read."""
    try:
        table = read_videos(config, TRAIN, target_must_be_non_negative=files.target.kind == "log1p")
    except (DataError, UsageError) as error:
        notices("The dataset could not be read: no titles, thumbnails, years, channels and ages.", error)
        return None
    known = {id_: row for row, id_ in enumerate(table.ids)}
    row_of = np.array([known.get(id_, -1) for id_ in files.oof.ids], dtype=np.int64)
    _tell_changes(table, row_of, files, notices)
    return Videos(table, row_of)


def _tell_changes(table: VideoTable, row_of: Int64[np.ndarray, " video"], files: RunFiles, notices: Notices) -> None:
    there = row_of >= 0
    if gone := int((~there).sum()):
        notices(f"Of the run's {len(row_of):,} videos, no longer in the dataset: {gone:,}.")
    if new := len(table) - int(there.sum()):
        notices(f"Videos in the dataset that were not there when the run was trained: {new:,}.")
    if table.views is not None and there.any():
        log_views = files.target.to_log(table.views[row_of[there]].astype(np.float64))
        if changed := int((~np.isclose(log_views, files.oof.log_views[there], rtol=1e-9)).sum()):
            notices(f"Videos whose views have changed since: {changed:,}. Every number is of the views trained on.")
