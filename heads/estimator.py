"""The heads as a scikit-learn estimator, for tables in memory: `fit`, `predict`, `clone`, `cross_val_score`.

>>> import numpy as np
>>> rng = np.random.default_rng(0)
>>> x = rng.normal(size=(90, 5))
>>> model = SimplexRegressor(blocks={"image": slice(0, 4), "age": [4]}).fit(x, x[:, 0] + 0.1 * x[:, 4])
>>> model.weights_["image"] > 0.8
True
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Float64
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from heads.config import HeadsConfig
from heads.ensemble import combine
from heads.fit import fit
from heads.folds import kfold
from heads.inputs import Block, Inputs
from heads.targets import Target

Columns = slice | Sequence[int] | Sequence[str]
"""Columns of one modality, by position or, in a table with names, by name."""


class SimplexRegressor(RegressorMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn ships no types
    """One head per modality, combined by weights on the simplex; the mean of one member per inner fold.

    Parameters
    ----------
    blocks
        Modality -> its columns, of an array or of a table with column names; None: all columns are one modality.
        Rows where any of a modality's columns is NaN lack that modality, and it counts as its mean there.
    head
        "linear", "hybrid", "mlp" or "trees".
    folds, seed
        The inner folds, as scikit-learn's KFold draws them.
    target
        "none", or "log1p" to learn log1p(y); predictions are on the scale of y either way.
    normalise
        Whether the rows of a modality of several columns are scaled to length 1, as embeddings want it.
    options
        Further fields of `heads.config.HeadsConfig`, such as {"epochs": 10, "lr": 3e-3}.

    Attributes
    ----------
    weights_
        Modality -> its share of the spread of the prediction, the mean over the members.
    members_
        The trained members, one per inner fold.
    """

    def __init__(
        self,
        blocks: Mapping[str, Columns] | None = None,
        *,
        head: Literal["linear", "hybrid", "mlp", "trees"] = "linear",
        folds: int = HeadsConfig.folds,
        seed: int = HeadsConfig.seed,
        target: Literal["log1p", "none"] = "none",
        normalise: bool = False,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self.blocks = blocks
        self.head = head
        self.folds = folds
        self.seed = seed
        self.target = target
        self.normalise = normalise
        self.options = options

    def fit(self, X: Any, y: Any) -> "SimplexRegressor":  # noqa: N803  scikit-learn's name
        """Train on a table (video, column) and its target; raises ValueError for what cannot be learned from."""
        x, y = validate_data(
            self, X, y, dtype=np.float64, ensure_all_finite="allow-nan", y_numeric=True, ensure_min_samples=self.folds
        )
        config = HeadsConfig(
            head=self.head, folds=self.folds, seed=self.seed, target=self.target, **(self.options or {})
        )
        inputs = self._inputs(x)
        log_views = Target(self.target).to_log(np.asarray(y, dtype=np.float64))
        training = fit(inputs, log_views, kfold(len(log_views), self.folds, self.seed), config)
        self.members_ = [member.final for member in training.members]
        weights = np.mean([member.weights for member in self.members_], axis=0)
        self.weights_ = dict(zip(inputs.modalities, weights.tolist(), strict=True))
        return self

    def predict(self, X: Any) -> Float64[np.ndarray, " video"]:  # noqa: N803  scikit-learn's name
        """The mean of the members, averaged on the scale that they learned on."""
        check_is_fitted(self)
        x = validate_data(self, X, dtype=np.float64, ensure_all_finite="allow-nan", reset=False)
        inputs = self._inputs(x)
        predictions = np.stack([member.predict(inputs) for member in self.members_])
        return Target(self.target).from_log(combine(predictions, "mean"))

    def _inputs(self, x: Float64[np.ndarray, "video column"]) -> Inputs:
        blocks = {"all": slice(None)} if self.blocks is None else self.blocks
        return Inputs(tuple(self._block(name, x[:, self._positions(columns)]) for name, columns in blocks.items()))

    def _positions(self, columns: Columns) -> Any:
        if isinstance(columns, slice) or not any(isinstance(column, str) for column in columns):
            return columns
        names = list(getattr(self, "feature_names_in_", []))
        missing = [column for column in columns if column not in names]
        if missing:
            raise ValueError(f"blocks must name columns of the table, however {missing} are not among {names}")
        return [names.index(column) for column in columns]

    def _block(self, name: str, values: Float64[np.ndarray, "video column"]) -> Block:
        present = ~np.isnan(values).any(axis=1)
        if values.shape[1] == 1:
            return Block.scalar(name, values[:, 0])
        if self.normalise:
            return Block.embedding(name, values, present)
        filled = np.where(present[:, None], values, 0).astype(np.float32)
        return Block(modality=name, values=filled, present=present)

    def __sklearn_tags__(self) -> Any:
        """Say that NaN is welcome: it is how a modality is missing."""
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags
