"""Where a prediction stands among the training videos of a run, and how often a difference turns out as predicted.

A prediction is compared with what the run predicts of its training videos out of fold, not with their true views:
predictions are less spread than the truth, so among true views every candidate would look average. Age is left out on
both sides, which makes every training video as old as the candidate; otherwise a video of today would stand low
whatever is in it. `oof.csv` tells what the age adds at the best epoch, so both sides are of that epoch.
"""

from collections.abc import Sequence
from functools import cached_property

import numpy as np
from jaxtyping import Float64

from features.config import DatasetConfig
from features.videos import has_split, read_videos
from pipeline.dataset import TRAIN
from pipeline.inputs import AGE
from pipeline.oof import SavedOutOfFold, read_oof
from pipeline.runs import Run


class Standing:
    """The training videos of a run, as far as they were validated; read when they are first needed."""

    def __init__(self, run: Run, dataset: DatasetConfig) -> None:
        self._run, self._dataset = run, dataset

    def percentiles(
        self, without_age: Float64[np.ndarray, " video"], channels: Sequence[str]
    ) -> list[tuple[float, float | None]]:
        """Percentile of each prediction among all training videos, and among those of its channel.

        `without_age` are predictions of the best epoch less what the age adds; a channel "" is none, and the dataset is
        read only if there is one. None where no training video is of the channel, or the dataset is not there.

        Raises
        ------
        DataError
            A channel is given, and the dataset breaks a rule.
        """
        own = [self._by_channel.get(channel) if channel else None for channel in channels]
        return [
            (percentile(value, self._everyone), None if rows is None else percentile(value, rows))
            for value, rows in zip(without_age.tolist(), own, strict=True)
        ]

    def chance_of_order(self, log_difference: float) -> float:
        """How often two different videos that are predicted this far apart come in the predicted order.

        Over all pairs of out-of-fold residuals of the last epoch, as if the two were independent.
        """
        residuals = self._residuals
        return float(np.searchsorted(residuals, residuals + log_difference, side="right").mean() / len(residuals))

    @cached_property
    def _oof(self) -> SavedOutOfFold:
        oof = read_oof(self._run)
        return oof.take(oof.validated)

    @cached_property
    def _without_age(self) -> Float64[np.ndarray, " video"]:
        without_age: Float64[np.ndarray, " video"] = self._oof.best - self._oof.contribution(AGE)
        return without_age

    @cached_property
    def _everyone(self) -> Float64[np.ndarray, " video"]:
        return np.sort(self._without_age)

    @cached_property
    def _residuals(self) -> Float64[np.ndarray, " video"]:
        return np.sort(self._oof.log_views - self._oof.final)

    @cached_property
    def _by_channel(self) -> dict[str, Float64[np.ndarray, " video"]]:
        """The predictions of each channel's videos, increasing; the dataset says whose a video is."""
        if not has_split(self._dataset, TRAIN):
            return {}
        videos = read_videos(self._dataset, TRAIN, target_must_be_non_negative=False)
        channel_of = dict(zip(videos.ids, videos.channel, strict=True))
        groups: dict[str, list[float]] = {}
        for id_, value in zip(self._oof.ids, self._without_age.tolist(), strict=True):
            groups.setdefault(channel_of.get(id_, ""), []).append(value)
        return {channel: np.sort(np.array(values)) for channel, values in groups.items()}


def percentile(value: float, ordered: Float64[np.ndarray, " video"]) -> float:
    """Share (%) of increasing values that are lower; those that are equal count half.

    >>> percentile(2.0, np.array([1.0, 2.0, 3.0, 4.0]))
    37.5
    """
    below, not_above = (np.searchsorted(ordered, value, side=side) for side in ("left", "right"))
    return float(50.0 * (below + not_above) / len(ordered))
