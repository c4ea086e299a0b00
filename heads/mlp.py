"""The networks of several members as one program: every parameter has a leading member axis.

On a CPU a pack holds one member; on an accelerator, where small steps wait for their launches, it holds all folds.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import cast

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64

from heads.fitted import Branch
from heads.readers import CategoryMeans, Knots, Reader

TABLE_DIM = 16
"""Width of the embedding that a scalar such as the age has at each knot, and each column beside it."""

TABLE_HIDDEN_DIM = 64
"""Hidden units of a head that begins with an embedding layer."""

Drop = Callable[[torch.Tensor], torch.Tensor]
Layers = tuple[tuple[Float32[np.ndarray, "_ _"], ...], tuple[Float32[np.ndarray, " _"], ...]]


@dataclass(frozen=True, eq=False, kw_only=True)
class RawMember:
    """One member's parameters as they are trained, not yet in the canonical gauge."""

    branches: tuple[Branch, ...]
    weights: Float64[np.ndarray, " modality"]
    intercept: float


def draw_branch(reader: Reader, hidden_dim: int, rng: np.random.Generator) -> Branch:
    """An untrained network: dim -> H -> H/2 -> 1, or embedding layer -> hidden -> 1 for knots and categories.

    The embeddings of knots start on a straight line, so that the untrained head is smooth; columns beside them start
    at zero, as noise would else have to be unlearned.
    """
    if not isinstance(reader, Knots | CategoryMeans):
        weights, biases = _draw_layers((reader.width, hidden_dim, hidden_dim // 2, 1), rng)
        return Branch(reader=reader, weights=weights, biases=biases)
    start, slope = rng.normal(size=(2, 1, TABLE_DIM))
    if isinstance(reader, Knots):
        line = start + slope * np.linspace(-1, 1, len(reader.knots))[:, None]
        table = np.vstack([line, np.zeros((reader.beside, TABLE_DIM))])
    else:
        table = np.vstack([slope, start])
    weights, biases = _draw_layers((TABLE_DIM, TABLE_HIDDEN_DIM, 1), rng)
    return Branch(reader=reader, weights=weights, biases=biases, table=table.astype(np.float32))


class StackedHead(torch.nn.Module):
    """One modality's network for every member; columns that members read for themselves are padded with zeros."""

    def __init__(self, branches: Sequence[Branch]) -> None:
        super().__init__()
        self.readers = [branch.reader for branch in branches]
        self.table = _stack_tables([branch.table for branch in branches if branch.table is not None])
        weights, biases = (
            zip(*(b.weights for b in branches), strict=True),
            zip(*(b.biases for b in branches), strict=True),
        )
        self.weights = torch.nn.ParameterList(_stack(layer) for layer in weights)
        self.biases = torch.nn.ParameterList(_stack([bias[None, :] for bias in layer]) for layer in biases)

    def forward(self, values: Float[torch.Tensor, "member row dim"], drop: Drop) -> Float[torch.Tensor, "member row"]:
        """Outputs of every member for its own rows; `drop` follows each hidden layer."""
        hidden = values if self.table is None else torch.bmm(values, self.table)
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            hidden = drop(torch.baddbmm(bias, hidden, weight).relu_())
        return torch.baddbmm(self.biases[-1], hidden, self.weights[-1]).squeeze(2)

    def member(self, index: int) -> Branch:
        """A copy of one member's network."""
        reader = self.readers[index]
        return Branch(
            reader=reader,
            weights=tuple(_to_numpy(weight[index]) for weight in self.weights),
            biases=tuple(_to_numpy(bias[index, 0]) for bias in self.biases),
            table=None if self.table is None else _to_numpy(self.table[index, : reader.width]),
        )


class StackedHeads(torch.nn.Module):
    """z = intercept + sum over m of weight_m * head_m(x_m) * present_m, for every member.

    The weights are the softmax of free logits, so they lie on the simplex; they start uniform, the intercept at 0.
    """

    def __init__(self, members: Sequence[Sequence[Branch]]) -> None:
        super().__init__()
        self.heads = torch.nn.ModuleList(StackedHead(branches) for branches in zip(*members, strict=True))
        self.logits = torch.nn.Parameter(torch.zeros(len(members), len(self.heads)))
        self.intercept = torch.nn.Parameter(torch.zeros(len(members)))

    @property
    def _each(self) -> Iterable[StackedHead]:
        return cast("Iterable[StackedHead]", self.heads)  # to type checkers a ModuleList holds any module

    def outputs(
        self, values: Sequence[Float[torch.Tensor, "member row _"]], drop: Drop
    ) -> Float[torch.Tensor, "member modality row"]:
        """Outputs of the heads, before they are weighted."""
        return torch.stack([head(block, drop) for head, block in zip(self._each, values, strict=True)], dim=1)

    def forward(
        self,
        values: Sequence[Float[torch.Tensor, "member row _"]],
        present: Float[torch.Tensor, "member modality row"],
        drop: Drop,
    ) -> Float[torch.Tensor, "member row"]:
        """Predicted z of every member for its own rows."""
        terms = torch.softmax(self.logits, dim=1)[:, :, None] * self.outputs(values, drop) * present
        return self.intercept[:, None] + terms.sum(dim=1)

    @torch.no_grad()
    def recentre(self, index: int, centre: Float64[np.ndarray, " modality"]) -> None:
        """Subtract `centre` from one member's heads; where every modality is present, predictions stay the same."""
        shift = torch.from_numpy(centre.astype(np.float32)).to(self.intercept.device)
        for head, amount in zip(self._each, shift, strict=True):
            head.biases[-1][index] -= amount
        self.intercept[index] += torch.softmax(self.logits[index], dim=0) @ shift

    def member(self, index: int) -> RawMember:
        """A copy of one member's parameters."""
        weights = _to_numpy(torch.softmax(self.logits[index], dim=0)).astype(np.float64)
        return RawMember(
            branches=tuple(head.member(index) for head in self._each),
            weights=weights / weights.sum(),
            intercept=float(self.intercept[index].item()),
        )

    @property
    def decaying(self) -> list[torch.nn.Parameter]:
        """The matrices, which decay while training."""
        tables = [head.table for head in self._each if head.table is not None]
        return tables + [weight for head in self._each for weight in head.weights]

    @property
    def others(self) -> list[torch.nn.Parameter]:
        """Biases, logits and intercepts, which do not."""
        return [*(bias for head in self._each for bias in head.biases), self.logits, self.intercept]


class Dropout:
    """Inverted dropout with a rate and a random stream per member, whose masks do not depend on its companions.

    Masks come from 64 random bits for four units: on a CPU four times as fast as `bernoulli_`, which
    costs a quarter as much as the matrix products. The rate is thereby rounded to a multiple of 2**-16.
    """

    def __init__(self, rates: Sequence[float], seeds: Sequence[int], device: torch.device) -> None:
        self.rates = rates
        self.generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]
        kept = 1 / (1 - np.array(rates))
        self._scale = torch.from_numpy(kept.astype(np.float32)).to(device)[:, None, None]

    def __call__(
        self, hidden: Float[torch.Tensor, "member row unit"], row_counts: Sequence[int]
    ) -> Float[torch.Tensor, "member row unit"]:
        """Zero each unit with its rate and scale the others up; of each member `row_counts` rows are real."""
        if not any(self.rates):
            return hidden
        keep = torch.zeros(hidden.shape, dtype=torch.bool, device=hidden.device)
        for member, rows in enumerate(row_counts):
            keep[member, :rows] = self._draw(member, rows, hidden.shape[2])
        return hidden * keep.to(hidden.dtype).mul_(self._scale)

    def _draw(self, member: int, n_rows: int, n_units: int) -> torch.Tensor:
        generator = self.generators[member]
        words = torch.empty(-(-n_rows * n_units // 4), dtype=torch.int64, device=generator.device)
        words.random_(torch.iinfo(torch.int64).min, None, generator=generator)
        threshold = round(self.rates[member] * 2**16) - 2**15
        return words.view(torch.int16)[: n_rows * n_units].view(n_rows, n_units) >= threshold


def _draw_layers(widths: Sequence[int], rng: np.random.Generator) -> Layers:
    """Weights and biases, uniform within ±1/sqrt(inputs) as `torch.nn.Linear` draws them."""
    weights, biases = [], []
    for n_in, n_out in pairwise(widths):
        bound = 1 / np.sqrt(n_in)
        weights.append(rng.uniform(-bound, bound, size=(n_in, n_out)).astype(np.float32))
        biases.append(rng.uniform(-bound, bound, size=n_out).astype(np.float32))
    return tuple(weights), tuple(biases)


def _stack_tables(tables: Sequence[Float32[np.ndarray, "_ dim"]]) -> torch.nn.Parameter | None:
    most = max((len(table) for table in tables), default=0)
    return _stack([np.pad(table, ((0, most - len(table)), (0, 0))) for table in tables]) if tables else None


def _stack(arrays: Iterable[Float32[np.ndarray, "_ _"]]) -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.from_numpy(np.stack(list(arrays))))


def _to_numpy(tensor: Float[torch.Tensor, "..."]) -> Float32[np.ndarray, "..."]:
    return tensor.detach().cpu().numpy().copy()
