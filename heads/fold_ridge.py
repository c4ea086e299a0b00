"""The ridge of one fold: its normal equations, and their solutions.

A modality is centred on the training rows where it is present and 0 where it is absent, so an absent one counts as its
mean. Every modality is scaled to a total variance of 1 per row, so that one penalty treats all alike, times a `scale`:
above 1 the modality is cheaper to use. Only words need another look at the rows; everything else follows from sums.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64, Int64

from heads.inputs import Inputs, Words, row_chunks
from heads.readers import Reader, fit_readers
from heads.ridge import Problem
from heads.sparse_ridge import Inverse, JointSystem, SparseColumns
from heads.targets import Standardisation

FEW_PENALTIES = 8
"""Up to so many, a Cholesky factorisation for each is cheaper than one eigendecomposition."""


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

    `slices` says which dense columns belong to a modality, `means` what is subtracted from them.
    """

    problem: Problem
    fold: int
    slices: Mapping[str, slice]
    means: Float64[np.ndarray, " column"]
    gram: Float64[np.ndarray, "column column"]
    rhs: Float64[np.ndarray, " column"]
    n_rows: float
    words: SparseColumns | None
    readers: Mapping[str, Reader]

    @classmethod
    def build(cls, problem: Problem, fold: int) -> "FoldRidge":
        """Take the fold's columns out of the sums that all folds share."""
        own, sums = problem.folds[fold], problem.training_sums(fold)
        gram, rhs = sums.centred()
        words = _words(problem, fold)
        readers = dict(own.fitted.readers)
        return cls(
            problem=problem,
            fold=fold,
            slices=sums.layout.slices,
            means=sums.means(),
            gram=gram,
            rhs=rhs / own.standardisation.sd,
            n_rows=float(problem.weights[problem.plan.train_rows(fold)].sum()),
            words=None if words is None else words[0],
            readers=readers if words is None else {**readers, words[0].modality: words[1]},
        )

    @property
    def standardisation(self) -> Standardisation:
        """The scale of the target."""
        return self.problem.folds[self.fold].standardisation

    def solve(self, penalties: Float64[np.ndarray, " penalty"], scales: Mapping[str, float]) -> Solutions:
        """Coefficients of every penalty; many of them cost one eigendecomposition, a few a factorisation each."""
        factor = np.ones(len(self.rhs))
        for modality, columns in self.slices.items():
            factor[columns] = _unit(np.trace(self.gram[columns, columns]) / self.n_rows) * scales.get(modality, 1.0)
        scaled = self.gram * np.outer(factor, factor)
        if self.words is None:
            right = np.repeat((factor * self.rhs)[:, None], len(penalties), axis=1)
            return Solutions(dense=factor[:, None] * _inverse(scaled, penalties)(right), words=None)
        word_factor = _unit(self.words.variance) * scales.get(self.words.modality, 1.0)
        system = self._with_words(self.words, factor, word_factor)
        dense, words = system.solve(penalties, _inverse(scaled, penalties))
        return Solutions(dense=factor[:, None] * dense, words=word_factor * words)

    def squared_errors(self, solutions: Solutions) -> Float64[np.ndarray, " penalty"]:
        """Sum of squared errors (log units) of every solution on the rows that the fold validates.

        What is less than about a millionth of the target's own sum of squares is rounding.
        """
        if self.words is not None and solutions.words is not None:
            return self._squared_errors_with_words(self.words.times(self._val_rows, solutions.words), solutions.dense)
        scale, dense = self.standardisation, self.standardisation.sd * solutions.dense
        removed = [self.means[columns] @ dense[columns] for columns in self.slices.values()]
        level = np.full((1, dense.shape[1]), scale.mean - self.problem.offset)
        error = np.zeros((len(self.problem.parts[self.fold]), dense.shape[1]))  # as a map of `Problem.columns`
        error[self.problem.places(self.fold)] = np.vstack(
            [dense, *(-row[None] for row in removed), level, 0 * level - 1]
        )
        squared: Float64[np.ndarray, " penalty"] = (error * (self.problem.parts[self.fold] @ error)).sum(axis=0)
        return squared.clip(min=0)

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

    def spread(self, modality: str, solution: Solutions) -> float:
        """Deviation (z scale) of what an embedding adds on the training rows, where its mean is 0."""
        columns = self.slices[modality]
        coefficients = solution.dense[columns, 0]
        return float(np.sqrt(max(coefficients @ self.gram[columns, columns] @ coefficients, 0.0) / self.n_rows))

    @property
    def _val_rows(self) -> Int64[np.ndarray, " row"]:
        return self.problem.plan.val_rows(self.fold)

    def _squared_errors_with_words(
        self, of_words: Float64[np.ndarray, "row penalty"], dense: Float64[np.ndarray, "column penalty"]
    ) -> Float64[np.ndarray, " penalty"]:
        rows, z = self._val_rows, of_words.copy()
        for chunk in row_chunks(len(rows)):
            z[chunk] += self._centred(rows[chunk]) @ dense.astype(np.float32)
        errors = self.standardisation.mean + self.standardisation.sd * z - self.problem.log_views[rows, None]
        squared: Float64[np.ndarray, " penalty"] = self.problem.weights[rows] @ np.square(errors)
        return squared

    def _centred(self, rows: Int64[np.ndarray, " row"]) -> Float32[np.ndarray, "row column"]:
        """The dense columns of some rows."""
        columns = self.problem.columns(rows, self.problem.inputs.take(rows))[:, self.problem.places(self.fold)]
        presence = columns[:, len(self.means) : -2]
        for index, own in enumerate(self.slices.values()):
            columns[:, own] -= np.outer(presence[:, index], self.means[own]).astype(np.float32)
        return columns[:, : len(self.means)]

    def _with_words(
        self, words: SparseColumns, factor: Float64[np.ndarray, " column"], word_factor: float
    ) -> JointSystem:
        train_rows = self.problem.plan.train_rows(self.fold)
        root = np.sqrt(self.problem.weights[train_rows])
        scaled = root[:, None] * factor
        return JointSystem(
            dense=self._centred(train_rows) * scaled,
            words=words.tf_idf[train_rows].multiply(word_factor * root[:, None]).tocsr(),
            centre=word_factor * words.means,
            present=root * words.present[train_rows],
            z=root * self.standardisation.apply(self.problem.log_views[train_rows]),
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


def _words(problem: Problem, fold: int) -> tuple[SparseColumns, Reader] | None:
    """The sparse columns, of which there is one modality at most, and how they are read."""
    for block in problem.outline.blocks:
        if isinstance(block, Words):
            train_rows = problem.plan.train_rows(fold)
            z = problem.log_views  # words learn from no target
            fitted = fit_readers(Inputs((block,)), z, train_rows, np.random.default_rng(problem.seed))
            weights = problem.weights[train_rows]
            tf_idf, reader = fitted.columns[block.modality], fitted.readers[block.modality]
            return SparseColumns.build(block.modality, tf_idf, block.present, train_rows, weights), reader
    return None


def _unit(variance: float) -> float:
    """The factor that gives a modality a total variance of 1; one without any keeps its columns of zeros."""
    return float(1 / np.sqrt(variance)) if variance > 0 else 1.0
