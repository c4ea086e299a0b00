"""Gradient-boosted trees over the columns of all modalities: how they are fitted, and what each modality changes."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64

from heads.errors import UnfitDataError
from heads.forest import LEAF, Forest


@dataclass(frozen=True, kw_only=True)
class TreeSettings:
    """How trees are boosted, in the words of scikit-learn's `HistGradientBoostingRegressor`.

    The number of trees is fixed: stopping early would need rows that are then lost, or rows that also score the model.
    The defaults were chosen out of fold on 1,800 to 13,300 training rows with 69 to 197 columns; near them, differences
    are hardly larger than between seeds.
    """

    learning_rate: float = 0.05
    max_iter: int = 300
    max_leaf_nodes: int = 31
    min_samples_leaf: int = 10
    l2_regularization: float = 5.0
    max_features: float = 0.5
    seed: int = 42

    def __post_init__(self) -> None:
        rules = {
            "learning_rate must be above 0": self.learning_rate > 0,
            "max_iter must be at least 1": self.max_iter >= 1,
            "max_leaf_nodes must be at least 2": self.max_leaf_nodes >= 2,
            "min_samples_leaf must be at least 1": self.min_samples_leaf >= 1,
            "l2_regularization must not be negative": self.l2_regularization >= 0,
            "max_features must be above 0 and at most 1": 0 < self.max_features <= 1,
            "seed must not be negative": self.seed >= 0,
        }
        if broken := [rule for rule, holds in rules.items() if not holds]:
            raise ValueError(f"{'; '.join(broken)}, given {self}")


DEFAULTS = TreeSettings()

_OWN = {"modality_of": "int64", "column_means": "float64"}


@dataclass(frozen=True, eq=False, kw_only=True)
class FittedTrees:
    """A forest over the columns of several modalities, on the z scale.

    Column k belongs to `modalities[modality_of[k]]`. Where a modality is absent its columns hold `column_means`, their
    means over the training rows. Raises ValueError where these do not fit together.
    """

    forest: Forest
    modalities: tuple[str, ...]
    modality_of: Int64[np.ndarray, " column"]
    column_means: Float64[np.ndarray, " column"]

    def __post_init__(self) -> None:
        lengths = (self.forest.n_columns, len(self.modality_of), len(self.column_means))
        if len(set(lengths)) > 1:
            raise ValueError(
                f"each column needs a modality and a mean, given {lengths} of columns, modalities and means"
            )
        if not ((self.modality_of >= 0) & (self.modality_of < len(self.modalities))).all():
            raise ValueError(f"columns must belong to one of {self.modalities}, given indices {self.modality_of}")
        if not np.isfinite(self.column_means).all():
            raise ValueError(f"the means of the columns must be finite, given {self.column_means}")

    @classmethod
    def fit(
        cls,
        columns: Float[np.ndarray, "video column"],
        z: Float64[np.ndarray, " video"],
        modalities: tuple[str, ...],
        modality_of: Int64[np.ndarray, " column"],
        settings: TreeSettings = DEFAULTS,
    ) -> "FittedTrees":
        """Trees fitted to training rows as `fit_forest` does it, and the means of these rows."""
        forest = fit_forest(columns, z, settings)
        return cls(forest=forest, modalities=modalities, modality_of=modality_of, column_means=known_means(columns))

    def predict(self, columns: Float[np.ndarray, "video column"]) -> Float64[np.ndarray, " video"]:
        """Predicted z with every modality as it is given."""
        return self.forest.predict(columns)

    def coalition_predictions(
        self, columns: Float[np.ndarray, "video column"]
    ) -> Float64[np.ndarray, "coalition video"]:
        """Predicted z with every subset of the modalities present, in the order of `coalitions`.

        The first row is the same everywhere, as nothing is known; the last is `predict`. Here the mean age is 19.5:

        >>> columns = np.column_stack([np.zeros(40), np.arange(40.0)])
        >>> z = np.repeat([-1.0, 1.0], [10, 30])
        >>> trees = FittedTrees.fit(columns, z, ("text", "age"), np.array([0, 1]))
        >>> trees.coalition_predictions(np.array([[0.0, 2.0]])).round(1)
        array([[ 1.],
               [ 1.],
               [-1.],
               [-1.]])
        """
        present = coalitions(len(self.modalities))[:, self.modality_of]
        forests = (self.forest.holding(self.column_means, ~known) for known in present)
        return np.stack([forest.predict(columns) for forest in forests])

    def tensors(self) -> dict[str, np.ndarray]:
        """All arrays by name, in float64 and int64; the names of the modalities are not among them."""
        return {**self.forest.tensors(), "modality_of": self.modality_of, "column_means": self.column_means}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, np.ndarray], modalities: tuple[str, ...]) -> "FittedTrees":
        """The trees of `tensors()`; raises ValueError for arrays that are missing, unknown or damaged."""
        forest = Forest.from_tensors({name: array for name, array in tensors.items() if name not in _OWN})
        own = {name: tensors.get(name, np.empty(())) for name in _OWN}
        for name, array in own.items():
            if array.dtype != _OWN[name] or array.shape != (forest.n_columns,):
                raise ValueError(
                    f"the trees need {name}, {forest.n_columns} numbers of type {_OWN[name]}; "
                    f"given {array.dtype} of shape {array.shape}"
                )
        return cls(forest=forest, modalities=modalities, **own)


def fit_forest(
    columns: Float[np.ndarray, "video column"],
    z: Float64[np.ndarray, " video"],
    settings: TreeSettings = DEFAULTS,
    *,
    threads: int = 1,
) -> Forest:
    """Trees that predict z from the columns; NaN is a missing amount, for which each split learns a side.

    They depend on the rows, their order and the settings alone, to the last bit: `threads` only changes how long it
    takes. Threads wait for each other many times per tree, so more than one can help on idle cores, but on cores
    that others use too it costs up to forty times as long.
    Raises UnfitDataError for no rows, a target that is not finite and an infinite amount.

    >>> forest = fit_forest(np.arange(40.0)[:, None], np.repeat([-1.0, 1.0], 20))
    >>> forest.predict(np.array([[0.0], [39.0]])).round(3)
    array([-1.,  1.])
    """
    from sklearn.ensemble import HistGradientBoostingRegressor  # noqa: PLC0415  takes a second, which saved trees spare
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # noqa: PLC0415  only fitting needs it

    _check_rows(columns, z)
    options = asdict(settings)
    seed = options.pop("seed")
    estimator = HistGradientBoostingRegressor(
        **options, random_state=seed, early_stopping=False, categorical_features=None
    )
    with threadpool_limits(threads, user_api="openmp"):
        estimator.fit(columns, z)
    return forest_of(estimator)


def forest_of(estimator: Any) -> Forest:
    """The trees of a fitted `HistGradientBoostingRegressor` without categorical columns.

    scikit-learn keeps them in attributes with an underscore, as structured arrays, one per tree.
    """
    trees = [predictor.nodes for (predictor,) in estimator._predictors]
    sizes = [len(nodes) for nodes in trees]
    roots = np.cumsum([0, *sizes[:-1]])
    nodes, own, root = np.concatenate(trees), np.arange(sum(sizes)), np.repeat(roots, sizes)
    is_leaf = nodes["is_leaf"] == 1
    left, right = (np.where(is_leaf, own, root + nodes[side]) for side in ("left", "right"))
    missing = np.where(nodes["missing_go_to_left"] == 1, left, right)
    return Forest(
        roots=roots,
        column=np.where(is_leaf, LEAF, nodes["feature_idx"]),
        threshold=np.where(is_leaf, 0.0, nodes["num_threshold"]),
        children=np.stack([left, right, missing], axis=1),
        value=np.where(is_leaf, nodes["value"], 0.0),
        baseline=float(estimator._baseline_prediction.item()),
        n_columns=int(estimator.n_features_in_),
    )


def known_means(columns: Float[np.ndarray, "video column"]) -> Float64[np.ndarray, " column"]:
    """Mean of each column over the rows where it is not NaN; 0 where it always is.

    >>> known_means(np.array([[1.0, np.nan], [np.nan, np.nan], [4.0, np.nan]]))
    array([2.5, 0. ])
    """
    known = ~np.isnan(columns)
    sums = np.where(known, columns, 0).sum(axis=0, dtype=np.float64)
    means: Float64[np.ndarray, " column"] = sums / np.maximum(known.sum(axis=0), 1)
    return means


def coalitions(n_modalities: int) -> Bool[np.ndarray, "coalition modality"]:
    """All subsets of the modalities: modality m is in coalition c where bit m of c is 1.

    >>> coalitions(2).astype(int)
    array([[0, 0],
           [1, 0],
           [0, 1],
           [1, 1]])
    """
    bits: Bool[np.ndarray, "coalition modality"] = (
        np.arange(2**n_modalities)[:, None] >> np.arange(n_modalities) & 1 == 1
    )
    return bits


def _check_rows(columns: Float[np.ndarray, "video column"], z: Float64[np.ndarray, " video"]) -> None:
    if not len(z) or not np.isfinite(z).all():
        raise UnfitDataError(f"trees need training rows with finite targets, given {len(z)} rows: drop the others")
    if np.isinf(columns).any():
        row, column = np.argwhere(np.isinf(columns))[0].tolist()
        raise UnfitDataError(f"columns must be finite, or NaN where missing; row {row} of column {column} is infinite")
