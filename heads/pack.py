"""Members that train side by side: their rows, their random streams, and the steps they take together."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64

from heads.config import HeadsConfig
from heads.folds import FoldPlan
from heads.inputs import Block, Inputs, check_presence
from heads.mlp import Dropout, StackedHeads, draw_branch
from heads.optimiser import adamw
from heads.readers import FoldReaders, fit_readers
from heads.simplex import head_means
from heads.targets import Standardisation

GAUGE_ROWS = 2048
"""Training rows, drawn once per member, whose spread gives the weights that are logged for each epoch."""

WORD_COMPONENTS = 64
"""Components of words that a network reads; the words themselves are sparse."""

EVALUATION_ROWS = 2048
"""Rows of each member that pass through the heads at a time when they are evaluated."""


@dataclass(frozen=True, eq=False)
class Start:
    """Where a member begins: what it predicts already (log views of every video), and how it reads the modalities.

    It learns what `base` leaves over, and begins at exactly that. For the weights that are logged: `terms` (log views)
    are what each modality has in `base`, `beside` the spread (log views) of terms in it that are not trained on.
    """

    base: Float64[np.ndarray, " video"]
    fitted: FoldReaders
    terms: Float64[np.ndarray, "modality video"] | None = None
    beside: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Entry:
    """A member to be trained: its fold, its configuration, whose seed is its own, and where it begins."""

    fold: int
    config: HeadsConfig
    start: Start | None = None


class DeviceInputs:
    """Inputs that were moved to the training device, once for all members; embeddings only if they are `read_whole`."""

    def __init__(self, inputs: Inputs, device: torch.device, *, read_whole: bool = True) -> None:
        self.inputs = inputs
        self.device = device
        self.present = torch.from_numpy(inputs.present.astype(np.float32)).to(device)
        self.embeddings = {
            block.modality: torch.from_numpy(block.values).to(device)
            for block in inputs.blocks
            if read_whole and isinstance(block, Block) and not block.knotted
        }


class Member:
    """An entry's rows and randomness, which depend on (seed, fold) alone and on no other member.

    Without a start it learns what the mean of its training rows leaves over. `terms` are on the z scale.
    """

    def __init__(
        self,
        data: DeviceInputs,
        log_views: Float64[np.ndarray, " video"],
        plan: FoldPlan,
        entry: Entry,
    ) -> None:
        fold, config, start = entry.fold, entry.config, entry.start
        self.fold, self.config = fold, config
        self.train_rows = plan.train_rows(fold)
        self.val_rows = plan.val_rows(fold)
        check_presence(data.inputs, self.train_rows, fold)
        self.standardisation = Standardisation.fit(log_views[self.train_rows])
        streams = np.random.SeedSequence((config.seed, fold))
        self.dropout_seed = int(streams.generate_state(1)[0])
        self.rng = np.random.default_rng(streams)
        self.fitted = self._readers(data.inputs, log_views) if start is None else start.fitted
        readers = (self.fitted.readers[modality] for modality in data.inputs.modalities)
        untrained = [draw_branch(reader, config.hidden_dim, self.rng) for reader in readers]
        self.untrained = untrained if start is None else [branch.recentred(0.0, 0.0) for branch in untrained]
        self.base = np.full(len(log_views), self.standardisation.mean) if start is None else start.base
        given = None if start is None else start.terms
        self.terms = np.zeros(data.inputs.present.shape) if given is None else given / self.standardisation.sd
        beside = {} if start is None else start.beside
        self.beside = {name: spread / self.standardisation.sd for name, spread in beside.items()}
        # With every row complete, the centres of the heads do not matter, and a sample shows their spread well enough.
        self.complete = bool(data.inputs.present[:, self.train_rows].all())
        self.gauge_rows = self.rng.permutation(self.train_rows)[: GAUGE_ROWS if self.complete else None]

    def _readers(self, inputs: Inputs, log_views: Float64[np.ndarray, " video"]) -> FoldReaders:
        z = self.standardisation.apply(log_views)
        return fit_readers(inputs, z, self.train_rows, self.rng, n_components=WORD_COMPONENTS)


class Pack:
    """Members with the same widths and the same number of steps per epoch, trained as one program.

    Rates, weight decay and dropout are each member's own.
    """

    def __init__(
        self,
        data: DeviceInputs,
        log_views: Float64[np.ndarray, " video"],
        plan: FoldPlan,
        entries: Sequence[Entry],
    ) -> None:
        self.data = data
        self.members = [Member(data, log_views, plan, entry) for entry in entries]
        self.n_steps = n_steps(len(self.members[0].train_rows), entries[0].config.batch_size)
        self.heads = StackedHeads([member.untrained for member in self.members]).to(data.device)
        configs, seeds = [entry.config for entry in entries], [member.dropout_seed for member in self.members]
        self._dropout = Dropout([config.dropout for config in configs], seeds, data.device)
        self._optimiser = adamw(self.heads.decaying, self.heads.others, configs)
        z = np.stack([(log_views - member.base) / member.standardisation.sd for member in self.members])
        self._z = torch.from_numpy(z.astype(np.float32)).to(data.device)
        # Members that begin alike read the same columns, which are then kept once.
        distinct = {id(member.fitted): member.fitted for member in self.members}
        places = [list(distinct).index(id(member.fitted)) for member in self.members]
        self._first_own = torch.tensor(places, device=data.device)[:, None] * len(log_views)
        self._own = {
            modality: _stacked([fitted.columns[modality] for fitted in distinct.values()]).to(data.device)
            for modality in self.members[0].fitted.columns
        }

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
        """Centre a member's heads, if its training rows lack a modality anywhere; returns `outputs(gauge_rows)`.

        An absent modality contributes 0, so 0 must be the mean of what is present. Between two calls the
        centres are held fixed.
        """
        outputs = self.outputs([member.gauge_rows for member in self.members])
        for index, member in enumerate(self.members):
            if not member.complete:
                centre = head_means(outputs[index], self.data.inputs.present[:, member.gauge_rows])
                self.heads.recentre(index, centre)
                outputs[index] = outputs[index] - centre[:, None]
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
        own = rows + self._first_own
        return [
            _rows_of(self._own[modality], own)
            if modality in self._own
            else _rows_of(self.data.embeddings[modality], rows)
            for modality in self.data.inputs.modalities
        ]

    def _presence(self, rows: Int64[torch.Tensor, "member row"]) -> Float[torch.Tensor, "member modality row"]:
        return self.data.present[:, rows].transpose(0, 1)


def n_steps(n_rows: int, batch_size: int) -> int:
    """Steps per epoch. Batches share the rows evenly, so that no step rests on a remainder of a few rows.

    >>> n_steps(1025, 512)
    3
    """
    return -(-n_rows // batch_size)


def _stacked(columns: Sequence[Float[np.ndarray, "video _"]]) -> Float[torch.Tensor, "row column"]:
    """The columns of several readers, one below the other, padded with zeros to the most columns."""
    most = max(own.shape[1] for own in columns)
    padded = [np.pad(own, ((0, 0), (0, most - own.shape[1]))) for own in columns]
    return torch.from_numpy(np.concatenate(padded))


def _rows_of(
    block: Float[torch.Tensor, "video dim"], rows: Int64[torch.Tensor, "member row"]
) -> Float[torch.Tensor, "member row dim"]:
    return block.index_select(0, rows.flatten()).view(*rows.shape, -1)


def _identity(hidden: torch.Tensor) -> torch.Tensor:
    return hidden
