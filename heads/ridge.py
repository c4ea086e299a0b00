"""The ridge of one fold: its columns, centred per modality, its normal equations, and their solutions.

The columns are those of the embeddings, then those that are fitted in the fold (knots, category means); words, which
are sparse, stand apart. A modality is centred on the training rows where it is present and 0 where it is absent, so an
absent one counts as its mean. Every modality is scaled to a total variance of 1 per row, so that one penalty treats all
alike, times a `scale`: above 1 the modality is cheaper to use.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float32, Float64, Int64

from heads.folds import FoldPlan
from heads.gram import Layout, Sums, columns_of, part_sums, training_sums
from heads.inputs import Block, Inputs, check_presence, check_same_videos, row_chunks
from heads.readers import FoldReaders, TfIdf, fit_readers
from heads.sparse_ridge import Inverse, JointSystem, SparseColumns
from heads.targets import Standardisation

FEW_PENALTIES = 8
"""Up to so many, a Cholesky factorisation for each is cheaper than one eigendecomposition."""


@dataclass(frozen=True, eq=False)
class Problem:
    """What is regressed on what, by which folds; `weights` are those of the rows.

    Raises ValueError for arrays of different length, UnfitDataError for a modality that no training row of a fold has.
    """

    inputs: Inputs
    log_views: Float64[np.ndarray, " video"]
    plan: FoldPlan
    weights: Float64[np.ndarray, " video"]
    seed: int

    def __post_init__(self) -> None:
        check_same_videos(self.inputs, self.log_views, self.plan)
        if len(self.weights) != len(self.log_views):
            raise ValueError(f"{len(self.log_views)} rows need as many weights, given {len(self.weights)}")
        for fold in range(self.plan.n_folds):
            check_presence(self.inputs, self.plan.train_rows(fold), fold)

    @cached_property
    def layout(self) -> Layout:
        """The embeddings, whose sums all folds share."""
        return Layout([block for block in self.inputs.blocks if isinstance(block, Block) and not block.knotted])

    @cached_property
    def parts(self) -> dict[int, Sums]:
        """Sums of every part of the rows; the target less its mean, which keeps its products exact in float32."""
        target = self.log_views - self.log_views.mean()
        return part_sums(self.layout, target, self.plan.fold_of, self.weights)


@dataclass(frozen=True, eq=False)
class OwnColumns:
    """Dense columns that are fitted in the fold, of all videos, centred; `slices` counts from the first of them."""

    slices: Mapping[str, slice]
    means: Float64[np.ndarray, " own"]
    values: Float32[np.ndarray, "video own"]

    @classmethod
    def build(cls, problem: Problem, readers: FoldReaders, train_rows: Int64[np.ndarray, " row"]) -> "OwnColumns":
        """Centre every modality on the training rows where it is present."""
        slices, means, values = {}, [np.zeros(0)], [np.zeros((problem.inputs.n_videos, 0), np.float32)]
        start = 0
        for modality, columns in readers.columns.items():
            if isinstance(readers.readers[modality], TfIdf):
                continue
            present = problem.inputs.block(modality).present
            here = problem.weights[train_rows] * present[train_rows]
            mean = here @ columns[train_rows] / float(here.sum())
            means.append(mean)
            values.append((columns - mean.astype(np.float32)) * present[:, None])
            slices[modality] = slice(start, start + columns.shape[1])
            start += columns.shape[1]
        return cls(slices, np.concatenate(means), np.hstack(values))


@dataclass(frozen=True, eq=False, kw_only=True)
class Solutions:
    """Coefficients of every penalty, in units of the unscaled, centred columns; `words` if there are any."""

    dense: Float64[np.ndarray, "column penalty"]
    words: Float64[np.ndarray, "word penalty"] | None

    def at(self, index: int) -> "Solutions":
        """The solution of one penalty alone."""
        words = None if self.words is None else self.words[:, [index]]
        return Solutions(dense=self.dense[:, [index]], words=words)


@dataclass(frozen=True, eq=False, kw_only=True)
class FoldRidge:
    """Normal equations of one fold: `gram` and `rhs` are X'X and X'z of the dense columns on its training rows.

    `slices` says which dense columns belong to a modality, `means` what was subtracted from them.
    """

    problem: Problem
    train_rows: Int64[np.ndarray, " row"]
    standardisation: Standardisation
    readers: FoldReaders
    slices: Mapping[str, slice]
    means: Float64[np.ndarray, " column"]
    own: Float32[np.ndarray, "video own"]
    gram: Float64[np.ndarray, "column column"]
    rhs: Float64[np.ndarray, " column"]
    words: SparseColumns | None

    @classmethod
    def build(cls, problem: Problem, fold: int) -> "FoldRidge":
        """Complete the sums that all folds share with the columns that only this fold has."""
        train_rows = problem.plan.train_rows(fold)
        weights = problem.weights[train_rows]
        standardisation = Standardisation.fit(problem.log_views[train_rows], weights)
        z = standardisation.apply(problem.log_views)
        readers = fit_readers(problem.inputs, z, train_rows, np.random.default_rng((problem.seed, fold)))
        own = OwnColumns.build(problem, readers, train_rows)
        sums = training_sums(problem.parts, problem.plan, fold)
        gram, rhs = sums.centred()
        weighted = own.values[train_rows] * weights[:, None].astype(np.float32)
        cross = _cross_products(problem, sums.means(), weighted, train_rows)
        own_gram = weighted.T.astype(np.float64) @ own.values[train_rows]
        offset = problem.layout.width
        shared = zip(problem.layout.blocks, problem.layout.slices, strict=True)
        return cls(
            problem=problem,
            train_rows=train_rows,
            standardisation=standardisation,
            readers=readers,
            slices={block.modality: columns for block, columns in shared}
            | {name: slice(own_.start + offset, own_.stop + offset) for name, own_ in own.slices.items()},
            means=np.concatenate([sums.means(), own.means]),
            own=own.values,
            gram=np.block([[gram, cross], [cross.T, own_gram]]),
            rhs=np.concatenate([rhs / standardisation.sd, weighted.T.astype(np.float64) @ z[train_rows]]),
            words=_words(problem, readers, train_rows),
        )

    def solve(self, penalties: Float64[np.ndarray, " penalty"], scales: Mapping[str, float]) -> Solutions:
        """Coefficients of every penalty; many of them cost one eigendecomposition, a few a factorisation each."""
        factor = np.ones(len(self.rhs))
        n_rows = float(self.problem.weights[self.train_rows].sum())
        for modality, columns in self.slices.items():
            factor[columns] = _unit(np.trace(self.gram[columns, columns]) / n_rows) * scales.get(modality, 1.0)
        scaled = self.gram * np.outer(factor, factor)
        if self.words is None:
            right = np.repeat((factor * self.rhs)[:, None], len(penalties), axis=1)
            return Solutions(dense=factor[:, None] * _inverse(scaled, penalties)(right), words=None)
        word_factor = _unit(self.words.variance) * scales.get(self.words.modality, 1.0)
        system = self._with_words(self.words, factor, word_factor)
        dense, words = system.solve(penalties, _inverse(scaled, penalties))
        return Solutions(dense=factor[:, None] * dense, words=word_factor * words)

    def predict(self, rows: Int64[np.ndarray, " row"], solutions: Solutions) -> Float64[np.ndarray, "row penalty"]:
        """Log views of some videos by every solution."""
        z = np.zeros((len(rows), solutions.dense.shape[1]))
        for chunk in row_chunks(len(rows)):
            z[chunk] = self._centred(rows[chunk]) @ solutions.dense.astype(np.float32)
        if self.words is not None and solutions.words is not None:
            z += self.words.times(rows, solutions.words)
        return self.standardisation.mean + self.standardisation.sd * z

    def of_modality(
        self, modality: str, solution: Solutions
    ) -> tuple[Float64[np.ndarray, " column"], Float64[np.ndarray, " column"]]:
        """Coefficients of one modality's columns in the first of the solutions, and what is subtracted from them."""
        if modality in self.slices:
            columns = self.slices[modality]
            return solution.dense[columns, 0], self.means[columns]
        if self.words is None or solution.words is None or self.words.modality != modality:
            raise ValueError(f"the ridge has no columns of {modality}")
        return solution.words[:, 0], self.words.means

    def _centred(self, rows: Int64[np.ndarray, " row"]) -> Float32[np.ndarray, "row column"]:
        """The dense columns of some rows."""
        columns = np.hstack([columns_of(self.problem.layout, rows), self.own[rows]])
        for block, own in zip(self.problem.layout.blocks, self.problem.layout.slices, strict=True):
            columns[:, own] -= np.outer(block.present[rows], self.means[own]).astype(np.float32)
        return columns

    def _with_words(
        self, words: SparseColumns, factor: Float64[np.ndarray, " column"], word_factor: float
    ) -> JointSystem:
        root = np.sqrt(self.problem.weights[self.train_rows])
        scaled = root[:, None] * factor
        return JointSystem(
            dense=self._centred(self.train_rows) * scaled,
            words=words.tf_idf[self.train_rows].multiply(word_factor * root[:, None]).tocsr(),
            centre=word_factor * words.means,
            present=root * words.present[self.train_rows],
            z=root * self.standardisation.apply(self.problem.log_views[self.train_rows]),
        )


