"""Near-duplicates that a fold plan tears apart: vectors so close that who trained on one has seen the other.

Every validated row is compared with every row that trains its member, one block of rows against another: memory does
not grow with the number of videos, time grows with its square.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64, Int64

from heads.folds import EXAMPLES, FoldPlan
from heads.inputs import Block

NEAR = 0.97
"""Cosine above which two vectors count as near-duplicates: at 0.97 they are 14 degrees apart, where a trained encoder
puts copies of one picture that differ in size, quality or a caption, and hardly ever two pictures. An encoder that is
not trained puts nearly everything that close; the share of rows that is found says so."""

BLOCK_ROWS = 4096
"""Rows of either side that are compared at a time: 64 MiB of cosines."""


@dataclass(frozen=True, kw_only=True)
class NearDuplicates:
    """How many validated rows have a near-duplicate among the rows that train their member, out of how many.

    `first` are the closest: (validated row, training row, cosine).
    """

    n_rows: int
    n_compared: int
    first: tuple[tuple[int, int, float], ...]


def near_duplicates_across_folds(block: Block, plan: FoldPlan, near: float = NEAR) -> NearDuplicates:
    """Compare the vectors of every fold with those that train its member; absent ones and zeros have no neighbour.

    Raises ValueError for arrays of different length.

    >>> values = np.array([[1, 0], [0, 1], [1, 0.1]], dtype=np.float32)
    >>> block = Block.embedding("image", values, np.ones(3, dtype=bool))
    >>> plan = FoldPlan(fold_of=np.array([0, 0, 1], dtype=np.int32), split="file", seed=None)
    >>> found = near_duplicates_across_folds(block, plan)
    >>> found.n_rows, found.n_compared, [(one, other) for one, other, _ in found.first]
    (2, 3, [(0, 2), (2, 0)])
    """
    if block.n_videos != len(plan.fold_of):
        raise ValueError(f"a plan for {len(plan.fold_of)} videos needs as many vectors, given {block.n_videos}")
    usable = block.present & block.values.any(axis=1)
    found = []
    for fold in range(plan.n_folds):
        rows, train_rows = (rows[usable[rows]] for rows in (plan.val_rows(fold), plan.train_rows(fold)))
        found.append((rows, *_closest(block.values, rows, train_rows)))
    rows, nearest, cosine = (np.concatenate(parts) for parts in zip(*found, strict=True))
    close = np.flatnonzero(cosine > near)
    first = close[np.lexsort((rows[close], -cosine[close]))][:EXAMPLES]
    return NearDuplicates(
        n_rows=len(close),
        n_compared=len(rows),
        first=tuple((int(rows[i]), int(nearest[i]), float(cosine[i])) for i in first),
    )


def _closest(
    vectors: Float32[np.ndarray, "video dim"], rows: Int64[np.ndarray, " row"], others: Int64[np.ndarray, " other"]
) -> tuple[Int64[np.ndarray, " row"], Float64[np.ndarray, " row"]]:
    """For each row the closest of the others, the first of equals, and the cosine between them; -1 without any."""
    nearest, cosine = np.full(len(rows), -1), np.full(len(rows), -1.0)
    for start in range(0, len(rows), BLOCK_ROWS):
        part = slice(start, start + BLOCK_ROWS)
        for first in range(0, len(others), BLOCK_ROWS):
            against = others[first : first + BLOCK_ROWS]
            products = vectors[rows[part]] @ vectors[against].T
            best = products.argmax(axis=1)
            value = products[np.arange(len(best)), best].astype(np.float64)
            closer = value > cosine[part]
            nearest[part] = np.where(closer, against[best], nearest[part])
            cosine[part] = np.where(closer, value, cosine[part])
    return nearest, cosine
