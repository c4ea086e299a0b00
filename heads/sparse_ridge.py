"""A ridge over dense columns X and sparse ones W together, by conjugate gradients, for all penalties side by side.

    (A + penalty) u = b   with   A = [X W]'[X W],   b = [X W]'z

Nothing is formed that is as large as words times words. The preconditioner inverts X'X + penalty exactly and
W'W + penalty on its diagonal, so the many correlated dense columns cost no iterations. (Solving in the space of the
rows instead took more than twice as long at 1,800 rows, and its cost grows with their cube.)
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int64

from heads.errors import UnfitDataError

TOLERANCE = 1e-5
"""Relative residual at which an iteration ends."""

ACCEPTED = 1e-2
"""Relative residual with which a solution is still taken: words that are cheap to use converge slowly, and badly
conditioned directions that have not been reached by then are those that a ridge hardly uses."""

MAX_ITERATIONS = 200

Inverse = Callable[[Float64[np.ndarray, "column penalty"]], Float64[np.ndarray, "column penalty"]]
"""Applies (X'X + penalty)^-1, the penalty of each column being its own."""

Operator = Callable[[Float64[np.ndarray, "any penalty"]], Float64[np.ndarray, "any penalty"]]


@dataclass(frozen=True, eq=False)
class SparseColumns:
    """Words as columns: centred where their text is present and 0 where it is absent, without ever becoming dense."""

    modality: str
    tf_idf: Any  # scipy.sparse (video, word)
    present: Bool[np.ndarray, " video"]
    means: Float64[np.ndarray, " word"]
    variance: float  # total variance per row of the training rows

    @classmethod
    def build(
        cls,
        modality: str,
        tf_idf: Any,
        present: Bool[np.ndarray, " video"],
        train_rows: Int64[np.ndarray, " row"],
        weights: Float64[np.ndarray, " row"],
    ) -> "SparseColumns":
        """Take means and variance from the training rows."""
        here = weights * present[train_rows]
        n_rows, rows = float(weights.sum()), tf_idf[train_rows]
        means = rows.T @ here / float(here.sum())
        second = float((rows.multiply(rows).T @ here).sum())
        variance = (second - float(here.sum()) * float(means @ means)) / n_rows
        return cls(modality, tf_idf, present, means, variance)

    def times(
        self, rows: Int64[np.ndarray, " row"], coefficients: Float64[np.ndarray, "word penalty"]
    ) -> Float64[np.ndarray, "row penalty"]:
        """Contribution of the words of some rows."""
        product: Float64[np.ndarray, "row penalty"] = self.tf_idf[rows] @ coefficients
        product -= np.outer(self.present[rows], self.means @ coefficients)
        return product


@dataclass(frozen=True, eq=False, kw_only=True)
class JointSystem:
    """[X W] of the training rows, scaled; each row already multiplied by the root of its weight."""

    dense: Float64[np.ndarray, "row column"]  # float32 products stall the iteration before the tolerance
    words: Any  # scipy.sparse (row, word), scaled and weighted, not centred
    centre: Float64[np.ndarray, " word"]
    present: Float64[np.ndarray, " row"]  # presence times the root of the weight
    z: Float64[np.ndarray, " row"]

    def solve(
        self, penalties: Float64[np.ndarray, " penalty"], inverse: Inverse
    ) -> tuple[Float64[np.ndarray, "column penalty"], Float64[np.ndarray, "word penalty"]]:
        """Coefficients of dense columns and words by conjugate gradients; `inverse` is that of X'X + penalty.

        Raises UnfitDataError where they do not converge.
        """
        width = self.dense.shape[1]
        right = np.repeat(self._transposed(self.z[:, None]), len(penalties), axis=1)
        diagonal = np.asarray(self.words.multiply(self.words).sum(axis=0)).ravel()
        diagonal = (diagonal - float(self.present @ self.present) * self.centre**2).clip(min=0)

        def system(vectors: Float64[np.ndarray, "any penalty"]) -> Float64[np.ndarray, "any penalty"]:
            image: Float64[np.ndarray, "any penalty"] = vectors * penalties
            image += self._transposed(self._times(vectors))
            return image

        def precondition(vectors: Float64[np.ndarray, "any penalty"]) -> Float64[np.ndarray, "any penalty"]:
            return np.concatenate([inverse(vectors[:width]), vectors[width:] / (diagonal[:, None] + penalties)])

        solution = _conjugate_gradients(system, precondition, right)
        return solution[:width], solution[width:]

    def _times(self, vectors: Float64[np.ndarray, "any penalty"]) -> Float64[np.ndarray, "row penalty"]:
        width = self.dense.shape[1]
        product: Float64[np.ndarray, "row penalty"] = self.words @ vectors[width:]
        product += self.dense @ vectors[:width]
        product -= np.outer(self.present, self.centre @ vectors[width:])
        return product

    def _transposed(self, vectors: Float64[np.ndarray, "row any"]) -> Float64[np.ndarray, "column any"]:
        of_words = self.words.T @ vectors - np.outer(self.centre, self.present @ vectors)
        return np.concatenate([self.dense.T @ vectors, of_words])


def _conjugate_gradients(
    system: Operator, precondition: Operator, right: Float64[np.ndarray, "any penalty"]
) -> Float64[np.ndarray, "any penalty"]:
    """Solve one system per column; columns share the products but not their steps."""
    solution: Float64[np.ndarray, "any penalty"] = np.zeros_like(right)
    residual = right.copy()
    goal = TOLERANCE * np.linalg.norm(right, axis=0)
    direction = preconditioned = precondition(residual)
    descent = np.einsum("ij,ij->j", residual, preconditioned)
    for _ in range(MAX_ITERATIONS):
        if (np.linalg.norm(residual, axis=0) <= goal).all():
            return solution
        image = system(direction)
        step = _ratio(descent, np.einsum("ij,ij->j", direction, image))
        solution += step * direction
        residual -= step * image
        preconditioned = precondition(residual)
        before, descent = descent, np.einsum("ij,ij->j", residual, preconditioned)
        direction = preconditioned + _ratio(descent, before) * direction
    if (np.linalg.norm(residual, axis=0) <= ACCEPTED / TOLERANCE * goal).all():
        return solution
    raise UnfitDataError("the ridge over words did not converge: leave words out of --modalities")


def _ratio(
    above: Float64[np.ndarray, " penalty"], below: Float64[np.ndarray, " penalty"]
) -> Float64[np.ndarray, " penalty"]:
    """Ratio, 0 where a column is solved already."""
    ratio: Float64[np.ndarray, " penalty"] = np.divide(above, below, out=np.zeros_like(above), where=below > 0)
    return ratio
