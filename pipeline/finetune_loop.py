"""One fold's training: steps over shuffled rows, a moving average that validates, and a state after every epoch."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64, Int64

from features.errors import CacheError, UsageError
from heads.differentiable import KnownRows
from heads.members import EpochRecord
from heads.metrics import mae, msle, rmse
from heads.simplex import canonical_gauge
from heads.targets import Standardisation
from pipeline.config import FinetuneConfig
from pipeline.finetune_batches import Batch, RowFeed
from pipeline.finetune_model import TunedModel, Values, mixed
from pipeline.finetune_state import FoldState

FACTORS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
"""How far from the frozen weights (0) to the tuned ones (1) the kept model may be."""

WARM_UP = 0.1
"""Share of the steps in which the learning rate rises; then it falls as a cosine."""
MEMORY = 0.1
"""The moving average remembers about so large a share of the steps."""
CLIP_NORM = 1.0


@dataclass(frozen=True, eq=False, kw_only=True)
class FoldTask:
    """What one fold learns from; rows are those of train_val.csv.

    `expected` is what the run that this begins with predicts for the validation rows, in log views; the untrained model
    may differ by `start_within`, in z.
    """

    fold: int
    train_rows: Int64[np.ndarray, " train"]
    val_rows: Int64[np.ndarray, " val"]
    log_views: Float64[np.ndarray, " video"]
    expected: Float64[np.ndarray, " val"]
    standardisation: Standardisation
    config: FinetuneConfig
    start_within: float
    folder: Path


def schedule(step: int, total: int) -> float:
    """Factor on the learning rates at a step (0, 1, ...).

    >>> [round(schedule(step, 20), 2) for step in (0, 1, 2, 11, 20)]
    [0.5, 1.0, 1.0, 0.5, 0.0]
    """
    rising = max(1, round(WARM_UP * total))
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, total - rising)))


class FoldTraining:
    """Trains one fold, from its last published epoch on."""

    def __init__(
        self, model: TunedModel, feed: RowFeed, known: KnownRows, task: FoldTask, tell: Callable[[int], None]
    ) -> None:
        self._model, self._feed, self._known, self._task, self._tell = model, feed, known, task, tell
        self._config = task.config
        self._rows_per_step = self._config.batch_size * self._config.accumulate
        self._total = self._config.epochs * -(-len(task.train_rows) // self._rows_per_step)
        self._optimizer = torch.optim.AdamW(model.parameter_groups, lr=self._config.lr)
        self._lrs = [group["lr"] for group in self._optimizer.param_groups]
        self._z = torch.from_numpy(task.standardisation.apply(task.log_views).astype(np.float32))
        self.start: Values = model.values()

    def run(self) -> FoldState:
        """Train to the end, or until nothing has improved for long enough; then try every factor."""
        state = FoldState.read(self._task.folder)
        if state is None:
            state = self._begun()
            state.write(self._task.folder)
        else:
            self._resume(state)
            self._tell(state.epoch * len(self._task.train_rows))
        while not self._is_done(state):
            self._epoch(state)
            state.write(self._task.folder)
        if not state.errors:
            state.errors = self._errors(state)
            state.write(self._task.folder)
        return state

    def finished(self) -> FoldState:
        """The state of a fold that was trained to its end."""
        state = FoldState.read(self._task.folder)
        if state is None or not state.errors:
            raise CacheError(f"{self._task.folder} holds no finished training: run `vp finetune` again")
        return state

    def _is_done(self, state: FoldState) -> bool:
        patience = self._config.patience
        return state.epoch >= self._config.epochs or 0 < patience <= state.epoch - state.best_epoch

    def _begun(self) -> FoldState:
        zeros = {name: torch.zeros_like(value) for name, value in self.start.items()}
        state = FoldState(0, 0, self.start, self.start, zeros, zeros, self.start, 0)
        z = self._validate(self.start)
        self._check_start(z)
        state.records.append(self._record(state, z))
        return state

    def _check_start(self, z: Float64[np.ndarray, " row"]) -> None:
        """The root mean square is compared, as one picture that bf16 rounds badly is no reason to stop."""
        difference = z - self._task.standardisation.apply(self._task.expected)
        off, within = float(np.sqrt(np.square(difference).mean())), self._task.start_within
        if not off <= within:
            raise CacheError(
                f"before training, fold {self._task.fold} must predict what its run predicted (within {within} "
                f"standard deviations), however it is {off:.3f} off: thumbnails or texts have changed since, so run "
                "`vp extract` and `vp train-heads` again"
            )

    def _resume(self, state: FoldState) -> None:
        self._model.put(state.values)
        for name, parameter in self._model.parameters.items():
            self._optimizer.state[parameter] = {
                "step": torch.tensor(float(state.steps)),
                "exp_avg": state.first[name].to(parameter.device),
                "exp_avg_sq": state.second[name].to(parameter.device),
            }

    def _epoch(self, state: FoldState) -> None:
        start, epoch, task = time.monotonic(), state.epoch + 1, self._task
        seed = np.random.SeedSequence((self._config.seed, task.fold, epoch))
        order = np.random.default_rng(seed).permutation(task.train_rows)
        torch.manual_seed(int(seed.generate_state(1)[0]))  # dropout, where an encoder has it
        augment = torch.Generator().manual_seed(int(seed.generate_state(2)[1]))
        average = {name: value.to(self._model.device, copy=True) for name, value in state.average.items()}
        seen = _Seen()
        self._model.training(on=True)
        batches = self._feed.batches(order, self._config.batch_size)
        for begin in range(0, len(order), self._rows_per_step):
            n_rows = min(self._rows_per_step, len(order) - begin)
            rate = self._step(batches, n_rows, state.steps, augment, seen)
            self._check_finite(seen.losses[-1], epoch)
            state.steps += 1
            _follow(average, self._model.parameters, state.steps, self._total)
        state.epoch, state.values = epoch, self._model.values()
        state.average = {name: value.cpu() for name, value in average.items()}
        moments = {name: self._optimizer.state[parameter] for name, parameter in self._model.parameters.items()}
        state.first = {name: moment["exp_avg"] for name, moment in moments.items()}
        state.second = {name: moment["exp_avg_sq"] for name, moment in moments.items()}
        z = self._validate(state.average)
        state.records.append(self._record(state, z, seen=seen, rate=rate, seconds=time.monotonic() - start))
        if state.records[-1].msle < min(record.msle for record in state.records[:-1]):
            state.best, state.best_epoch = state.average, epoch

    def _step(self, batches: Any, n_rows: int, step: int, augment: torch.Generator, seen: "_Seen") -> float:
        """One update from `n_rows` rows in one or more batches; returns the learning rate of the last layer."""
        factor = schedule(step, self._total)
        for group, lr in zip(self._optimizer.param_groups, self._lrs, strict=True):
            group["lr"] = lr * factor
        self._optimizer.zero_grad(set_to_none=True)
        squares, done = 0.0, 0
        while done < n_rows:
            batch = next(batches)
            loss = self._squares(batch, augment, seen) / n_rows
            loss.backward()  # type: ignore[no-untyped-call]  # torch has not annotated it
            squares += float(loss.detach())
            done += len(batch.rows)
            self._tell(len(batch.rows))
        seen.add_loss(squares, n_rows)
        self._fill_gradients()
        for which in (True, False):
            named = self._model.parameters.items()
            part = [parameter for name, parameter in named if name.startswith("heads.") is which]
            norm = torch.nn.utils.clip_grad_norm_(part, CLIP_NORM) if part else torch.zeros(())
            if not bool(torch.isfinite(norm)):
                seen.losses[-1] = (math.nan, n_rows)
        self._optimizer.step()
        return self._config.head_lr * factor if self._config.freeze_clip else self._config.lr * factor

    def _fill_gradients(self) -> None:
        """A parameter that no row of a step reached has a gradient of 0, so that all count the same steps."""
        for parameter in self._model.parameters.values():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)

    def _squares(self, batch: Batch, augment: torch.Generator, seen: "_Seen") -> torch.Tensor:
        known = self._known.take(batch.rows, self._model.device)
        vectors = self._model.vectors(batch, augment)
        z, outputs, present = self._model.z_and_terms(vectors, batch.present, known)
        seen.add_outputs(outputs, present)
        return (z - self._z[torch.from_numpy(batch.rows)].to(z.device)).square().sum()

    def _check_finite(self, loss: tuple[float, int], epoch: int) -> None:
        if not math.isfinite(loss[0]):
            config = self._config
            raise UsageError(
                f"training must stay finite, but loss or gradients did not for fold {self._task.fold} in epoch "
                f"{epoch}: lower --lr (now {config.lr:g}) or --head-lr (now {config.head_lr:g}), and remove "
                f"{self._task.folder.parent}, which holds what was trained before"
            )

    def _validate(self, values: Values) -> Float64[np.ndarray, " row"]:
        rows = self._task.val_rows
        with self._model.holding(values):
            embedded = self._model.embed(self._feed.batches(rows, self._config.batch_size), lambda _: self._tell(0))
            return self._model.predict(embedded, self._known.take(rows, self._model.device))

    def _errors(self, state: FoldState) -> dict[str, list[float]]:
        kept = {"best": state.best, "final": state.average}
        if state.best_epoch == state.epoch:
            kept = {"final": state.average}
        truth = self._task.standardisation.apply(self._task.log_views[self._task.val_rows])
        errors = {
            moment: [float(np.square(self._validate(mixed(self.start, values, f)) - truth).sum()) for f in FACTORS]
            for moment, values in kept.items()
        }
        return {"best": errors["final"]} | errors

    def _record(
        self,
        state: FoldState,
        z: Float64[np.ndarray, " row"],
        *,
        seen: "_Seen | None" = None,
        rate: float | None = None,
        seconds: float = 0.0,
    ) -> EpochRecord:
        task, scale = self._task, self._task.standardisation
        truth, predicted = task.log_views[task.val_rows], scale.undo(z)
        with self._model.holding(state.average):
            raw = self._model.heads.weights()
            shares = self._model.heads.shares.detach().double().cpu().numpy()
        names, trained = self._model.heads.modalities, self._model.heads.trained
        weights = raw if seen is None else seen.canonical(raw, shares, names, trained)
        return EpochRecord(
            fold=task.fold,
            epoch=state.epoch,
            train_loss=None if seen is None else seen.loss,
            val_loss=float(np.square(z - scale.apply(truth)).mean()),
            msle=msle(truth, predicted),
            mae=mae(truth, predicted),
            rmse=rmse(truth, predicted),
            learning_rate=rate,
            weights=dict(zip(names, weights.tolist(), strict=True)),
            raw_weights=dict(zip(names, raw.tolist(), strict=True)),
            seconds=seconds,
        )


class _Seen:
    """What an epoch has seen: losses of its steps, and what the heads gave."""

    def __init__(self) -> None:
        self.losses: list[tuple[float, int]] = []
        self._outputs: list[np.ndarray] = []
        self._present: list[np.ndarray] = []

    def add_loss(self, loss: float, n_rows: int) -> None:
        self.losses.append((loss, n_rows))

    def add_outputs(self, outputs: torch.Tensor, present: torch.Tensor) -> None:
        self._outputs.append(outputs.detach().float().cpu().numpy())
        self._present.append(present.detach().cpu().numpy())

    @property
    def loss(self) -> float:
        """Mean over the rows."""
        return sum(loss * rows for loss, rows in self.losses) / sum(rows for _, rows in self.losses)

    def canonical(
        self, raw: np.ndarray, shares: np.ndarray, names: tuple[str, ...], trained: tuple[str, ...]
    ) -> Float64[np.ndarray, " modality"]:
        """Canonical weights from what the heads gave while they learned; frozen ones keep their share."""
        outputs = np.concatenate(self._outputs, axis=1).astype(np.float64)
        present = np.concatenate(self._present, axis=1) > 0
        own = canonical_gauge(outputs, present, shares, 0.0).weights * shares.sum()
        moved = dict(zip(trained, own.tolist(), strict=True))
        weights = np.array([moved.get(name, weight) for name, weight in zip(names, raw.tolist(), strict=True)])
        weights /= weights.sum()
        return weights


@torch.no_grad()
def _follow(average: Values, parameters: Mapping[str, torch.Tensor], step: int, total: int) -> None:
    """Move the average towards the parameters; early on it forgets faster, or it would keep the start for long."""
    decay = min(math.exp(-1 / (MEMORY * total)), step / (step + 9))
    for name, value in average.items():
        value.lerp_(parameters[name].detach(), 1 - decay)
