"""The files of a run, whatever trained it."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd

from features import durable
from features.videos import VideoTable
from heads.members import FittedModel, Training
from pipeline.checkpoint import Checkpoint, write_checkpoint
from pipeline.csv_text import publish_table
from pipeline.model_card import FILE as MODEL_CARD
from pipeline.model_card import model_card
from pipeline.runs import checkpoint_path, seal
from pipeline.scores import OutOfFold, fold_info


def write_run(
    aside: Path,
    *,
    facts: Mapping[str, Any],
    metrics: Mapping[str, Any],
    training: Training[FittedModel],
    oof: OutOfFold,
    videos: VideoTable,
) -> None:
    """Both moments of every member, folds, predictions, metrics and the card; run.json last, which holds `facts`."""
    name, encoders, reference = facts["name"], facts["encoders"], facts["reference_date"]
    alone = len(training.seeds) == 1
    for member in training.members:
        for moment, heads in (("best", member.best), ("final", member.final)):
            path = checkpoint_path(aside, name, member.fold, moment, None if alone else member.seed)
            write_checkpoint(path, Checkpoint(heads, name, member.fold, moment, encoders, reference, member.seed))
    publish_table(aside / "folds.csv", pd.DataFrame({"id": videos.ids, "fold": oof.plan.fold_of}))
    publish_table(aside / "fold_info.csv", fold_info(training, metrics))
    publish_table(aside / "oof.csv", oof.table(videos.ids, training.members[0].best.modalities))
    durable.publish(aside / "metrics.json", json.dumps(metrics, indent=1) + "\n")
    durable.publish(aside / MODEL_CARD, model_card(facts, metrics, videos))
    seal(aside, {**facts, "created_utc": datetime.now(UTC).isoformat(timespec="seconds")})
