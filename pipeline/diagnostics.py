"""What to hold beside a run's score.

The linear head under random, grouped and time-ordered folds, where the errors are, and how the test videos differ from
those that the heads learned from.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from features.videos import VideoTable
from heads.chunks import Chunks
from heads.diagnostics import adversarial_auc, linear_msle
from heads.errors import UnfitDataError
from heads.inputs import Inputs
from pipeline.config import TrainHeadsConfig
from pipeline.outcome import table
from pipeline.plans import make_plan
from pipeline.scores import OutOfFold

SPLITS = ("kfold", "group", "time")
CHANNELS_SHOWN = 6
MIN_CHANNEL_ROWS = 10

AUC_ROWS = 20_000
"""Rows of each table that tell test videos from training videos where the vectors are not in memory."""


def split_scores(config: TrainHeadsConfig, videos: VideoTable, inputs: Chunks, oof: OutOfFold) -> dict[str, Any]:
    """Out-of-fold MSLE of the linear head by split; the reason where these videos cannot be split so."""
    scores: dict[str, Any] = {}
    for split in SPLITS:
        try:
            plan = make_plan(replace(config, fold_file=None), split, videos, oof.log_views)
            scores[split] = linear_msle(inputs, oof.log_views, plan, config.seed)
        except UnfitDataError as error:
            scores[split] = str(error)
    return scores


def error_by(labels: Sequence[Any], oof: OutOfFold) -> list[dict[str, Any]]:
    """Rows, MSLE and mean error (prediction less truth, log units) of the final prediction by label, largest first."""
    rows = oof.validated
    errors = pd.DataFrame({"label": pd.Series(labels, dtype=object), "error": oof.final - oof.log_views})[rows]
    found = [
        {"label": label, "rows": len(own), "msle": float((own**2).mean()), "bias": float(own.mean())}
        for label, own in errors.groupby("label", sort=True)["error"]
    ]
    return sorted(found, key=lambda entry: -entry["rows"])


def diagnose(
    config: TrainHeadsConfig, videos: VideoTable, inputs: Chunks, test: Chunks | None, oof: OutOfFold
) -> dict[str, Any]:
    """All of it, ready for JSON; `test` is what the heads would see of the test videos, None if there are none."""
    return {
        "linear_msle_by_split": split_scores(config, videos, inputs, oof),
        "error_by_year": sorted(error_by(videos.year.tolist(), oof), key=lambda entry: entry["label"]),
        "error_by_channel": error_by(videos.channel, oof),
        "test_against_train_auc": {} if test is None else _auc(_sampled(inputs), _sampled(test), config.seed),
    }


def _sampled(chunks: Chunks) -> Inputs:
    """The inputs that are in memory; of others `AUC_ROWS` rows, evenly spaced, which settle an AUC within 0.01."""
    if isinstance(chunks, Inputs):
        return chunks
    n_rows = chunks.outline.n_videos
    return chunks.take(np.unique(np.linspace(0, n_rows - 1, min(n_rows, AUC_ROWS)).astype(np.int64)))


def _auc(inputs: Inputs, test: Inputs, seed: int) -> dict[str, float]:
    try:
        return adversarial_auc(inputs, test, seed)
    except UnfitDataError:  # a handful of test videos: nothing can be said of them, and nothing is lost by that
        return {}


def told(diagnostics: dict[str, Any]) -> list[str]:
    """The lines that are printed of it."""
    splits = diagnostics["linear_msle_by_split"]
    lines = [["linear head, MSLE by split", *splits]]
    lines.append(["", *(f"{score:.3f}" if isinstance(score, float) else "-" for score in splits.values())])
    summary = table(lines)
    if auc := diagnostics["test_against_train_auc"]:
        lines = [["test against train, AUC", *auc], ["", *(f"{value:.2f}" for value in auc.values())]]
        summary += ["", *table(lines)]
    summary += ["", *_errors("year", diagnostics["error_by_year"])]
    channels = [entry for entry in diagnostics["error_by_channel"] if entry["rows"] >= MIN_CHANNEL_ROWS]
    if len(channels) > 1:
        summary += ["", *_errors("channel", channels[:CHANNELS_SHOWN])]
    return summary


def _errors(name: str, entries: Sequence[dict[str, Any]]) -> list[str]:
    cells = [[f"error by {name}", "rows", "MSLE", "bias"]]
    cells += [[e["label"] or "-", str(e["rows"]), f"{e['msle']:.2f}", f"{e['bias']:+.2f}"] for e in entries]
    return table(cells)
