"""How a submission is spread beside the training videos, and whether that calls for a look.

The test videos are often newer than every training video, and a new video has few views yet: a lower level is then
right. So the part of a shift that the age alone makes is told apart, and only the rest is warned of.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64

from features.progress import Progress
from heads.targets import Target
from pipeline.outcome import table

FEW_VIEWS, MANY_VIEWS = 1_000, 1_000_000

SHIFT_WORTH_A_WARNING = 1.5
"""Difference in median log views that the age does not explain: a factor of 4.5."""

SPREAD_WORTH_A_WARNING = 2.0
"""Ratio of the submission's spread to that of the out-of-fold predictions, either way."""


@dataclass(frozen=True, kw_only=True)
class Distribution:
    """Level and spread of some videos, in log views; shares of few and many views, where views are counted."""

    median: float
    sd: float
    max: float
    share_below_1000: float | None = None
    share_above_1000000: float | None = None

    @classmethod
    def of(cls, log_views: Float64[np.ndarray, " video"], target: Target) -> "Distribution":
        """Describe some videos.

        >>> Distribution.of(np.log1p(np.array([10.0, 999.0, 5e6])), Target()).share_below_1000
        0.6666666666666666
        """
        level = {"median": float(np.median(log_views)), "sd": float(log_views.std()), "max": float(log_views.max())}
        if target.kind != "log1p":
            return cls(**level)
        few, many = np.log1p([FEW_VIEWS, MANY_VIEWS])
        below, above = float((log_views < few).mean()), float((log_views > many).mean())
        return cls(**level, share_below_1000=below, share_above_1000000=above)


@dataclass(frozen=True, kw_only=True)
class Shift:
    """A submission beside the videos that taught it; medians of ages in years, NaN where nothing is known.

    `out_of_fold` are the predictions of `run` for the training videos. `effects` are the mean contributions of each
    modality over the submitted videos, which are about 0 over the training videos: what shifts the level.
    """

    submission: Distribution
    run: str
    out_of_fold: Distribution
    training: Distribution
    effects: Mapping[str, float]
    age: float
    training_age: float
    target: Target

    @property
    def level(self) -> float:
        """Median log views of the submission less that of the training videos."""
        return self.submission.median - self.training.median

    @property
    def unexplained(self) -> float:
        """The part of `level` that the age does not make."""
        return self.level - self.effects.get("age", 0.0)

    def to_dict(self) -> dict[str, Any]:
        """For JSON; an age that is not known is None."""
        ages = {"submission": _known(self.age), "training": _known(self.training_age)}
        described = {name: asdict(getattr(self, name)) for name in ("submission", "out_of_fold", "training")}
        return described | {"effects": dict(self.effects), "median_age_years": ages}

    def table(self) -> list[str]:
        """The lines that are printed of it."""
        columns = (self.submission, self.out_of_fold, self.training)
        lines = [["", "submission", f"{self.run} out of fold", "training videos"]]
        lines.append(["median", *(_shown(column.median, self.target) for column in columns)])
        lines.append(["spread (sd, log)", *(f"{column.sd:.2f}" for column in columns)])
        if self.target.kind == "log1p":
            lines.append([f"below {FEW_VIEWS:,} views", *(_percent(column.share_below_1000) for column in columns)])
            lines.append([f"above {MANY_VIEWS:,} views", *(_percent(column.share_above_1000000) for column in columns)])
        return table(lines)

    def tell(self, progress: Progress) -> None:
        """Warn of a level or a spread that nothing explains; note a level that the age does explain."""
        if abs(self.level) > SHIFT_WORTH_A_WARNING or abs(self.unexplained) > SHIFT_WORTH_A_WARNING:
            alarming = abs(self.unexplained) > SHIFT_WORTH_A_WARNING
            (progress.warn if alarming else progress.note)("; ".join(self._about_level(alarming=alarming)))
        ratio = self.submission.sd / self.out_of_fold.sd if self.out_of_fold.sd > 0 else 1.0
        if not 1 / SPREAD_WORTH_A_WARNING <= ratio <= SPREAD_WORTH_A_WARNING:
            progress.warn(
                f"the submission spreads {ratio:.2f} times as far as the out-of-fold predictions (sd "
                f"{self.submission.sd:.2f} and {self.out_of_fold.sd:.2f} in log views): check what its videos lack"
            )

    def _about_level(self, *, alarming: bool) -> list[str]:
        here, there = (_shown(one.median, self.target) for one in (self.submission, self.training))
        told = [f"the submission's median is {here}, that of the training videos {there} ({self._size(self.level)})"]
        if "age" in self.effects:
            ages = "" if np.isnan(self.age) else f" (median {self.age:.1f} years, in training {self.training_age:.1f})"
            told.append(f"age alone makes {self._size(self.effects['age'])}{ages}")
        if alarming:
            told.append(f"{self._size(self.unexplained)} is left: check that the test videos may differ so much")
        return told

    def _size(self, log_difference: float) -> str:
        return f"x{np.exp(log_difference):.2g}" if self.target.kind == "log1p" else f"{log_difference:+.3g}"


def weighted_effects(
    effects: Sequence[Mapping[str, float]], shares: Float64[np.ndarray, " member"]
) -> dict[str, float]:
    """Mean contribution of each modality to an ensemble; a member that does not read a modality adds nothing to it.

    >>> weighted_effects([{"age": -2.0}, {"age": -1.0, "text": 0.4}], np.array([0.5, 0.5]))
    {'age': -1.5, 'text': 0.2}
    """
    names = dict.fromkeys(name for own in effects for name in own)
    return {
        name: float(sum(share * own.get(name, 0.0) for share, own in zip(shares.tolist(), effects, strict=True)))
        for name in names
    }


def _shown(log_views: float, target: Target) -> str:
    value = float(target.from_log(np.array([log_views]))[0])
    return f"{value:,.0f}" if target.kind == "log1p" else f"{value:.4g}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"


def _known(age: float) -> float | None:
    return None if np.isnan(age) else age
