"""One fold's training: epochs of steps, a moving average that validates, and a state after every epoch."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64

from features.errors import CacheError
from features.torch_encoder import sent
from heads.differentiable import KnownRows
from heads.members import EpochRecord
from heads.metrics import mae, msle, rmse
from pipeline.tuning.batches import RowFeed
from pipeline.tuning.model import TunedModel
from pipeline.tuning.state import FoldState
from pipeline.tuning.steps import FoldTask, Seen, Steps
from pipeline.tuning.towers import Values, mixed

FACTORS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
"""How far from the frozen weights (0) to the tuned ones (1) the kept model may be."""


class FoldTraining:
    """Trains one fold, from its last published epoch on."""

    def __init__(
        self, model: TunedModel, feed: RowFeed, known: KnownRows, task: FoldTask, tell: Callable[[int], None]
    ) -> None:
        self._model, self._feed, self._known, self._task, self._tell = model, feed, known, task, tell
        self._steps = Steps(model, feed, known, task, tell)
        self.start: Values = model.values()

    def run(self) -> FoldState:
        """Train to the end, or until nothing has improved for long enough; then try every factor."""
        state = FoldState.read(self._task.folder)
        if state is None:
            state = self._begun()
        else:
            self._tell(state.epoch * len(self._task.train_rows))
            if state.errors:
                return state
            self._check_start(self._validate(self.start).z)  # thumbnails may have changed since
            self._steps.resume(state)
        while not self._is_done(state):
            self._epoch(state)
            state.write(self._task.folder)
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
        config = self._task.config
        return state.epoch >= config.epochs or 0 < config.patience <= state.epoch - state.best_epoch

    def _begun(self) -> FoldState:
        state = FoldState(epoch=0, steps=0, average=self.start, best=self.start, best_epoch=0)
        validated = self._validate(self.start)
        self._check_start(validated.z)
        state.records.append(self._record(state, validated))
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

    def _epoch(self, state: FoldState) -> None:
        start = time.monotonic()
        seen = self._steps.epoch(state)
        validated = self._validate(state.average)
        self._task.require_finite(float(np.abs(validated.z).max()), state.epoch)
        record = self._record(state, validated, seen=seen, seconds=time.monotonic() - start)
        if record.msle < min(before.msle for before in state.records):
            state.best, state.best_epoch = state.average, state.epoch
        state.records.append(record)

    def _validate(self, values: Values) -> "_Validated":
        rows, heads = self._task.val_rows, self._model.heads
        with self._model.holding(values):
            embedded = self._model.embed(self._feed, rows, lambda _: self._tell(0))
            z = self._model.predict(embedded, self._known.take(sent(torch.from_numpy(rows), self._model.device)))
            return _Validated(z, heads.weights(), heads.shares.detach().double().cpu().numpy())

    def _errors(self, state: FoldState) -> dict[str, list[float]]:
        final = self._errors_towards(state, state.average, state.epoch)
        best = final if state.best_epoch == state.epoch else self._errors_towards(state, state.best, state.best_epoch)
        return {"best": best, "final": final}

    def _errors_towards(self, state: FoldState, tuned: Values, epoch: int) -> list[float]:
        """Sum of squared errors at each factor; both ends were validated when their epochs ended."""
        truth = self._task.standardisation.apply(self._task.log_views[self._task.val_rows])
        between = [
            float(np.square(self._validate(mixed(self.start, tuned, factor)).z - truth).sum())
            for factor in FACTORS[1:-1]
        ]
        first, last = (state.records[number].val_loss * len(truth) for number in (0, epoch))
        return [first, *between, last]

    def _record(
        self,
        state: FoldState,
        validated: "_Validated",
        *,
        seen: Seen | None = None,
        seconds: float = 0.0,
    ) -> EpochRecord:
        task, scale = self._task, self._task.standardisation
        z, raw = validated.z, validated.raw_weights
        truth, predicted = task.log_views[task.val_rows], scale.undo(z)
        names, trained = self._model.heads.modalities, self._model.heads.trained
        weights = raw if seen is None else seen.canonical(raw, validated.shares, names, trained)
        lr = task.config.head_lr if task.config.freeze_clip else task.config.tower_lr
        return EpochRecord(
            fold=task.fold,
            epoch=state.epoch,
            train_loss=None if seen is None else seen.loss,
            val_loss=float(np.square(z - scale.apply(truth)).mean()),
            msle=msle(truth, predicted),
            mae=mae(truth, predicted),
            rmse=rmse(truth, predicted),
            learning_rate=None if seen is None else lr * seen.factor,
            weights=dict(zip(names, weights.tolist(), strict=True)),
            raw_weights=dict(zip(names, raw.tolist(), strict=True)),
            seconds=seconds,
        )


@dataclass(frozen=True, eq=False)
class _Validated:
    """Predictions for the validation rows, weights as they are trained, and those of the trained heads."""

    z: Float64[np.ndarray, " row"]
    raw_weights: Float64[np.ndarray, " modality"]
    shares: Float64[np.ndarray, " trained"]


def chosen_factor(
    errors: Mapping[int, Mapping[str, list[float]]], fold: int, moment: str, *, expanding: bool = False
) -> float:
    """The factor with the least squared error on all folds but this one; the nearest to frozen of equals.

    In an expanding plan only earlier folds are known; the first has none, and stays frozen.

    >>> errors = {fold: {"best": [4.0, 1.0, 2.0, 9.0, 9.0, 9.0]} for fold in (1, 2)}
    >>> chosen_factor({0: {"best": [0.0] * 6}, **errors}, 0, "best")
    0.2
    """
    others = [own[moment] for other, own in errors.items() if (other < fold if expanding else other != fold)]
    return FACTORS[int(np.sum(others, axis=0).argmin())]  # of nothing the sum is 0, and its place the first
