"""Members that train side by side: their rows, their random streams, and the steps they take together."""

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64

from heads.config import HeadsConfig
from heads.errors import UnfitDataError
from heads.folds import FoldPlan
from heads.inputs import Inputs, hat_basis
from heads.mlp import Dropout, StackedHeads, draw_head
from heads.simplex import head_means
from heads.targets import Standardisation

GAUGE_ROWS = 2048
"""Training rows, drawn once per member, whose spread gives the weights that are logged for each epoch."""

EVALUATION_ROWS = 2048
"""Rows of each member that pass through the heads at a time when they are evaluated."""


class DeviceInputs:
    """Inputs that were moved to the training device, once for all members."""

    def __init__(self, inputs: Inputs, device: torch.device) -> None:
        self.inputs = inputs
        self.device = device
        self.complete = bool(inputs.present.all())
        self.present = torch.from_numpy(inputs.present.astype(np.float32)).to(device)
        self.blocks = [torch.from_numpy(block.values).to(device) for block in inputs.blocks]


class Member:
    """One fold's rows and randomness, which depend on (seed, fold) alone and on no other member."""

    def __init__(
        self,
        data: DeviceInputs,
        log_views: Float64[np.ndarray, " video"],
        plan: FoldPlan,
        fold: int,
        config: HeadsConfig,
    ) -> None:
        self.fold = fold
        self.train_rows = plan.train_rows(fold)
        self.val_rows = plan.val_rows(fold)
        self._check_presence(data.inputs)
        self.standardisation = Standardisation.fit(log_views[self.train_rows])
        streams = np.random.SeedSequence((config.seed, fold))
        self.dropout_seed = int(streams.generate_state(1)[0])
        self.rng = np.random.default_rng(streams)
        self.untrained = [draw_head(b, self.train_rows, config.hidden_dim, self.rng) for b in data.inputs.blocks]
        # With every row complete, the centres of the heads do not matter, and a sample shows their spread well enough.
        self.gauge_rows = self.rng.permutation(self.train_rows)[: GAUGE_ROWS if data.complete else None]

    def _check_presence(self, inputs: Inputs) -> None:
        seen = inputs.present[:, self.train_rows].any(axis=1)
        if not seen.all():
            absent = inputs.modalities[int(seen.argmin())]
            raise UnfitDataError(f"no training row of fold {self.fold} has {absent}: leave it out of --modalities")


