"""What training gives: one member per fold, and the record of how it came about."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import numpy as np
from jaxtyping import Float64

from heads.inputs import Inputs
from heads.metrics import mae, msle, rmse
from heads.targets import Standardisation


@runtime_checkable
class FittedModel(Protocol):
    """A trained member, of whatever kind: what it predicts, why, and how it is written down."""

    @property
    def modalities(self) -> tuple[str, ...]:
        """Its terms, in the order of its weights: the modalities it reads, and `joint` if it has that one too."""

    @property
    def additive(self) -> bool:
        """Whether each term depends on one modality alone, so that a modality can be replaced by itself."""

    @property
    def weights(self) -> Float64[np.ndarray, " modality"]:
        """Share of each modality in the spread of the contributions."""

    @property
    def raw_weights(self) -> Float64[np.ndarray, " modality"]:
        """The simplex weights as they were trained."""

    @property
    def standardisation(self) -> Standardisation:
        """The scale of its target."""

    @property
    def baseline(self) -> float:
        """Log views of a video of which nothing is known."""

    def predict(self, inputs: Inputs) -> Float64[np.ndarray, " video"]:
        """Log views."""

    def contributions(self, inputs: Inputs) -> Float64[np.ndarray, "modality video"]:
        """What each modality adds to the baseline, in log views."""

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Its parameters by name."""

    def to_metadata(self) -> dict[str, Any]:
        """Everything else, for JSON; `kind` says which class reads it back."""

    def averaged_with(self, others: Sequence[Any]) -> "FittedModel":
        """The model that predicts the mean of this one and others of the same fold; its weights are their mean."""


@dataclass(frozen=True, kw_only=True)
class EpochRecord:
    """One member after one epoch (1, 2, ...); losses are on the z scale, errors in log units on its validation rows.

    `train_loss` is the mean over the epoch's steps, with dropout. `weights` are canonical, from at most
    `heads.pack.GAUGE_ROWS` training rows. `seconds` are those of all members that trained side by side.
    A head that is solved and not trained has one record, of epoch 0, without a training loss. `seed` is None where
    nothing about the member is random.
    """

    fold: int
    epoch: int
    train_loss: float | None
    val_loss: float
    msle: float
    mae: float
    rmse: float
    learning_rate: float | None
    weights: dict[str, float]
    raw_weights: dict[str, float]
    seconds: float
    seed: int | None = None


Model_co = TypeVar("Model_co", bound=FittedModel, covariant=True)


@dataclass(frozen=True, eq=False, kw_only=True)
class TrainedMember(Generic[Model_co]):
    """A fold's member at the epoch with the lowest validation MSLE (the first of equals) and at the last epoch.

    A fold may have several, of different seeds; None where nothing about the member is random.
    """

    fold: int
    best: Model_co
    final: Model_co
    best_epoch: int
    best_msle: float
    final_msle: float
    train_size: int
    val_size: int
    history: tuple[EpochRecord, ...]
    seed: int | None = None


@dataclass(frozen=True, eq=False)
class Training(Generic[Model_co]):
    """All members in the order of the folds, those of one fold in the order of their seeds.

    `notes` are worth a warning, `facts` what was chosen on the way.
    """

    members: Sequence[TrainedMember[Model_co]]
    notes: Sequence[str] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def of_folds(self) -> list[list[TrainedMember[Model_co]]]:
        """The members of every fold."""
        folds = {member.fold: [other for other in self.members if other.fold == member.fold] for member in self.members}
        return list(folds.values())

    @property
    def seeds(self) -> list[int | None]:
        """The seed of each member of a fold."""
        return [member.seed for member in self.of_folds[0]]


Solved = TypeVar("Solved", bound=FittedModel)


def solved_member(
    model: Solved,
    fold: int,
    train_size: int,
    log_views: Float64[np.ndarray, " row"],
    log_pred: Float64[np.ndarray, " row"],
    *,
    seed: int | None = None,
) -> TrainedMember[Solved]:
    """The member of a model that is solved and not trained, with what it predicts for the rows its fold validates."""
    error = msle(log_views, log_pred)
    record = EpochRecord(
        fold=fold,
        epoch=0,
        train_loss=None,
        val_loss=error / model.standardisation.sd**2,
        msle=error,
        mae=mae(log_views, log_pred),
        rmse=rmse(log_views, log_pred),
        learning_rate=None,
        weights=dict(zip(model.modalities, model.weights.tolist(), strict=True)),
        raw_weights=dict(zip(model.modalities, model.raw_weights.tolist(), strict=True)),
        seconds=0.0,
        seed=seed,
    )
    return TrainedMember(
        fold=fold,
        best=model,
        final=model,
        best_epoch=0,
        best_msle=error,
        final_msle=error,
        train_size=train_size,
        val_size=len(log_views),
        history=(record,),
        seed=seed,
    )
