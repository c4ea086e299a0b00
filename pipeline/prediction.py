"""What is predicted of one candidate: how many views, how sure that is, and why."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float64

from features.status import Status
from heads.inputs import Inputs
from heads.members import FittedModel

OK = Status.OK.label
Ends = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What one candidate gets, how sure that is, and why.

    interval_50, interval_90
        Views between which the truth lies with 50 % and 90 % probability, as the out-of-fold residuals have it.
    percentile
        Share (%) of the training videos that the run would predict lower if they were as old.
    percentile_in_channel
        The same among the training videos of the channel; None where there are none.
    baseline
        Views of a video of which nothing is known.
    contributions
        Modality -> what it adds to the baseline in log views.
    status
        "ok", or what is wrong with the image, which then counts as the mean.
    """

    image: str
    title: str
    views: float
    interval_50: Ends
    interval_90: Ends
    percentile: float
    percentile_in_channel: float | None
    baseline: float
    log_views: float
    contributions: Mapping[str, float]
    target: str = "log1p"
    status: str = field(default=OK)

    @property
    def factors(self) -> dict[str, float]:
        """Modality -> by what it multiplies 1 + views; where the target is no count, what it adds."""
        if self.target != "log1p":
            return dict(self.contributions)
        return {modality: float(np.exp(added)) for modality, added in self.contributions.items()}

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**vars(self), "contributions": dict(self.contributions), "factors": self.factors}


@dataclass(frozen=True, eq=False)
class Explained:
    """The mean of several members: their baseline, and what each modality adds to it, in log views."""

    modalities: Sequence[str]
    baseline: float
    contributions: Float64[np.ndarray, "modality video"]

    @classmethod
    def by(cls, models: Sequence[FittedModel], seen_by: Sequence[Inputs]) -> "Explained":
        """Ask every member of what it sees, and take the mean in log views."""
        contributions: Float64[np.ndarray, "modality video"] = np.mean(
            [model.contributions(inputs) for model, inputs in zip(models, seen_by, strict=True)], axis=0
        )
        return cls(models[0].modalities, float(np.mean([model.baseline for model in models])), contributions)

    @property
    def log_views(self) -> Float64[np.ndarray, " video"]:
        """The predictions, which the contributions sum to."""
        total: Float64[np.ndarray, " video"] = self.baseline + self.contributions.sum(axis=0)
        return total

    def without(self, modality: str) -> Float64[np.ndarray, " video"]:
        """The predictions less what one modality adds."""
        rows = [row for row, name in enumerate(self.modalities) if name != modality]
        rest: Float64[np.ndarray, " video"] = self.baseline + self.contributions[rows].sum(axis=0)
        return rest
