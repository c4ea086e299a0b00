"""What is regressed on what: the dense columns of every fold, and the sums over them that all folds share.

The columns are those of the embeddings, then those that are fitted in the fold (knots, category means). Words, which
are sparse, stand apart (`heads.fold_ridge`). Nothing here looks at a row but one pass that takes the sums, so the rows
need not be in memory.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import numpy as np
from jaxtyping import Float32, Float64, Int64

from heads.chunks import Chunks, in_memory
from heads.folds import FoldPlan
from heads.gram import Layout, Sums, part_products
from heads.inputs import Block, Inputs, Rows, Words, check_presence, check_same_videos
from heads.readers import AsIs, FoldReaders, fit_readers
from heads.targets import Standardisation


@dataclass(frozen=True, eq=False)
class OwnColumns:
    """What a fold fits before any sum is taken: the scale of its target, and how it reads what is no embedding."""

    standardisation: Standardisation
    fitted: FoldReaders  # with columns of the categories alone, which learn from targets

    @classmethod
    def fit(cls, problem: "Problem", fold: int) -> "OwnColumns":
        """Look at the fold's training rows alone."""
        train_rows = problem.plan.train_rows(fold)
        standardisation = Standardisation.fit(problem.log_views[train_rows], problem.weights[train_rows])
        z = standardisation.apply(problem.log_views)
        dense = tuple(block for block in problem.outline.blocks if not isinstance(block, Words))
        if not dense:
            return cls(standardisation, FoldReaders({}, {}))
        rng = np.random.default_rng((problem.seed, fold))
        return cls(standardisation, fit_readers(Inputs(dense), z, train_rows, rng, keep_knots=False))

    @property
    def widths(self) -> dict[str, int]:
        """How many columns each modality has here."""
        readers = self.fitted.readers.items()
        return {modality: reader.width for modality, reader in readers if not isinstance(reader, AsIs)}

    def read(self, rows: Rows, inputs: Inputs) -> Iterator[Float32[np.ndarray, "row column"]]:
        """The columns of each modality for rows whose inputs these are; zeros where it is absent."""
        for modality in self.widths:
            block, kept = inputs.block(modality), self.fitted.columns.get(modality)
            columns = self.fitted.readers[modality].read(block) if kept is None else kept[rows]
            yield columns * block.present[:, None]


@dataclass(frozen=True, eq=False)
class Problem:
    """What is regressed on what, by which folds; `weights` are those of the rows.

    Raises ValueError for arrays of different length, UnfitDataError for a modality that no training row of a fold has.
    """

    chunks: Chunks
    log_views: Float64[np.ndarray, " video"]
    plan: FoldPlan
    weights: Float64[np.ndarray, " video"]
    seed: int

    def __post_init__(self) -> None:
        check_same_videos(self.outline, self.log_views, self.plan)
        if len(self.weights) != len(self.log_views):
            raise ValueError(f"{len(self.log_views)} rows need as many weights, given {len(self.weights)}")
        for fold in range(self.plan.n_folds):
            check_presence(self.outline, self.plan.train_rows(fold), fold)

    @property
    def outline(self) -> Inputs:
        """The inputs but for their embeddings."""
        return self.chunks.outline

    @property
    def inputs(self) -> Inputs:
        """All inputs; raises TypeError where they are not in memory."""
        return in_memory(self.chunks)

    @cached_property
    def embeddings(self) -> Layout:
        """The columns of the embeddings, which all folds share."""
        blocks = [block for block in self.outline.blocks if isinstance(block, Block) and not block.knotted]
        return Layout({block.modality: block.values.shape[1] for block in blocks})

    @cached_property
    def folds(self) -> list[OwnColumns]:
        """The columns that each fold has for itself."""
        return [OwnColumns.fit(self, fold) for fold in range(self.plan.n_folds)]

    @cached_property
    def offset(self) -> float:
        """What is taken off the target, so that its products are exact in float32."""
        return float(self.log_views.mean())

    @cached_property
    def parts(self) -> dict[int, Float64[np.ndarray, "column column"]]:
        """Sums of every part of the rows over the columns of `columns`."""
        chunks = ((rows, self.columns(rows, inputs)) for rows, inputs in self.chunks)
        return part_products(chunks, self._ends[-1], self.plan.fold_of, self.weights)

    def columns(self, rows: Rows, inputs: Inputs) -> Float32[np.ndarray, "row column"]:
        """The columns of the embeddings, of fold 0, of fold 1, ..., presence, 1 and y, for rows with these inputs."""
        out = np.empty((inputs.n_videos, self._ends[-1]), np.float32)
        places = self.embeddings.slices
        for block in inputs.blocks:
            if isinstance(block, Block) and block.modality in places:
                out[:, places[block.modality]] = block.values
        for fold, own in enumerate(self.folds):
            start = self._ends[fold]
            for columns in own.read(rows, inputs):
                out[:, start : start + columns.shape[1]] = columns
                start += columns.shape[1]
        for column, modality in enumerate(self.layout(0).widths, start=self._ends[-2]):
            out[:, column] = inputs.block(modality).present
        out[:, -2], out[:, -1] = 1, self.log_views[rows] - self.offset
        return out

    def layout(self, fold: int) -> Layout:
        """The dense columns of one fold."""
        return Layout({**self.embeddings.widths, **self.folds[fold].widths})

    def places(self, fold: int) -> Int64[np.ndarray, " place"]:
        """Which of `columns` are a fold's: embeddings, its own, presence, 1 and y."""
        ends = self._ends
        return np.concatenate(
            [np.arange(ends[0]), np.arange(ends[fold], ends[fold + 1]), np.arange(ends[-2], ends[-1])]
        )

    def training_sums(self, fold: int) -> Sums:
        """S of the rows that train a fold: the sum over the parts that do."""
        trains = np.unique(self.plan.fold_of[self.plan.train_rows(fold)]).tolist()
        places = np.ix_(self.places(fold), self.places(fold))
        return Sums(self.layout(fold), np.sum([self.parts[part][places] for part in trains], axis=0))

    @cached_property
    def _ends(self) -> list[int]:
        """Where the columns of the embeddings, of each fold, and all of them end."""
        own = [sum(fold.widths.values()) for fold in self.folds]
        n_modalities = len(self.embeddings.widths) + len(self.folds[0].widths)
        return list(accumulate([self.embeddings.width, *own, n_modalities + 2]))
