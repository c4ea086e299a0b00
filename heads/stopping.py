"""The course of a member through the epochs, and when a fold stops by what the other folds tell."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from heads.members import EpochRecord
from heads.mlp import RawMember
from heads.pack import Member

WAIT = 12
"""Epochs without improvement on the other folds after which a fold of a team stops: later gains were not seen."""


@dataclass(frozen=True, eq=False)
class Moment:
    """A member's parameters after an epoch, and how good they were."""

    record: EpochRecord
    raw: RawMember


@dataclass(frozen=True, eq=False)
class Course:
    """A member's way through the epochs: its records, and the moments that were kept, the last one always."""

    member: Member
    records: Sequence[EpochRecord]
    moments: Sequence[Moment]

    @property
    def best(self) -> Moment:
        """The moment of the lowest validation MSLE, the first of equals."""
        return min(self.moments, key=lambda moment: moment.record.msle)

    def at(self, epoch: int) -> Moment:
        """The moment after an epoch, if every one was kept; a member that stopped before stands where it stopped."""
        return self.moments[min(epoch, len(self.moments) - 1)]


def best_elsewhere(courses: Sequence[Course], fold: int) -> int:
    """The epoch with the least squared error on all folds but this one, before `WAIT` epochs without a better one.

    Every moment must have been kept. What the fold itself validates has no part in it, not even in how long is waited.
    """
    curve, best = _curve_elsewhere(courses, fold), 0
    for epoch in range(len(curve)):
        if epoch - best > WAIT:
            break
        if curve[epoch] < curve[best]:
            best = epoch
    return best


def _curve_elsewhere(courses: Sequence[Course], fold: int) -> Float64[np.ndarray, " epoch"]:
    """Squared error on all folds but this one, by epoch."""
    others = [course for course in courses if course.member.fold != fold]
    epochs = range(max(len(course.moments) for course in others))
    curve: Float64[np.ndarray, " epoch"] = np.sum(
        [[len(course.member.val_rows) * course.at(epoch).record.msle for epoch in epochs] for course in others], axis=0
    )
    return curve


def has_ended(courses: Sequence[Course]) -> bool:
    """Whether no fold would stop at a later epoch than those there are."""
    folds = {course.member.fold for course in courses}
    last = {fold: len(_curve_elsewhere(courses, fold)) - 1 for fold in folds}
    return all(last[fold] - best_elsewhere(courses, fold) >= WAIT for fold in folds)
