"""The record of a training: one JSON line per fold and epoch, always; the same to Weights & Biases if asked for.

The mode is decided before the start and never falls back: a second start in offline mode after a failed online one
hangs (wandb issues 8003, 9865). A tracking failure never costs a result: it is told, and the training goes on.
"""

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from features import durable
from features.progress import Progress
from heads.members import EpochRecord, FittedModel, Training

PROJECT = "vp"


class RunLog:
    """Writes records under the keys `fold_0/weights/image`, `fold_0/val/msle`, `ensemble/...`."""

    def __init__(
        self, append: Callable[[str], None], wandb_run: Any, progress: Progress, first_seed: int | None = None
    ) -> None:
        self._append, self._wandb, self._progress, self._first_seed = append, wandb_run, progress, first_seed

    def key(self, fold: int, seed: int | None) -> str:
        """What the keys of a member begin with: `fold_0` for the first seed, `fold_0/seed_43` for another."""
        return f"fold_{fold}" if seed in (None, self._first_seed) else f"fold_{fold}/seed_{seed}"

    def epoch(self, record: EpochRecord) -> None:
        """One member after one epoch."""
        fold = self.key(record.fold, record.seed)
        values: dict[str, Any] = {
            "epoch": record.epoch,
            f"{fold}/train/loss_epoch": record.train_loss,
            f"{fold}/val/loss_epoch": record.val_loss,
            f"{fold}/val/msle": record.msle,
            f"{fold}/val/mae": record.mae,
            f"{fold}/val/rmse": record.rmse,
            f"{fold}/learning_rate": record.learning_rate,
        }
        values |= {f"{fold}/weights/{modality}": weight for modality, weight in record.weights.items()}
        values |= {f"{fold}/raw_weights/{modality}": weight for modality, weight in record.raw_weights.items()}
        self._write(values)
        if self._wandb is not None:
            self._guarded(lambda: self._wandb.log(dict(values)))

    def results(self, training: Training[FittedModel], metrics: Mapping[str, Any]) -> None:
        """What every member and the whole run ended with; `metrics` are those of metrics.json."""
        for member in training.members:
            fold, variance = self.key(member.fold, member.seed), member.best.standardisation.sd**2
            values = {"best_epoch": member.best_epoch, "best_msle": member.best_msle}
            values["best_val_loss"] = member.best_msle / variance
            self.result({f"{fold}/{name}": value for name, value in values.items()})
        names = ("oof_msle", "oof_msle_final", "oof_msle_constant", "seconds")
        weights = {f"ensemble/weights/{modality}": weight for modality, weight in metrics["weights"].items()}
        self.result({f"ensemble/{name}": metrics[name] for name in names} | weights)

    def result(self, values: Mapping[str, Any]) -> None:
        """What a fold or the whole run ended with."""
        self._write(values)
        if self._wandb is not None:  # a result is one number, no curve: it goes to the summary alone
            self._guarded(lambda: self._wandb.summary.update(dict(values)))

    def _write(self, values: Mapping[str, Any]) -> None:
        self._append(json.dumps(values) + "\n")

    def _guarded(self, call: Any) -> None:
        try:
            call()
        except Exception as error:  # noqa: BLE001 - whatever wandb raises must not cost the training
            self._progress.warn(f"Weights & Biases failed ({error}); {PROJECT} goes on without it")
            self._wandb = None


@contextlib.contextmanager
def run_log(
    file: Path,
    *,
    mode: str,
    name: str,
    folder: Path,
    config: Mapping[str, Any],
    progress: Progress,
    first_seed: int | None = None,
) -> Iterator[RunLog]:
    """Open the record of a training; `folder` is where wandb keeps its own files."""
    wandb_run = None if mode == "disabled" else _start_wandb(mode, name, folder, config, progress)
    failed = True
    try:
        with durable.lines_of(file) as append:
            yield RunLog(append, wandb_run, progress, first_seed)
        failed = False
    finally:
        if wandb_run is not None:
            _finish(wandb_run, exit_code=int(failed))


def _start_wandb(mode: str, name: str, folder: Path, config: Mapping[str, Any], progress: Progress) -> Any:
    run: Any = None
    try:
        import wandb  # noqa: PLC0415 - heavy, and only needed when asked for

        folder.mkdir(parents=True, exist_ok=True)
        run = wandb.init(project=PROJECT, name=name, mode=mode, dir=folder, config=dict(config))  # type: ignore[arg-type]
        run.define_metric("epoch")
        run.define_metric("fold_*", step_metric="epoch")
    except Exception as error:  # noqa: BLE001 - not installed, no network, no key, no disk: training matters more
        progress.warn(f"Weights & Biases did not start ({error}): metrics.jsonl is written all the same")
        if run is not None:
            _finish(run, exit_code=1)
        return None
    return run


def _finish(run: Any, exit_code: int) -> None:
    with contextlib.suppress(Exception):  # the result is on disk; wandb has told what it could
        run.finish(exit_code=exit_code)
