"""A fitted ensemble of regression trees as plain arrays: what it predicts, and how it is written down.

The nodes of all trees stand in one list. A node is a split, which compares one column with a threshold, or a leaf,
which has a value and leads to itself. A row walks from the root of every tree to one of its leaves, and

    prediction = baseline + value of its leaf in tree 0 + value of its leaf in tree 1 + ...

is added in this order, in float64. So does scikit-learn, and both agree to the last bit.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64

LEAF = -1
"""The column of a node that compares none."""

MISSING = 2
"""The child that NaN goes to; 0 is for an amount of at most the threshold, 1 for an amount above it."""

WALKERS = 2**17
"""Pairs of a row and a tree that walk at a time: enough for numpy, and few enough for the processor's cache."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Forest:
    """Trees over `n_columns` columns, on the scale of the target that they were fitted to.

    Raises ValueError where a path might not end in a leaf, or where a value is not finite.

    >>> stump = Forest(
    ...     roots=np.array([0]),
    ...     column=np.array([0, LEAF, LEAF]),
    ...     threshold=np.array([2.5, 0.0, 0.0]),
    ...     children=np.array([[1, 2, 2], [1, 1, 1], [2, 2, 2]]),
    ...     value=np.array([0.0, -1.0, 1.0]),
    ...     baseline=10.0,
    ...     n_columns=1,
    ... )
    >>> stump.predict(np.array([[2.5], [2.6], [np.nan]]))
    array([ 9., 11., 11.])
    """

    roots: Int64[np.ndarray, " tree"]
    column: Int64[np.ndarray, " node"]
    threshold: Float64[np.ndarray, " node"]
    children: Int64[np.ndarray, "node 3"]
    value: Float64[np.ndarray, " node"]
    baseline: float
    n_columns: int

    def __post_init__(self) -> None:
        n_nodes, own = len(self.column), np.arange(len(self.column))[:, None]
        deeper = (self.children > own) & (self.children < n_nodes)
        in_place = np.where(self.column[:, None] == LEAF, self.children == own, deeper)
        rules = {
            "there must be a tree": self.roots.size > 0,
            f"roots must be nodes, 0 to {n_nodes - 1}": ((self.roots >= 0) & (self.roots < n_nodes)).all(),
            f"columns must be 0 to {self.n_columns - 1}, or {LEAF} in a leaf": (
                (self.column >= LEAF) & (self.column < self.n_columns)
            ).all(),
            "a leaf must lead to itself and a split to nodes that stand after it": in_place.all(),
            "thresholds must not be NaN": not np.isnan(self.threshold).any(),
            "the baseline and all values must be finite": np.isfinite(self.value).all() and np.isfinite(self.baseline),
        }
        if broken := [rule for rule, holds in rules.items() if not holds]:
            raise ValueError(f"damaged trees: {'; '.join(broken)}. Fit them again")

    def predict(self, columns: Float[np.ndarray, "video column"]) -> Float64[np.ndarray, " video"]:
        """The prediction for every row; NaN is a missing amount. Raises ValueError for another number of columns."""
        if columns.shape[1] != self.n_columns:
            raise ValueError(f"the trees read {self.n_columns} columns, given {columns.shape[1]}")
        predicted = np.full(len(columns), self.baseline)
        n_rows = max(1, WALKERS // len(self.roots))
        for start in range(0, len(columns), n_rows):
            chunk = slice(start, start + n_rows)
            for leaf_of in self._leaves(columns[chunk].astype(np.float64)):
                predicted[chunk] += self.value[leaf_of]
        return predicted

    def holding(self, amounts: Float64[np.ndarray, " column"], held: Bool[np.ndarray, " column"]) -> "Forest":
        """The forest for rows that all have these amounts in the held columns, whatever is passed there.

        It predicts what this one does with the amounts written into the columns, to the last bit, but walks shorter
        paths: a split on a held column is decided once for all rows.
        """
        decided = np.flatnonzero((self.column != LEAF) & held[self.column])
        column = self.column[decided]
        leads_to = np.arange(len(self.column))
        leads_to[decided] = self.children[decided, _side(amounts[column], self.threshold[decided])]
        while (leads_to[leads_to] != leads_to).any():  # a decided split may lead to another
            leads_to = leads_to[leads_to]
        return replace(self, roots=leads_to[self.roots], children=leads_to[self.children])

    def averaged_with(self, others: Sequence["Forest"]) -> "Forest":
        """The forest that predicts the mean of this one and others: all their trees, each leaf its share of the mean.

        Raises ValueError for forests over another number of columns.
        """
        forests = (self, *others)
        if any(forest.n_columns != self.n_columns for forest in forests):
            raise ValueError(f"only forests over the same columns have a mean, given {[f.n_columns for f in forests]}")
        first_nodes = np.cumsum([0, *(len(forest.column) for forest in forests[:-1])])
        placed = list(zip(first_nodes, forests, strict=True))
        return Forest(
            roots=np.concatenate([first + forest.roots for first, forest in placed]),
            column=np.concatenate([forest.column for forest in forests]),
            threshold=np.concatenate([forest.threshold for forest in forests]),
            children=np.concatenate([first + forest.children for first, forest in placed]),
            value=np.concatenate([forest.value for forest in forests]) / len(forests),
            baseline=float(np.mean([forest.baseline for forest in forests])),
            n_columns=self.n_columns,
        )

    def tensors(self) -> dict[str, np.ndarray]:
        """Everything as float64 and int64 arrays by name."""
        return {
            "roots": self.roots,
            "column": self.column,
            "threshold": self.threshold,
            "children": self.children,
            "value": self.value,
            "baseline": np.array([self.baseline]),
            "n_columns": np.array([self.n_columns]),
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, np.ndarray]) -> "Forest":
        """The forest of `tensors()`.

        Raises ValueError for arrays that are missing, unknown or of another type or shape, and for damaged trees.
        """
        _check_tensors(tensors)
        arrays = dict(tensors)
        baseline, n_columns = arrays.pop("baseline").item(), arrays.pop("n_columns").item()
        return cls(**arrays, baseline=baseline, n_columns=n_columns)

    def _leaves(self, columns: Float64[np.ndarray, "video column"]) -> Int64[np.ndarray, "tree video"]:
        n_videos, n_columns = columns.shape
        # Flat arrays and `take` are twice as fast here as indexing with rows and columns.
        amounts, children = columns.ravel(), self.children.ravel()
        at = np.repeat(self.roots, n_videos)
        walkers = np.flatnonzero(self.column.take(at) != LEAF)
        node, row_start = at.take(walkers), walkers % n_videos * n_columns
        while walkers.size:
            amount = amounts.take(row_start + self.column.take(node))
            node = children.take(3 * node + _side(amount, self.threshold.take(node)))
            at[walkers] = node
            still = np.flatnonzero(self.column.take(node) != LEAF)
            walkers, node, row_start = walkers.take(still), node.take(still), row_start.take(still)
        return at.reshape(len(self.roots), n_videos)


def _side(
    amount: Float64[np.ndarray, " split"], threshold: Float64[np.ndarray, " split"]
) -> Int64[np.ndarray, " split"]:
    return np.where(np.isnan(amount), MISSING, (amount > threshold).astype(np.int64))


def _check_tensors(tensors: Mapping[str, np.ndarray]) -> None:
    n_trees, n_nodes = (tensors[name].size if name in tensors else 0 for name in ("roots", "column"))
    expected = {
        "roots": ("int64", (n_trees,)),
        "column": ("int64", (n_nodes,)),
        "threshold": ("float64", (n_nodes,)),
        "children": ("int64", (n_nodes, 3)),
        "value": ("float64", (n_nodes,)),
        "baseline": ("float64", (1,)),
        "n_columns": ("int64", (1,)),
    }
    given = {name: (str(array.dtype), array.shape) for name, array in tensors.items()}
    problems = [
        f"{name} must be {expected.get(name, 'left out')}, given {given.get(name, 'nothing')}"
        for name in sorted({*expected, *given})
        if expected.get(name) != given.get(name)
    ]
    if problems:
        raise ValueError(f"the arrays of a forest must fit together: {'; '.join(problems)}")