class Pack:
    """Members with the same number of steps per epoch, trained as one program."""

    def __init__(
        self,
        data: DeviceInputs,
        log_views: Float64[np.ndarray, " video"],
        plan: FoldPlan,
        folds: Sequence[int],
        config: HeadsConfig,
    ) -> None:
        self.data = data
        self.members = [Member(data, log_views, plan, fold, config) for fold in folds]
        self.n_steps = n_steps(len(self.members[0].train_rows), config.batch_size)
        self.heads = StackedHeads([member.untrained for member in self.members]).to(data.device)
        self._dropout = Dropout(config.dropout, [member.dropout_seed for member in self.members], data.device)
        groups = self.heads.parameter_groups(config.weight_decay)
        self._optimiser = torch.optim.AdamW(groups, lr=config.lr, fused=True)
        z = np.stack([member.standardisation.apply(log_views) for member in self.members])
        self._z = torch.from_numpy(z.astype(np.float32)).to(data.device)
        self._bases = {index: self._basis(index) for index, block in enumerate(data.inputs.blocks) if block.is_scalar}

    def train_epoch(self) -> Float64[np.ndarray, " member"]:
        """One pass over every member's own rows in its own order; returns the mean loss of each (z scale)."""
        batches = [np.array_split(m.rng.permutation(m.train_rows), self.n_steps) for m in self.members]
        losses = [self._step(batch) for batch in zip(*batches, strict=True)]
        rows = np.array([[len(batch) for batch in member] for member in batches])
        means: Float64[np.ndarray, " member"] = np.average(torch.stack(losses, dim=1).cpu(), axis=1, weights=rows)
        return means

    @torch.no_grad()
    def outputs(self, rows_of: Sequence[Int64[np.ndarray, " _"]]) -> list[Float64[np.ndarray, "modality _"]]:
        """What each member's heads give for its own list of rows (z scale, not weighted)."""
        rows = self._padded(rows_of)
        chunks = [
            self.heads.outputs(self._values(chunk), _identity) for chunk in torch.split(rows, EVALUATION_ROWS, dim=1)
        ]
        stacked = torch.cat(chunks, dim=2).cpu().numpy().astype(np.float64)
        return [outputs[:, : len(own)] for outputs, own in zip(stacked, rows_of, strict=True)]

    def recentre(self) -> list[Float64[np.ndarray, "modality _"]]:
        """Centre the heads on the training rows, if any modality is absent anywhere; returns `outputs(gauge_rows)`.

        An absent modality contributes 0, so 0 must be the mean of what is present. Between two calls the
        centres are held fixed.
        """
        outputs = self.outputs([member.gauge_rows for member in self.members])
        if not self.data.complete:
            for index, (member, own) in enumerate(zip(self.members, outputs, strict=True)):
                self.heads.recentre(index, head_means(own, self.data.inputs.present[:, member.gauge_rows]))
        return outputs

    def _step(self, batch: Sequence[Int64[np.ndarray, " _"]]) -> Float[torch.Tensor, " member"]:
        rows, counts = self._padded(batch), [len(own) for own in batch]
        drop = partial(self._dropout, row_counts=counts)
        predicted: torch.Tensor = self.heads(self._values(rows), self._presence(rows), drop)
        losses = ((predicted - self._z.gather(1, rows)).square() * self._row_weights(counts)).sum(dim=1)
        self._optimiser.zero_grad()
        torch.autograd.backward(losses.sum())  # a sum: a mean would shrink every gradient by the number of companions
        self._optimiser.step()
        return losses.detach()

    def _padded(self, rows_of: Sequence[Int64[np.ndarray, " _"]]) -> Int64[torch.Tensor, "member row"]:
        padded = np.zeros((len(rows_of), max(len(rows) for rows in rows_of)), dtype=np.int64)
        for member, rows in enumerate(rows_of):
            padded[member, : len(rows)] = rows
        return torch.from_numpy(padded).to(self.data.device)

    def _row_weights(self, counts: Sequence[int]) -> Float[torch.Tensor, "member row"]:
        place, count = np.arange(max(counts)), np.array(counts)[:, None]
        weights = np.where(place < count, 1 / count, 0).astype(np.float32)
        return torch.from_numpy(weights).to(self.data.device)

    def _values(self, rows: Int64[torch.Tensor, "member row"]) -> list[Float[torch.Tensor, "member row _"]]:
        own = torch.arange(len(rows), device=rows.device)[:, None]
        return [
            self._bases[index][own, rows] if index in self._bases else _rows_of(block, rows)
            for index, block in enumerate(self.data.blocks)
        ]

    def _presence(self, rows: Int64[torch.Tensor, "member row"]) -> Float[torch.Tensor, "member modality row"]:
        return self.data.present[:, rows].transpose(0, 1)

    def _basis(self, index: int) -> Float[torch.Tensor, "member video knot"]:
        amounts = self.data.inputs.blocks[index].values[:, 0]
        knots = [member.untrained[index].knots for member in self.members]
        bases = [hat_basis(amounts, own) for own in knots if own is not None]
        most = max(basis.shape[1] for basis in bases)
        padded = [np.pad(basis, ((0, 0), (0, most - basis.shape[1]))) for basis in bases]
        return torch.from_numpy(np.stack(padded)).to(self.data.device)


def n_steps(n_rows: int, batch_size: int) -> int:
    """Steps per epoch. Batches share the rows evenly, so that no step rests on a remainder of a few rows.

    >>> n_steps(1025, 512)
    3
    """
    return -(-n_rows // batch_size)


def _rows_of(
    block: Float[torch.Tensor, "video dim"], rows: Int64[torch.Tensor, "member row"]
) -> Float[torch.Tensor, "member row dim"]:
    return block.index_select(0, rows.flatten()).view(*rows.shape, -1)


def _identity(hidden: torch.Tensor) -> torch.Tensor:
    return hidden
