"""`vp train-heads`: cache -> run (heads of every fold, out-of-fold predictions, metrics)."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float64

from features import durable
from features.encoders import cache_tag
from features.errors import DataError
from features.progress import Progress
from features.videos import VideoTable
from heads.folds import FoldPlan, kfold
from heads.inputs import Inputs
from heads.metrics import msle, score
from heads.targets import Target
from heads.training import EpochRecord, TrainedMember, train_members
from pipeline.checkpoint import Checkpoint, write_checkpoint
from pipeline.config import TrainHeadsConfig
from pipeline.dataset import Dataset, read_dataset
from pipeline.devices import choose_device
from pipeline.inputs import Source, choose_sources, gather
from pipeline.outcome import Outcome, table
from pipeline.runs import building, checkpoint_path, seal
from pipeline.settings import repeated_flags, to_plain
from pipeline.tracking import RunLog, run_log
from pipeline.workspace import Workspace


def train_heads(config: TrainHeadsConfig, progress: Progress) -> Outcome:
    """Train one member per fold on the cached embeddings, and keep everything that tells how good they are.

    Raises
    ------
    UsageError, DataError, UnfitDataError, StorageError, LockedError, CacheError
        See `pipeline.errors` for what each means and its exit code.
    """
    start = time.monotonic()
    workspace = Workspace(config.work)
    folder = workspace.run(config.name)
    dataset = read_dataset(config, progress, non_negative=config.target == "log1p")
    reference = _reference_date(config, dataset, progress)
    tags = [cache_tag(name) for name in config.model]
    has_age = not np.isnat(reference)
    sources = choose_sources(workspace, tags, config.modalities, has_age=has_age)
    inputs, encoders = gather(workspace, sources, dataset.train, reference)
    log_views = Target(config.target).to_log(_views(dataset.train))
    plan = kfold(len(dataset.train), config.folds, config.seed)
    training = _Training(config, dataset.train, inputs, log_views, plan, sources, encoders, reference)
    with building(folder) as aside:
        metrics = training.run(aside, workspace, progress, start)
    return _outcome(config, folder, metrics, has_test=dataset.test is not None)


def _views(videos: VideoTable) -> Float64[np.ndarray, " video"]:
    if videos.views is None:
        raise DataError(f"{videos.path} has no column of views to learn from")
    return videos.views.astype(np.float64)


def _reference_date(config: TrainHeadsConfig, dataset: Dataset, progress: Progress) -> np.datetime64:
    newest = dataset.newest()
    if config.reference_date is None:
        return newest
    reference = np.datetime64(config.reference_date, "s")
    if not np.isnat(newest) and reference < newest:
        progress.warn(
            f"--reference-date {config.reference_date} is older than the newest video: some ages are negative"
        )
    return reference


@dataclass(frozen=True, eq=False)
class _Training:
    config: TrainHeadsConfig
    videos: VideoTable
    inputs: Inputs
    log_views: Float64[np.ndarray, " video"]
    plan: FoldPlan
    sources: Sequence[Source]
    encoders: Mapping[str, str]
    reference: np.datetime64

    def run(self, aside: Path, workspace: Workspace, progress: Progress, start: float) -> dict[str, Any]:
        """Train, and write the whole run into `aside`; returns its metrics."""
        device = choose_device(self.config.device)
        absent = {block.modality: int((~block.present).sum()) for block in self.inputs.blocks}
        for modality, count in absent.items():
            if count:
                progress.note(f"{modality}: absent for {count} of {len(self.videos)} videos, counted as its mean there")
        with run_log(
            aside / "metrics.jsonl",
            mode=self.config.wandb,
            name=self.config.name,
            folder=workspace.root,
            config=self._facts(),
            progress=progress,
        ) as log:
            members = self._train(device, log, progress)
            metrics = self._metrics(members, time.monotonic() - start)
            _log_results(log, members, metrics)
        self._write(aside, members, metrics)
        return metrics

    def _train(self, device: str, log: RunLog, progress: Progress) -> list[TrainedMember]:
        def on_epoch(record: EpochRecord) -> None:
            log.epoch(record)
            progress.advance(1)

        progress.begin(f"{self.config.head} heads on {device}", self.config.epochs * self.plan.n_folds, "epochs")
        members = train_members(self.inputs, self.log_views, self.plan, self.config, device=device, on_epoch=on_epoch)
        progress.end()
        return members

    def _out_of_fold(self, members: Sequence[TrainedMember], moment: str) -> Float64[np.ndarray, " video"]:
        """Each row as predicted by the member that did not train on it; NaN where none validated it."""
        predicted = np.full(len(self.videos), np.nan)
        for member in members:
            rows = self.plan.val_rows(member.fold)
            predicted[rows] = getattr(member, moment).predict(self.inputs.take(rows))
        return predicted

    def _metrics(self, members: Sequence[TrainedMember], seconds: float) -> dict[str, Any]:
        validated = self.plan.fold_of >= 0
        truth = self.log_views[validated]
        best, final = (self._out_of_fold(members, moment)[validated] for moment in ("best", "final"))
        weights = np.array([member.best.weights for member in members])
        modalities = self.inputs.modalities
        return {
            "run": self.config.name,
            "oof_msle": msle(truth, best),
            "oof_msle_final": msle(truth, final),
            "oof_msle_constant": self._constant_msle(),
            "fold_msle": [member.best_msle for member in members],
            "fold_msle_final": [member.final_msle for member in members],
            "weights": dict(zip(modalities, weights.mean(axis=0).tolist(), strict=True)),
            "weights_sd": dict(zip(modalities, weights.std(axis=0).tolist(), strict=True)),
            "fold_weights": [dict(zip(modalities, row, strict=True)) for row in weights.tolist()],
            "oof": score(truth, best),
            "oof_final": score(truth, final),
            "rows": len(self.videos),
            "seconds": seconds,
        }

    def _constant_msle(self) -> float:
        """Error of predicting each fold with the mean of its training rows: what any model has to beat."""
        squares = [
            (self.log_views[self.plan.val_rows(fold)] - self.log_views[self.plan.train_rows(fold)].mean()) ** 2
            for fold in range(self.plan.n_folds)
        ]
        return float(np.concatenate(squares).mean())

    def _write(self, aside: Path, members: Sequence[TrainedMember], metrics: Mapping[str, Any]) -> None:
        for member in members:
            for moment, heads in (("best", member.best), ("final", member.final)):
                checkpoint = Checkpoint(
                    heads, self.config.name, member.fold, moment, self.encoders, str(self.reference)
                )
                write_checkpoint(checkpoint_path(aside, self.config.name, member.fold, moment), checkpoint)
        folds = pd.DataFrame({"id": self.videos.ids, "fold": self.plan.fold_of})
        _publish_csv(aside / "folds.csv", folds)
        _publish_csv(aside / "fold_info.csv", _fold_info(members))
        _publish_csv(aside / "oof.csv", self._oof_table(folds, members))
        durable.publish(aside / "metrics.json", json.dumps(metrics, indent=1) + "\n")
        seal(aside, self._facts() | {"created_utc": datetime.now(UTC).isoformat(timespec="seconds")})

    def _oof_table(self, folds: pd.DataFrame, members: Sequence[TrainedMember]) -> pd.DataFrame:
        contributions = np.full((len(self.inputs.modalities), len(self.videos)), np.nan)
        for member in members:
            rows = self.plan.val_rows(member.fold)
            contributions[:, rows] = member.best.contributions(self.inputs.take(rows))
        columns = {
            "log_views": self.log_views,
            "log_pred_best": self._out_of_fold(members, "best"),
            "log_pred_final": self._out_of_fold(members, "final"),
        }
        names = [f"contribution_{modality}" for modality in self.inputs.modalities]
        return folds.assign(**columns, **dict(zip(names, contributions, strict=True)))

    def _facts(self) -> dict[str, Any]:
        """What run.json says besides the digests of the files."""
        return {
            "name": self.config.name,
            "config": to_plain(self.config) | {"model": list(self.encoders)},
            "modalities": list(self.inputs.modalities),
            "sources": [vars(source) for source in self.sources],
            "encoders": dict(self.encoders),
            "reference_date": str(self.reference),
            "target": self.config.target,
            "folds": {
                "split": self.plan.split,
                "n": self.plan.n_folds,
                "seed": self.plan.seed,
                "digest": self.plan.digest(self.videos.ids),
            },
            "rows": len(self.videos),
            "training_log_views": _distribution(self.log_views),
            "versions": {name: version(name) for name in ("vp", "torch", "numpy", "scikit-learn", "safetensors")},
        }


def _publish_csv(path: Path, frame: pd.DataFrame) -> None:
    durable.publish(path, frame.to_csv(index=False, lineterminator="\n"))


def _fold_info(members: Sequence[TrainedMember]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "fold": member.fold,
            "train_size": member.train_size,
            "val_size": member.val_size,
            "best_epoch": member.best_epoch,
            "best_msle": member.best_msle,
            "final_msle": member.final_msle,
        }
        for member in members
    )


def _distribution(log_views: Float64[np.ndarray, " video"]) -> dict[str, float]:
    return {"mean": float(log_views.mean()), "sd": float(log_views.std()), "max": float(log_views.max())}


def _log_results(log: RunLog, members: Sequence[TrainedMember], metrics: Mapping[str, Any]) -> None:
    for member in members:
        best = member.history[member.best_epoch - 1]
        fold = f"fold_{member.fold}"
        log.result(
            {
                f"{fold}/best_epoch": member.best_epoch,
                f"{fold}/best_val_loss": best.val_loss,
                f"{fold}/best_msle": member.best_msle,
            }
        )
    names = ("oof_msle", "oof_msle_final", "oof_msle_constant", "seconds")
    weights = {f"ensemble/weights/{modality}": weight for modality, weight in metrics["weights"].items()}
    log.result({f"ensemble/{name}": metrics[name] for name in names} | weights)


def _outcome(config: TrainHeadsConfig, folder: Path, metrics: Mapping[str, Any], *, has_test: bool) -> Outcome:
    folds = range(len(metrics["fold_msle"]))
    lines = [["", *[f"fold {fold}" for fold in folds], "all"]]
    lines.append(["MSLE best epoch", *[f"{value:.4f}" for value in metrics["fold_msle"]], f"{metrics['oof_msle']:.4f}"])
    final = metrics["fold_msle_final"]
    lines.append(["MSLE last epoch", *[f"{value:.4f}" for value in final], f"{metrics['oof_msle_final']:.4f}"])
    for modality, mean in metrics["weights"].items():
        per_fold = [f"{weights[modality]:.3f}" for weights in metrics["fold_weights"]]
        lines.append([f"weight {modality}", *per_fold, f"{mean:.3f} ±{metrics['weights_sd'][modality]:.3f}"])
    told = f"out-of-fold MSLE {metrics['oof_msle']:.4f}; a constant scores {metrics['oof_msle_constant']:.4f}"
    done = f"{config.name}: {metrics['rows']} videos in {metrics['seconds']:.1f} s -> {folder}"
    which = f" --run {config.name}" if config.name != TrainHeadsConfig.name else ""
    following = f"vp submit --method mean{which}{repeated_flags(config)}" if has_test else ""
    return Outcome([*table(lines), told, done], metrics, following)
