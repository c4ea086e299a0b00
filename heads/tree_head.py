"""`--head trees`: boosted trees over a few components of every modality; not additive, so another kind of model.

Seeds change which columns each split may look at. All members of a fold read the same columns.

What a modality contributes to one prediction is its Shapley value over all coalitions, those absent standing at their
training means; contributions and baseline sum to the prediction, as they do for additive heads.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64

from heads.components import component_readers
from heads.config import HeadsConfig
from heads.fitted import below, check_tensors, declared
from heads.folds import FoldPlan
from heads.importance import coalition_shapley
from heads.inputs import Block, Inputs
from heads.members import TrainedMember, Training, solved_member
from heads.readers import AsIs, CategoryMeans, FoldReaders, Reader, reader_from
from heads.ridge import Problem
from heads.simplex import canonical_weights
from heads.targets import Standardisation, Target
from heads.trees import FittedTrees, TreeSettings, known_means

COMPONENTS = 64
"""Components of an embedding, or of words, that the trees see: on rotated axes more of them only add noise."""


@dataclass(frozen=True, eq=False, kw_only=True)
class TreeModel:
    """Trees of one fold, and how each modality is read into their columns.

    `weights` are the shares of the spread of the contributions over the training rows; nothing else was trained to
    weigh the modalities, so `raw_weights` are the same.
    """

    readers: Mapping[str, Reader]
    trees: FittedTrees
    weights: Float64[np.ndarray, " modality"]
    standardisation: Standardisation
    target: Target
    additive = False

    @property
    def modalities(self) -> tuple[str, ...]:
        """The modalities that the trees read, in the order of the weights."""
        return self.trees.modalities

    @property
    def raw_weights(self) -> Float64[np.ndarray, " modality"]:
        """The same as `weights`."""
        return self.weights

    @property
    def baseline(self) -> float:
        """Log views of a video of which nothing is known."""
        nothing = self.trees.column_means[None, :]
        return float(self.standardisation.undo(self.trees.predict(nothing))[0])

    def predict(self, inputs: Inputs) -> Float64[np.ndarray, " video"]:
        """Log views."""
        return self.standardisation.undo(self.trees.predict(self._columns(inputs)))

    def contributions(self, inputs: Inputs) -> Float64[np.ndarray, "modality video"]:
        """What each modality adds to the baseline, in log views: its Shapley value over the coalitions."""
        z = self.trees.coalition_predictions(self._columns(inputs))
        contributions: Float64[np.ndarray, "modality video"] = self.standardisation.sd * coalition_shapley(z)
        return contributions

    def averaged_with(self, others: Sequence["TreeModel"]) -> "TreeModel":
        """The model that predicts the mean of this one and others of the same fold: all trees over the same columns.

        Raises ValueError where they read otherwise.
        """
        models = (self, *others)
        if any(not _read_alike(self, other) for other in others):
            raise ValueError("only trees of the same fold, which read the same columns, have a mean")
        forest = self.trees.forest.averaged_with([other.trees.forest for other in others])
        weights = np.mean([model.weights for model in models], axis=0)
        return replace(self, trees=replace(self.trees, forest=forest), weights=weights)

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Trees and readers by name, such as `readers.image.components`."""
        readers = {
            f"readers.{modality}.{name}": tensor
            for modality, reader in self.readers.items()
            for name, tensor in reader.tensors()
        }
        return readers | {f"trees.{name}": tensor for name, tensor in self.trees.tensors().items()}

    def to_metadata(self) -> dict[str, Any]:
        """Everything else, for JSON."""
        return {
            "kind": "trees",
            "modalities": list(self.modalities),
            "readers": {modality: reader.kind for modality, reader in self.readers.items()},
            "weights": self.weights.tolist(),
            "target": self.target.kind,
            "target_mean": self.standardisation.mean,
            "target_sd": self.standardisation.sd,
            "tensors": declared(self.to_arrays()),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, Any]) -> "TreeModel":
        """The model of `to_arrays` and `to_metadata`; raises ValueError or KeyError where they do not fit."""
        check_tensors(arrays, metadata["tensors"])
        modalities = tuple(metadata["modalities"])
        if len(metadata["weights"]) != len(modalities):
            raise ValueError(f"each of {modalities} needs one weight, given {metadata['weights']}")
        kept = below(arrays, "readers")
        return cls(
            readers={m: reader_from(metadata["readers"][m], below(kept, m)) for m in modalities},
            trees=FittedTrees.from_tensors(below(arrays, "trees"), modalities),
            weights=np.array(metadata["weights"], dtype=np.float64),
            standardisation=Standardisation(mean=float(metadata["target_mean"]), sd=float(metadata["target_sd"])),
            target=Target(metadata["target"]),
        )

    def _columns(self, inputs: Inputs) -> Float64[np.ndarray, "video column"]:
        known = Inputs(tuple(inputs.block(modality) for modality in self.modalities))
        columns, _ = _stacked(self.readers, known, {})
        return np.where(np.isnan(columns), self.trees.column_means, columns)


