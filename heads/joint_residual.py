"""The joint residual of `--head hybrid --joint`: one network across all modalities, on what the additive head leaves.

It is the only term that can tell that a title goes with its thumbnail, and stands by itself: nothing of it is smeared
over the modalities. Like the other networks it starts at zero, and stops where the other folds were best.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float64

from heads.courses import OnEpoch, run_courses, teams_of
from heads.fitted import FittedHeads, Head
from heads.inputs import JOINT, Inputs, Joint
from heads.joint import joined
from heads.members import EpochRecord, TrainedMember, Training
from heads.metrics import msle
from heads.mlp import RawMember
from heads.pack import Entry, Start
from heads.readers import FoldReaders
from heads.ridge import Problem
from heads.stopping import Course, Moment, best_elsewhere
from heads.targets import Target

Member = TrainedMember[FittedHeads]


def with_joint(
    additive: Sequence[Training[FittedHeads]],
    entries: Sequence[Sequence[Entry]],
    starts: Sequence[Start],
    linear: Sequence[Member],
    *,
    problem: Problem,
    target: Target,
    device: str,
    on_epoch: OnEpoch | None,
) -> list[Training[FittedHeads]]:
    """Each training with a joint term more; `entries` are those of its members, `starts` and `linear` those of folds.

    The epochs of the joint network follow those of the others.
    """
    block = Joint(blocks=tuple(block for block in problem.inputs.blocks if not isinstance(block, Joint)))
    fitted = [joined(start.fitted, block) for start in starts]
    # What the linear head predicts for a training row as if it had not seen it, less what it does predict.
    unseen = [start.base - own.final.predict(problem.inputs) for start, own in zip(starts, linear, strict=True)]
    together = [
        replace(entry, start=_start(member, unseen[entry.fold], fitted[entry.fold], problem))
        for training, own in zip(additive, entries, strict=True)
        for member, entry in zip(training.members, own, strict=True)
    ]
    tell = None if on_epoch is None else lambda record: on_epoch(_after(record, together[0].config.epochs))
    courses = iter(
        run_courses(
            Inputs((block,)),
            problem.log_views,
            problem.plan,
            together,
            device=device,
            on_epoch=tell,
            teams=teams_of(entries),
        )
    )
    return [
        _Stage(problem, target, training, [next(courses) for _ in own]).training()
        for training, own in zip(additive, entries, strict=True)
    ]


def _start(member: Member, unseen: Float64[np.ndarray, " video"], fitted: FoldReaders, problem: Problem) -> Start:
    terms = member.final.contributions(problem.inputs)
    spreads = terms[:, problem.plan.train_rows(member.fold)].std(axis=1)
    beside = dict(zip(member.final.modalities, spreads.tolist(), strict=True))
    return Start(member.final.baseline + terms.sum(axis=0) + unseen, fitted, beside=beside)


def _after(record: EpochRecord, epochs: int) -> EpochRecord:
    return replace(record, epoch=record.epoch + epochs)


@dataclass(frozen=True, eq=False)
class _Stage:
    """An additive training, and the courses of the joint networks of its members."""

    problem: Problem
    target: Target
    additive: Training[FittedHeads]
    courses: Sequence[Course]

    def training(self) -> Training[FittedHeads]:
        """Both together."""
        stops = [best_elsewhere(self.courses, fold) for fold in range(self.problem.plan.n_folds)]
        members = [
            self._member(member, course, stops[member.fold])
            for member, course in zip(self.additive.members, self.courses, strict=True)
        ]
        return replace(self.additive, members=members, facts=self._facts(stops))

    def _facts(self, stops: list[int]) -> Mapping[str, object]:
        before = [member.final_msle for member in self.additive.members]
        return {**self.additive.facts, "joint_final_epoch": stops, "additive_msle": before}

    def _member(self, member: Member, course: Course, stop: int) -> Member:
        """`best` is that of all epochs of both; where no joint one is better, the joint term is zero there."""
        epochs = course.member.config.epochs
        better = course.best.record.msle < member.best_msle
        best = (
            self._joined(member.final, course, course.best)
            if better
            else self._joined(member.best, course, course.moments[0])
        )
        final = self._joined(member.final, course, course.at(stop))
        rows = course.member.val_rows
        seen, truth = self.problem.inputs.take(rows), self.problem.log_views[rows]
        return replace(
            member,
            best=best,
            final=final,
            best_epoch=course.best.record.epoch + epochs if better else member.best_epoch,
            best_msle=msle(truth, best.predict(seen)),
            final_msle=msle(truth, final.predict(seen)),
            history=(*member.history, *(_after(record, epochs) for record in course.records)),
        )

    def _joined(self, base: FittedHeads, course: Course, moment: Moment) -> FittedHeads:
        """The base and the joint term, each under half of the raw weights."""
        raw: RawMember = moment.raw
        raw_weights = np.append(base.raw_weights, 1.0) / 2
        ratios = np.divide(base.weights, raw_weights[:-1])
        heads = {
            modality: head.recentred(0.0, ratio)
            for (modality, head), ratio in zip(base.heads.items(), ratios.tolist(), strict=True)
        }
        return FittedHeads.canonical(
            heads | {JOINT: Head(raw.branches).recentred(0.0, 2.0)},
            raw_weights=raw_weights,
            intercept=base.intercept + raw.intercept,
            inputs=self.problem.inputs,
            train_rows=course.member.train_rows,
            standardisation=course.member.standardisation,
            target=self.target,
        )