def _inverse(gram: Float64[np.ndarray, "column column"], penalties: Float64[np.ndarray, " penalty"]) -> Inverse:
    """(gram + penalty)^-1 as a function of vectors, one column per penalty."""
    if len(penalties) > FEW_PENALTIES:
        spectrum, axes = np.linalg.eigh(gram)
        shrunken = 1 / (spectrum.clip(min=0)[:, None] + penalties)
        return lambda vectors: axes @ ((axes.T @ vectors) * shrunken)
    from scipy.linalg import cho_factor, cho_solve  # noqa: PLC0415  slow, and only a search needs it

    identity = np.eye(len(gram))
    factors = [cho_factor(gram + penalty * identity, check_finite=False) for penalty in penalties]

    def apply(vectors: Float64[np.ndarray, "column penalty"]) -> Float64[np.ndarray, "column penalty"]:
        solved = [
            cho_solve(factor, column, check_finite=False) for factor, column in zip(factors, vectors.T, strict=True)
        ]
        return np.stack(solved, axis=1)

    return apply


def _cross_products(
    problem: Problem,
    means: Float64[np.ndarray, " column"],
    weighted: Float32[np.ndarray, "row own"],
    train_rows: Int64[np.ndarray, " row"],
) -> Float64[np.ndarray, "column own"]:
    """(X - P mu')'F of the embeddings X and the fold's own weighted columns F."""
    layout = problem.layout
    total = np.zeros((layout.width, weighted.shape[1]))
    present = np.zeros((len(layout.blocks), weighted.shape[1]))
    for chunk in row_chunks(len(train_rows)):
        rows = train_rows[chunk]
        total += columns_of(layout, rows).T @ weighted[chunk]
        for index, block in enumerate(layout.blocks):
            present[index] += block.present[rows] @ weighted[chunk]
    for index, columns in enumerate(layout.slices):
        total[columns] -= np.outer(means[columns], present[index])
    return total


def _words(problem: Problem, readers: FoldReaders, train_rows: Int64[np.ndarray, " row"]) -> SparseColumns | None:
    """The sparse columns, of which there is one modality at most."""
    for modality, reader in readers.readers.items():
        if isinstance(reader, TfIdf):
            present = problem.inputs.block(modality).present
            weights = problem.weights[train_rows]
            return SparseColumns.build(modality, readers.columns[modality], present, train_rows, weights)
    return None


def _unit(variance: float) -> float:
    """The factor that gives a modality a total variance of 1; one without any keeps its columns of zeros."""
    return float(1 / np.sqrt(variance)) if variance > 0 else 1.0
