"""Inputs that come some rows at a time, so that they may be larger than the memory.

What grows with rows times dimensions, the embeddings, is read again in every pass. What is one number or a few per
video (amounts, categories, where a modality is present) stands in the outline.
"""

from collections.abc import Iterator
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int64

from heads.folds import FoldPlan
from heads.inputs import Inputs, Rows


@runtime_checkable
class Chunks(Protocol):
    """The inputs of all videos, a chunk at a time and as often as asked for; `Inputs` are the case that is in memory.

    A chunk begins at a multiple of `heads.inputs.CHUNK_ROWS` and is that long, but for the last: equal chunks give
    equal sums to the last bit, wherever they come from.
    """

    @property
    def outline(self) -> Inputs:
        """All of it but the embeddings, for which `Block.outlined` stands."""

    def __iter__(self) -> Iterator[tuple[slice, Inputs]]:
        """The rows and their inputs, in order."""

    def take(self, rows: Rows) -> Inputs:
        """The inputs of these rows, in this order, in memory."""


def in_memory(chunks: Chunks) -> Inputs:
    """The inputs, for what needs every row at once; raises TypeError where they come in chunks."""
    if not isinstance(chunks, Inputs):
        raise TypeError(f"this needs every row in memory, however it was given {type(chunks).__name__}")
    return chunks


def validated_rows(chunks: Chunks, plan: FoldPlan) -> Iterator[tuple[int, Int64[np.ndarray, " row"], Inputs]]:
    """Every row that some fold validates, once: the fold, the numbers of some of its rows, and their inputs."""
    for rows, inputs in chunks:
        fold_of = plan.fold_of[rows]
        for fold in np.unique(fold_of[fold_of >= 0]).tolist():
            own = np.flatnonzero(fold_of == fold)
            yield fold, rows.start + own, inputs.take(own)
