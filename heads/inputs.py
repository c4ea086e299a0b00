"""What the heads see: one block of numbers per modality, aligned by row."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Int64

from heads.errors import UnfitDataError
from heads.folds import FoldPlan

CHUNK_ROWS = 8192
"""Rows that are converted, normalised or predicted at a time, so that temporary memory stays small."""

N_KNOTS = 16
"""Most knots of a scalar's embedding layer."""

JOINT = "joint"
"""The term that reads across modalities, beside theirs."""


Rows = Int64[np.ndarray, " row"] | slice
"""Which rows to take: their numbers, or a range."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Block:
    """One modality of every video as numbers; rows where it is absent hold zeros."""

    modality: str
    values: Float32[np.ndarray, "video dim"]
    present: Bool[np.ndarray, " video"]
    knotted: bool = False  # the first column is an amount that a head reads between knots

    @classmethod
    def embedding(
        cls,
        modality: str,
        raw: Float[np.ndarray, "video dim"],
        present: Bool[np.ndarray, " video"],
        *,
        first_row: int = 0,
    ) -> "Block":
        """Embeddings as the encoder gave them (any float type), scaled to length 1; a zero vector stays zero.

        Raises UnfitDataError where a present vector is not finite; it counts rows from `first_row`.

        >>> raw = np.array([[3, 4], [7, 7]], dtype=np.float16)
        >>> Block.embedding("image", raw, np.array([True, False])).values
        array([[0.6, 0.8],
               [0. , 0. ]], dtype=float32)
        """
        values = np.zeros(raw.shape, dtype=np.float32)
        for chunk in row_chunks(len(raw)):
            vectors = np.where(present[chunk, None], raw[chunk], 0).astype(np.float32)
            length = np.sqrt(np.square(vectors).sum(axis=1, keepdims=True, dtype=np.float64)).astype(np.float32)
            if not np.isfinite(length).all():
                row = first_row + chunk.start + int((~np.isfinite(length[:, 0])).argmax())
                raise UnfitDataError(f"the {modality} embedding of row {row} is not finite: mark the row as absent")
            np.divide(vectors, length, out=values[chunk], where=length > 0)
        return cls(modality=modality, values=values, present=present)

    @classmethod
    def outlined(cls, modality: str, width: int, present: Bool[np.ndarray, " video"]) -> "Block":
        """What stands for embeddings that are not in memory, see `heads.chunks`: all NaN, and none of it stored.

        >>> block = Block.outlined("image", 768, np.array([True, False]))
        >>> block.values.shape, block.values.strides
        ((2, 768), (0, 0))
        """
        values = np.broadcast_to(np.float32(np.nan), (len(present), width))
        return cls(modality=modality, values=values, present=present)

    @classmethod
    def scalar(
        cls,
        modality: str,
        amounts: Float64[np.ndarray, " video"],
        beside: Float64[np.ndarray, "video column"] | None = None,
    ) -> "Block":
        """One number per video, such as the age in years, and columns `beside` it; NaN means absent.

        The block is absent where the number is; a column beside it that is NaN counts as 0.
        Raises UnfitDataError where a number is infinite.

        >>> Block.scalar("age", np.array([1.5, np.nan])).present
        array([ True, False])
        """
        columns = amounts[:, None] if beside is None else np.column_stack([amounts, beside])
        if np.isinf(columns).any():
            raise UnfitDataError(f"{modality} must be finite, or NaN where it is absent; given infinity")
        present = ~np.isnan(amounts)
        values = np.where(present[:, None] & ~np.isnan(columns), columns, 0.0).astype(np.float32)
        return cls(modality=modality, values=values, present=present, knotted=True)

    @property
    def n_videos(self) -> int:
        """Number of rows."""
        return len(self.values)

    def take(self, rows: Rows) -> "Block":
        """The block of these rows, in this order."""
        return replace(self, values=self.values[rows], present=self.present[rows])


@dataclass(frozen=True, eq=False, kw_only=True)
class Category:
    """One modality that is a name, such as the channel, as a code: equal codes mean equal names, in every table."""

    modality: str
    codes: Int64[np.ndarray, " video"]
    present: Bool[np.ndarray, " video"]

    @property
    def n_videos(self) -> int:
        """Number of rows."""
        return len(self.codes)

    def take(self, rows: Rows) -> "Category":
        """The block of these rows, in this order."""
        return replace(self, codes=self.codes[rows], present=self.present[rows])


@dataclass(frozen=True, eq=False, kw_only=True)
class Words:
    """One modality that is text, as how often each of its hashed words occurs (video, column), sparse."""

    modality: str
    counts: Any
    present: Bool[np.ndarray, " video"]

    @property
    def n_videos(self) -> int:
        """Number of rows."""
        return int(self.counts.shape[0])

    def take(self, rows: Rows) -> "Words":
        """The block of these rows, in this order."""
        return replace(self, counts=self.counts[rows], present=self.present[rows])


@dataclass(frozen=True, eq=False, kw_only=True)
class Joint:
    """Several modalities of every video together; present where at least two of them are, as one alone has its head."""

    blocks: tuple[Block | Category | Words, ...]
    modality: str = JOINT

    @property
    def present(self) -> Bool[np.ndarray, " video"]:
        """Where there is something to read across."""
        present: Bool[np.ndarray, " video"] = np.sum([block.present for block in self.blocks], axis=0) >= 2
        return present

    @property
    def n_videos(self) -> int:
        """Number of rows."""
        return self.blocks[0].n_videos

    def take(self, rows: Rows) -> "Joint":
        """The block of these rows, in this order."""
        return replace(self, blocks=tuple(block.take(rows) for block in self.blocks))


AnyBlock = Block | Category | Words | Joint


@dataclass(frozen=True, eq=False)
class Inputs:
    """The blocks of all modalities, row by row the same videos.

    Raises ValueError for no block, two blocks of one modality, or blocks of different length.
    """

    blocks: tuple[AnyBlock, ...]

    def __post_init__(self) -> None:
        if not self.blocks:
            raise ValueError("inputs need at least one modality, given none")
        if len(set(self.modalities)) < len(self.blocks):
            raise ValueError(f"a modality must occur once, given {', '.join(self.modalities)}")
        if len({block.n_videos for block in self.blocks}) > 1:
            lengths = ", ".join(f"{block.modality} {block.n_videos}" for block in self.blocks)
            raise ValueError(f"all modalities must have the same rows, given {lengths}")

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names of the blocks, in order."""
        return tuple(block.modality for block in self.blocks)

    @property
    def n_videos(self) -> int:
        """Number of rows."""
        return self.blocks[0].n_videos

    @property
    def outline(self) -> "Inputs":
        """Themselves: nothing of them is out of memory, see `heads.chunks`."""
        return self

    def __iter__(self) -> Iterator[tuple[slice, "Inputs"]]:
        """The rows and their inputs, a chunk at a time."""
        for rows in row_chunks(self.n_videos):
            yield rows, self.take(rows)

    @property
    def present(self) -> Bool[np.ndarray, "modality video"]:
        """Where each modality is present."""
        return np.stack([block.present for block in self.blocks])

    def block(self, modality: str) -> AnyBlock:
        """The block of a modality, or all of them as `joint`; raises ValueError where there is none."""
        if modality == JOINT and JOINT not in self.modalities:
            return Joint(blocks=tuple(block for block in self.blocks if not isinstance(block, Joint)))
        if modality not in self.modalities:
            raise ValueError(f"the inputs have no {modality}, only {', '.join(self.modalities)}")
        return self.blocks[self.modalities.index(modality)]

    def take(self, rows: Rows) -> "Inputs":
        """The inputs of these rows, in this order."""
        return Inputs(tuple(block.take(rows) for block in self.blocks))


