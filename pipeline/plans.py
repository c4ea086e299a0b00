"""Who validates what: the fold plan that a run asks for, and what would make its score flatter."""

import re
import time as clock
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64, Int32, UInt8

from features.csv_rows import open_csv, shown
from features.errors import DataError, UsageError
from features.progress import Progress
from features.videos import VideoTable
from heads.folds import FoldPlan, duplicates_across_folds, from_table, group, kfold, stratified, time
from heads.inputs import Block, Inputs
from heads.neighbours import NEAR, near_duplicates_across_folds
from pipeline.config import TrainHeadsConfig

SHOWN = 3

_FOLD = re.compile(r"-?\d{1,6}", re.ASCII)


def make_plan(
    config: TrainHeadsConfig, split: str, videos: VideoTable, log_views: Float64[np.ndarray, " video"]
) -> FoldPlan:
    """The fold plan of a kind of split, for these videos.

    Raises
    ------
    UsageError
        `--split file` without `--fold-file`, or the other way round.
    DataError, UnfitDataError
        The file does not give every video a fold; the rows cannot be split so.
    """
    if (split == "file") != (config.fold_file is not None) and split == config.split:
        raise UsageError("--split file and --fold-file FOLDS.csv belong together")
    if split == "stratified":
        return stratified(log_views, config.folds, config.seed)
    if split == "group":
        return group(videos.channel, videos.ids, config.folds, config.seed)
    if split == "time":
        return time(videos.published.astype("datetime64[s]").astype(np.int64), config.folds)
    if config.fold_file is not None and split == "file":
        return from_table(read_folds(config.fold_file, videos.ids))
    return kfold(len(videos), config.folds, config.seed)


def read_folds(path: Path, ids: Sequence[str]) -> Int32[np.ndarray, " video"]:
    """The fold of every video, from a CSV file with the columns id and fold (-1: never validates).

    Raises
    ------
    DataError
        The file is not such a table, names an id twice, or lacks a video.
    """
    csv = open_csv(path, named_by="--fold-file names it, relative to the current folder")
    id_at, fold_at = csv.position("id"), csv.position("fold")
    if id_at is None or fold_at is None:
        raise DataError(f"{path} must have the columns 'id' and 'fold', however its columns are: {csv.names}")
    fold_of: dict[str, int] = {}
    for row in csv.rows():
        id_, text = row.fields[id_at], row.fields[fold_at].strip()
        if id_ in fold_of or not _FOLD.fullmatch(text):
            fault = "the id occurs again" if id_ in fold_of else f"a fold is a whole number, however: {shown(text)}"
            raise DataError(f"{path}, line {row.line}, {shown(id_)}: {fault}")
        fold_of[id_] = int(text)
    missing = [id_ for id_ in ids if id_ not in fold_of]
    if missing:
        listed = ", ".join(map(shown, missing[:SHOWN]))
        raise DataError(f"{path} must give every video a fold, however {len(missing)} have none: {listed}")
    return np.array([fold_of[id_] for id_ in ids], dtype=np.int32)


def tell_duplicates(
    plan: FoldPlan, videos: VideoTable, thumbnails: UInt8[np.ndarray, "video 16"] | None, progress: Progress
) -> dict[str, int]:
    """Warn of equal titles and thumbnails on both sides of a fold: its member has seen what it is scored on."""
    found = {"title": duplicates_across_folds(videos.title_digest, plan)}
    if thumbnails is not None:
        found["thumbnail"] = duplicates_across_folds(thumbnails, plan)
    for what, duplicates in found.items():
        if duplicates.n_groups:
            examples = "; ".join(", ".join(shown(videos.ids[row]) for row in rows) for rows in duplicates.first[:SHOWN])
            progress.warn(
                f"{duplicates.n_groups} {what}s occur on both sides of a fold, which flatters the score ({examples}): "
                "--split group keeps a channel together"
            )
    return {what: duplicates.n_groups for what, duplicates in found.items()}


def tell_near_duplicates(plan: FoldPlan, ids: Sequence[str], inputs: Inputs, progress: Progress) -> dict[str, Any]:
    """Warn of embeddings that are nearly equal on both sides of a fold, as `tell_duplicates` does of equal ones."""
    found: dict[str, Any] = {}
    started = clock.monotonic()
    for block in inputs.blocks:
        if not isinstance(block, Block) or block.knotted:
            continue
        near = near_duplicates_across_folds(block, plan)
        closest = [{"id": ids[row], "like": ids[other], "cosine": cosine} for row, other, cosine in near.first]
        found[block.modality] = {"rows": near.n_rows, "compared": near.n_compared, "closest": closest}
        if near.n_rows:
            once = dict.fromkeys((min(row, other), max(row, other)) for row, other, _ in near.first)
            pairs = [f"{shown(ids[row])}, {shown(ids[other])}" for row, other in once][:SHOWN]
            progress.warn(
                f"{near.n_rows} of {near.n_compared} {block.modality} vectors are nearly the same as one on the other "
                f"side of a fold (cosine above {NEAR:g}), which flatters the score ({'; '.join(pairs)})"
            )
    seconds = clock.monotonic() - started
    progress.note(f"near-duplicates: every pair across folds compared in {seconds:.1f} s")
    return found | {"cosine_above": NEAR, "seconds": seconds}
