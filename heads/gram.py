"""Sums of products over rows, from which every ridge of every fold follows without another look at the rows.

Let X be the columns of all modalities side by side (zeros where one is absent), P one column per modality that says
where it is present, and y the centred log views. For each part of the rows (the rows that one fold validates)

    S_part = [X P 1 y]' diag(weight) [X P 1 y]

is accumulated once. The sums of a fold's training rows are those of the parts that train it. Centring a modality on the
rows where it is present, x - p mu', is a linear map of the columns of [X P], so it acts on the sums as well. And an
error is linear in these columns, so that its sum of squares over a part is v' S_part v for some v.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Float32, Float64, Int32


@dataclass(frozen=True, eq=False)
class Layout:
    """How many columns of X each modality has, in order."""

    widths: Mapping[str, int]

    @property
    def width(self) -> int:
        """Columns of X."""
        return sum(self.widths.values())

    @property
    def slices(self) -> dict[str, slice]:
        """The columns of each modality."""
        ends = np.cumsum([0, *self.widths.values()]).tolist()
        return {name: slice(*place) for name, place in zip(self.widths, pairwise(ends), strict=True)}


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
        for index, columns in enumerate(self.layout.slices.values()):
            here = totals[width + index]
            means[columns] = totals[columns] / here if here > 0 else 0.0
        return means

    def centred(self) -> tuple[Float64[np.ndarray, "column column"], Float64[np.ndarray, " column"]]:
        """(X - P mu')'(X - P mu') and (X - P mu')'(y - mean y), each modality centred where it is present."""
        width, means = self.layout.width, self.means()
        presence = np.zeros((width, len(self.layout.widths)))  # row: a column of X; entry: -mu under its modality
        for index, columns in enumerate(self.layout.slices.values()):
            presence[columns, index] = -means[columns]
        total = self.products
        across = total[:width, width:-2] @ presence.T
        inner = presence @ total[width:-2, width:-2] @ presence.T
        gram = total[:width, :width] + across + across.T + inner
        with_one = total[:width, -2] + presence @ total[width:-2, -2]
        with_y = total[:width, -1] + presence @ total[width:-2, -1]
        return gram, with_y - self.mean_target * with_one


def part_products(
    chunks: Iterable[tuple[slice, Float32[np.ndarray, "row column"]]],
    n_columns: int,
    fold_of: Int32[np.ndarray, " video"],
    weights: Float64[np.ndarray, " video"],
) -> dict[int, Float64[np.ndarray, "column column"]]:
    """Sums of products of columns over every part of the rows, in one pass; -1 is the part that no fold validates.

    Products are taken in float32 over the rows of a chunk, which is overwritten, and summed in float64.
    """
    totals = {int(part): np.zeros((n_columns, n_columns)) for part in np.unique(fold_of)}
    for rows, columns in chunks:
        np.multiply(columns, np.sqrt(weights[rows, None]).astype(np.float32), out=columns)
        for part in np.unique(fold_of[rows]).tolist():
            own = columns[fold_of[rows] == part]
            totals[part] += own.T @ own
    return totals