def stacked(first: Inputs, second: Inputs) -> Inputs:
    """The rows of `first` and then those of `second`, which must have the same modalities in the same form."""
    return Inputs(tuple(_stacked(ours, second.block(ours.modality)) for ours in first.blocks))


def _stacked(first: AnyBlock, second: AnyBlock) -> AnyBlock:
    present = np.concatenate([first.present, second.present])
    if isinstance(first, Block) and isinstance(second, Block):
        return replace(first, values=np.concatenate([first.values, second.values]), present=present)
    if isinstance(first, Category) and isinstance(second, Category):
        return replace(first, codes=np.concatenate([first.codes, second.codes]), present=present)
    if isinstance(first, Words) and isinstance(second, Words):
        from scipy.sparse import vstack  # noqa: PLC0415  slow, and only words need it

        return replace(first, counts=vstack([first.counts, second.counts]).tocsr(), present=present)
    raise ValueError(f"{first.modality} must be of one form, given {type(first).__name__} and {type(second).__name__}")


def check_same_videos(inputs: Inputs, log_views: Float64[np.ndarray, " video"], plan: FoldPlan) -> None:
    """Raise ValueError unless inputs, targets and fold plan have the same number of rows."""
    lengths = (inputs.n_videos, len(log_views), len(plan.fold_of))
    if len(set(lengths)) > 1:
        shown = "{}, {} and {} rows".format(*lengths)
        raise ValueError(f"inputs, targets and fold plan must be of the same videos, given {shown}")


def check_presence(inputs: Inputs, train_rows: Int64[np.ndarray, " row"], fold: int) -> None:
    """Raise UnfitDataError where a modality is absent from every row that trains a fold."""
    seen = inputs.present[:, train_rows].any(axis=1)
    if not seen.all():
        absent = inputs.modalities[int(seen.argmin())]
        raise UnfitDataError(f"no training row of fold {fold} has {absent}: leave it out of --modalities")


def row_chunks(n_rows: int) -> Iterator[slice]:
    """Slices of at most `CHUNK_ROWS` rows that cover all rows in order."""
    for start in range(0, n_rows, CHUNK_ROWS):
        yield slice(start, min(start + CHUNK_ROWS, n_rows))


def quantile_knots(amounts: Float32[np.ndarray, " video"]) -> Float32[np.ndarray, " knot"]:
    """Up to `N_KNOTS` increasing knots with about as many training rows between any two of them.

    >>> quantile_knots(np.array([2, 2, 2, 2, 5], dtype=np.float32))[[0, -1]]
    array([2., 5.], dtype=float32)
    """
    return np.unique(np.quantile(amounts, np.linspace(0, 1, N_KNOTS)).astype(np.float32))


def hat_basis(
    amounts: Float32[np.ndarray, " video"], knots: Float32[np.ndarray, " knot"]
) -> Float32[np.ndarray, "video knot"]:
    """Weights that interpolate linearly between increasing knots; each row sums to 1.

    Times a table with one embedding per knot they are an embedding layer for numbers. Beyond the outermost knots
    the nearest one counts alone: videos to be predicted are often newer than every training row, and a line or a
    free network drawn on into years it never saw is worth less than the value at the edge.

    >>> hat_basis(np.array([-9, 1, 3], dtype=np.float32), np.array([0, 2, 4], dtype=np.float32))
    array([[1. , 0. , 0. ],
           [0.5, 0.5, 0. ],
           [0. , 0.5, 0.5]], dtype=float32)
    """
    hats = [np.interp(amounts, knots, unit) for unit in np.eye(len(knots))]
    return np.stack(hats, axis=1).astype(np.float32)
