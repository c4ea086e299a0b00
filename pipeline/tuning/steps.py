"""The training steps of one fold: gradients of shuffled rows, clipped, at rates that rise and fall."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float64, Int64
from torch.optim.swa_utils import get_ema_multi_avg_fn

from features.errors import UsageError
from features.torch_encoder import sent
from heads.differentiable import KnownRows
from heads.simplex import canonical_gauge
from heads.targets import Standardisation
from pipeline.config import FinetuneConfig
from pipeline.tuning.batches import Batch, RowFeed
from pipeline.tuning.model import TunedModel
from pipeline.tuning.state import FoldState
from pipeline.tuning.towers import Values

WARM_UP = 0.1
"""Share of the steps in which the learning rate rises; then it falls as a cosine."""
MEMORY = 0.1
"""The moving average remembers about so large a share of the steps."""
CLIP_NORM = 1.0
LOOK_EVERY = 10
"""Steps between looks at losses and gradients: to look is to wait until a GPU has done all that is queued."""


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

    def require_finite(self, value: float, epoch: int) -> None:
        """Raise UsageError, with advice, where a loss or a gradient is not a number any more."""
        if not math.isfinite(value):
            raise UsageError(
                f"training must stay finite, but loss or gradients did not for fold {self.fold} in epoch {epoch}: "
                f"lower --lr (now {self.config.tower_lr:g}) or --head-lr (now {self.config.head_lr:g}), and remove "
                f"{self.folder.parent}, which holds what was trained before"
            )


def schedule(step: int, total: int) -> float:
    """Factor on the learning rates at a step (0, 1, ...).

    >>> [round(schedule(step, 20), 2) for step in (0, 1, 2, 11, 20)]
    [0.5, 1.0, 1.0, 0.5, 0.0]
    """
    rising = max(1, round(WARM_UP * total))
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, total - rising)))


class Steps:
    """AdamW on the model of a fold, one epoch at a time."""

    def __init__(
        self, model: TunedModel, feed: RowFeed, known: KnownRows, task: FoldTask, tell: Callable[[int], None]
    ) -> None:
        self._model, self._feed, self._known, self._task, self._tell = model, feed, known, task, tell
        self._rows_per_step = task.config.batch_size * task.config.accumulate
        self._total = task.config.epochs * -(-len(task.train_rows) // self._rows_per_step)
        self._fused = model.device.type == "cuda"  # one kernel, without temporaries as large as the parameters
        self._optimizer = torch.optim.AdamW(model.parameter_groups, lr=task.config.tower_lr, fused=self._fused)
        self._lrs = [group["lr"] for group in self._optimizer.param_groups]
        z = torch.from_numpy(task.standardisation.apply(task.log_views).astype(np.float32))
        self._z = z.to(model.device)

    def resume(self, state: FoldState) -> None:
        """Go on from parameters and moments that were kept."""
        self._model.put(state.values)
        for name, parameter in self._model.parameters.items():
            self._optimizer.state[parameter] = {
                "step": torch.tensor(float(state.steps), device=parameter.device if self._fused else None),
                "exp_avg": state.first[name].to(parameter.device),
                "exp_avg_sq": state.second[name].to(parameter.device),
            }

    def epoch(self, state: FoldState) -> "Seen":
        """Train on every row once; `state` then holds what was learned, and what was seen comes back."""
        task, epoch = self._task, state.epoch + 1
        seed = np.random.SeedSequence((task.config.seed, task.fold, epoch))
        order = np.random.default_rng(seed).permutation(task.train_rows)
        torch.manual_seed(int(seed.generate_state(1)[0]))  # dropout, where an encoder has it
        augment = torch.Generator().manual_seed(int(seed.generate_state(2)[1]))
        average = {name: value.to(self._model.device, copy=True) for name, value in state.average.items()}
        seen = Seen()
        self._model.training(on=True)
        batches = self._feed.batches(order, task.config.batch_size)
        for begin in range(0, len(order), self._rows_per_step):
            n_rows = min(self._rows_per_step, len(order) - begin)
            self._step(batches, n_rows, state.steps, augment, seen)
            state.steps += 1
            _follow(average, self._model.parameters, state.steps, self._total)
            if seen.steps % LOOK_EVERY == 0 or begin + n_rows == len(order):
                task.require_finite(seen.latest(LOOK_EVERY), epoch)
        state.epoch, state.values = epoch, self._model.values()
        state.average = {name: value.cpu() for name, value in average.items()}
        moments = {name: self._optimizer.state[parameter] for name, parameter in self._model.parameters.items()}
        state.first = {name: moment["exp_avg"] for name, moment in moments.items()}
        state.second = {name: moment["exp_avg_sq"] for name, moment in moments.items()}
        return seen

    def _step(self, batches: Iterator[Batch], n_rows: int, step: int, augment: torch.Generator, seen: "Seen") -> None:
        """One update from `n_rows` rows in one or more batches."""
        seen.factor = schedule(step, self._total)
        for group, lr in zip(self._optimizer.param_groups, self._lrs, strict=True):
            group["lr"] = lr * seen.factor
        self._optimizer.zero_grad(set_to_none=True)
        losses, done = [], 0
        while done < n_rows:
            batch = next(batches)
            loss = self._squares(batch, augment, seen) / n_rows
            loss.backward()  # type: ignore[no-untyped-call]  # torch has not annotated it
            losses.append(loss.detach())
            done += len(batch.rows)
            self._tell(len(batch.rows))
        seen.add_step(losses, _clip(self._model.parameters), n_rows)
        self._optimizer.step()

    def _squares(self, batch: Batch, augment: torch.Generator, seen: "Seen") -> torch.Tensor:
        rows = sent(torch.from_numpy(batch.rows), self._model.device)
        vectors = self._model.vectors(batch, augment)
        z, outputs, present = self._model.z_and_terms(vectors, batch.present, self._known.take(rows))
        seen.add_outputs(outputs, present)
        return (z - self._z[rows]).square().sum()


class Seen:
    """What an epoch has seen: losses and gradients of its steps, the last factor on the rates, and what the heads gave.

    All of it stays on the device until it is asked for.
    """

    def __init__(self) -> None:
        self.factor = 0.0
        self._steps: list[tuple[list[torch.Tensor], torch.Tensor, int]] = []
        self._outputs: list[torch.Tensor] = []
        self._present: list[torch.Tensor] = []

    def add_step(self, losses: list[torch.Tensor], norm: torch.Tensor, n_rows: int) -> None:
        """Losses of its batches, which together are its loss, and how long its gradient was."""
        self._steps.append((losses, norm, n_rows))

    def add_outputs(self, outputs: torch.Tensor, present: torch.Tensor) -> None:
        """Of the trained heads for some rows, and where their modalities are present."""
        self._outputs.append(outputs.detach())
        self._present.append(present.detach())

    @property
    def steps(self) -> int:
        """So many so far."""
        return len(self._steps)

    def latest(self, steps: int) -> float:
        """Losses and lengths of gradients of the latest steps, added up: not finite if one of them is not."""
        return float(sum(sum(losses) + norm for losses, norm, _ in self._steps[-steps:]))

    @property
    def loss(self) -> float:
        """Mean over the rows."""
        of_steps = [(sum(map(float, losses)), n_rows) for losses, _, n_rows in self._steps]
        return sum(loss * n_rows for loss, n_rows in of_steps) / sum(n_rows for _, n_rows in of_steps)

    def canonical(
        self, raw: np.ndarray, shares: np.ndarray, names: tuple[str, ...], trained: tuple[str, ...]
    ) -> Float64[np.ndarray, " modality"]:
        """Canonical weights from what the heads gave while they learned; frozen ones keep their share."""
        outputs = torch.cat(self._outputs, dim=1).double().cpu().numpy()
        present = torch.cat(self._present, dim=1).cpu().numpy() > 0
        own = canonical_gauge(outputs, present, shares, 0.0).weights * shares.sum()
        moved = dict(zip(trained, own.tolist(), strict=True))
        weights = np.array([moved.get(name, weight) for name, weight in zip(names, raw.tolist(), strict=True)])
        weights /= weights.sum()
        return weights


def _clip(parameters: Mapping[str, torch.nn.Parameter]) -> torch.Tensor:
    """Clip the gradients of towers and heads, each by themselves; returns how long they were, added up.

    A parameter that no row of a step reached has a gradient of 0, so that all count the same steps.
    """
    norms = []
    for of_heads in (True, False):
        part = [parameter for name, parameter in parameters.items() if name.startswith("heads.") is of_heads]
        for parameter in part:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        if part:
            norms.append(torch.nn.utils.clip_grad_norm_(part, CLIP_NORM))
    return torch.stack(norms).sum()


@torch.no_grad()
def _follow(average: Values, parameters: Mapping[str, torch.Tensor], step: int, total: int) -> None:
    """Move the average towards the parameters; early on it forgets faster, or it would keep the start for long."""
    decay = min(math.exp(-1 / (MEMORY * total)), step / (step + 9))
    new = [parameters[name].detach() for name in average]
    follow = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]  # torch has not annotated it
    follow(list(average.values()), new, 0)
