"""Sums of products over rows, from which every ridge of every fold follows without another look at the rows.

Let X be the embeddings of all modalities side by side (zeros where one is absent), P one column per modality that says
where it is present, and y the centred log views. For each part of the rows (the rows that one fold validates)

    S_part = [X P 1 y]' diag(weight) [X P 1 y]

is accumulated once. The sums of a fold's training rows are those of the parts that train it. Centring a modality on the
rows where it is present, x - p mu', is a linear map of the columns of [X P], so it acts on the sums as well.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Float32, Float64, Int32, Int64

from heads.folds import FoldPlan
from heads.inputs import Block, row_chunks


@dataclass(frozen=True, eq=False)
class Layout:
    """Where the columns of each embedding stand in X, in the order of the blocks."""

    blocks: Sequence[Block]

    @property
    def widths(self) -> list[int]:
        """Columns of each block."""
        return [block.values.shape[1] for block in self.blocks]

    @property
    def width(self) -> int:
        """Columns of X."""
        return sum(self.widths)

    @property
    def slices(self) -> list[slice]:
        """The columns of each block."""
        ends = np.cumsum([0, *self.widths]).tolist()
        return [slice(start, stop) for start, stop in pairwise(ends)]


@dataclass(frozen=True, eq=False)
class Sums:
    """S of some rows: X'X, X'P, P'P and so on, as one symmetric matrix; the last two columns are 1 and y."""

    layout: Layout
    products: Float64[np.ndarray, "column column"]

    @property
    def n_rows(self) -> float:
        """Sum of the weights of the rows."""
        return float(self.products[-2, -2])

    @property
    def mean_target(self) -> float:
        """Weighted mean of y."""
        return float(self.products[-2, -1] / self.products[-2, -2])

    def means(self) -> Float64[np.ndarray, " column"]:
        """Mean of every column of X over the rows where its modality is present; 0 where it never is."""
        width, totals = self.layout.width, self.products[-2]
        means = np.zeros(width)
        for index, columns in enumerate(self.layout.slices):
            here = totals[width + index]
            means[columns] = totals[columns] / here if here > 0 else 0.0
        return means

    def centred(self) -> tuple[Float64[np.ndarray, "column column"], Float64[np.ndarray, " column"]]:
        """(X - P mu')'(X - P mu') and (X - P mu')'(y - mean y), each modality centred where it is present."""
        width, means = self.layout.width, self.means()
        presence = np.zeros((width, len(self.layout.blocks)))  # row: a column of X; entry: -mu under its modality
        for index, columns in enumerate(self.layout.slices):
            presence[columns, index] = -means[columns]
        total = self.products
        across = total[:width, width:-2] @ presence.T
        inner = presence @ total[width:-2, width:-2] @ presence.T
        gram = total[:width, :width] + across + across.T + inner
        with_one = total[:width, -2] + presence @ total[width:-2, -2]
        with_y = total[:width, -1] + presence @ total[width:-2, -1]
        return gram, with_y - self.mean_target * with_one


def part_sums(
    layout: Layout,
    target: Float64[np.ndarray, " video"],
    fold_of: Int32[np.ndarray, " video"],
    weights: Float64[np.ndarray, " video"],
) -> dict[int, Sums]:
    """S of every part of the rows, in one pass over them; -1 is the part that no fold validates.

    Products are taken in float32 over at most `heads.inputs.CHUNK_ROWS` rows and summed in float64.
    """
    size = layout.width + len(layout.blocks) + 2
    totals = {int(part): np.zeros((size, size)) for part in np.unique(fold_of)}
    root = np.sqrt(weights)
    for chunk in row_chunks(len(target)):
        columns = _augmented(layout, target, chunk) * root[chunk, None].astype(np.float32)
        for part in np.unique(fold_of[chunk]).tolist():
            own = columns[fold_of[chunk] == part]
            totals[part] += own.T @ own
    return {part: Sums(layout, products) for part, products in totals.items()}


def training_sums(parts: dict[int, Sums], plan: FoldPlan, fold: int) -> Sums:
    """S of the rows that train a fold: the sum over the parts that do."""
    trains = set(np.unique(plan.fold_of[plan.train_rows(fold)]).tolist())
    chosen = [sums for part, sums in parts.items() if part in trains]
    return Sums(chosen[0].layout, np.sum([sums.products for sums in chosen], axis=0))


def columns_of(layout: Layout, rows: Int64[np.ndarray, " row"] | slice) -> Float32[np.ndarray, "row column"]:
    """X of some rows."""
    return np.hstack([_no_columns(rows), *(block.take(rows).values for block in layout.blocks)])


def _no_columns(rows: Int64[np.ndarray, " row"] | slice) -> Float32[np.ndarray, "row 0"]:
    n_rows = rows.stop - rows.start if isinstance(rows, slice) else len(rows)
    return np.empty((n_rows, 0), np.float32)


def _augmented(layout: Layout, target: Float64[np.ndarray, " video"], rows: slice) -> Float32[np.ndarray, "row column"]:
    blocks = [block.take(rows) for block in layout.blocks]
    out = np.empty((rows.stop - rows.start, layout.width + len(blocks) + 2), np.float32)
    for index, (block, columns) in enumerate(zip(blocks, layout.slices, strict=True)):
        out[:, columns] = block.values
        out[:, layout.width + index] = block.present
    out[:, -2], out[:, -1] = 1, target[rows]
    return out