def fit_trees(
    inputs: Inputs,
    log_views: Float64[np.ndarray, " video"],
    plan: FoldPlan,
    config: HeadsConfig,
) -> Training[TreeModel]:
    """Fit the trees of every fold and seed; `best` and `final` are the same, as no validation row chooses anything.

    Raises UnfitDataError for a target that is constant or not finite.
    """
    problem = Problem(inputs, log_views, plan, np.ones(len(log_views)), config.seed)
    return Training([member for fold in range(plan.n_folds) for member in _fit_fold(problem, fold, config)])


def _fit_fold(problem: Problem, fold: int, config: HeadsConfig) -> list[TrainedMember[TreeModel]]:
    """The fold's member of each seed."""
    train_rows, val_rows = problem.plan.train_rows(fold), problem.plan.val_rows(fold)
    standardisation = Standardisation.fit(problem.log_views[train_rows])
    z = standardisation.apply(problem.log_views)[train_rows]
    fitted = component_readers(problem, fold, COMPONENTS, np.random.default_rng((config.seed, fold)))
    readers = {**fitted.readers, **_amounts(problem.inputs)}
    columns, modality_of = _training_columns(problem, train_rows, readers, fitted)
    seen, truth = problem.inputs.take(val_rows), problem.log_views[val_rows]
    members = []
    for seed in (seeded.seed for seeded in config.of_each_seed()):
        trees = FittedTrees.fit(columns, z, problem.inputs.modalities, modality_of, TreeSettings(seed=seed))
        contributions = coalition_shapley(trees.coalition_predictions(columns))
        weights = canonical_weights(contributions.std(axis=1))
        model = TreeModel(
            readers=readers,
            trees=trees,
            weights=weights,
            standardisation=standardisation,
            target=Target(config.target),
        )
        members.append(solved_member(model, fold, len(train_rows), truth, model.predict(seen), seed=seed))
    return members


def _training_columns(
    problem: Problem, train_rows: Int64[np.ndarray, " row"], readers: Mapping[str, Reader], fitted: FoldReaders
) -> tuple[Float64[np.ndarray, "row column"], Int64[np.ndarray, " column"]]:
    """Columns of the training rows, means where a modality is absent, and the modality of each."""
    # Only a reader that learns from targets reads its training rows otherwise than new ones.
    own = {
        name: columns[train_rows]
        for name, columns in fitted.columns.items()
        if isinstance(readers[name], CategoryMeans)
    }
    columns, modality_of = _stacked(readers, problem.inputs.take(train_rows), own)
    return np.where(np.isnan(columns), known_means(columns), columns), modality_of


def _read_alike(one: TreeModel, other: TreeModel) -> bool:
    ours, theirs = ({name: dict(r.tensors()) for name, r in model.readers.items()} for model in (one, other))
    return (
        one.standardisation == other.standardisation
        and {name: tensors.keys() for name, tensors in ours.items()}
        == {name: tensors.keys() for name, tensors in theirs.items()}
        and all(np.array_equal(ours[m][name], theirs[m][name]) for m in ours for name in ours[m])
    )


def _stacked(
    readers: Mapping[str, Reader], inputs: Inputs, given: Mapping[str, Any]
) -> tuple[Float64[np.ndarray, "video column"], Int64[np.ndarray, " column"]]:
    """All columns side by side, NaN where a modality is absent, and the modality of each; `given` replaces a reader."""
    parts = []
    for block in inputs.blocks:
        read = given.get(block.modality)
        part = np.asarray(readers[block.modality].read(block) if read is None else read, dtype=np.float64)
        parts.append(np.where(block.present[:, None], part, np.nan))
    return np.hstack(parts), np.repeat(np.arange(len(parts)), [part.shape[1] for part in parts])


def _amounts(inputs: Inputs) -> dict[str, Reader]:
    """Trees split amounts themselves: they read them without knots."""
    return {b.modality: AsIs(b.values.shape[1]) for b in inputs.blocks if isinstance(b, Block) and b.knotted}
