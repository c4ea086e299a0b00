"""`--head hybrid`: the linear head, and one small network per modality that learns what it leaves over.

A network reads the principal components of its modality: what is left is not linear in the strong directions, and the
weak ones would only be learned by heart.

The networks' last layers start at zero, so before the first epoch a member is exactly its linear head. `best` is the
epoch with the lowest validation MSLE. `final` is the epoch that was best on the other folds: no row that scores a
member has chosen when it stopped. Both may be epoch 0, so the networks never have to make anything worse.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Float64

from heads.components import component_readers
from heads.config import HeadsConfig
from heads.fitted import FittedHeads, Head
from heads.folds import FoldPlan
from heads.inputs import Inputs
from heads.linear import solve
from heads.members import TrainedMember, Training
from heads.metrics import msle
from heads.mlp import RawMember
from heads.pack import Start
from heads.ridge import Problem
from heads.targets import Target
from heads.training import Course, OnEpoch, run_courses

NARROWER = 4
"""The networks are this much narrower than `--head mlp`'s: the same error at a third of the time."""

COMPONENTS = 128
"""Components of an embedding, or of words, that the networks see."""


def fit_hybrid(
    inputs: Inputs,
    log_views: Float64[np.ndarray, " video"],
    plan: FoldPlan,
    config: HeadsConfig,
    *,
    device: str = "cpu",
    on_epoch: OnEpoch | None = None,
) -> Training[FittedHeads]:
    """Fit the linear head of every fold, then its networks; raises what `fit_linear` and `train_members` do."""
    target = Target(config.target)
    problem = Problem(inputs, log_views, plan, np.ones(len(log_views)), config.seed)
    linear = solve(problem, target, search=config.search)
    starts = {member.fold: _start(problem, member, config) for member in linear.members}
    narrow = replace(config, hidden_dim=max(config.hidden_dim // NARROWER, 2))
    courses = run_courses(inputs, log_views, plan, narrow, device=device, on_epoch=on_epoch, starts=starts)
    stops = [_stop(courses, fold) for fold in range(plan.n_folds)]
    members = [
        _combined(course, member.final, stop, problem, target)
        for course, member, stop in zip(courses, linear.members, stops, strict=True)
    ]
    facts = {**linear.facts, "linear_msle": [member.final_msle for member in linear.members], "final_epoch": stops}
    return Training(members, linear.notes, facts)


def _start(problem: Problem, member: TrainedMember[FittedHeads], config: HeadsConfig) -> Start:
    rng = np.random.default_rng((config.seed, member.fold))
    fitted = component_readers(problem, member.fold, COMPONENTS, rng)
    return Start(member.final.predict(problem.inputs), fitted)


def _stop(courses: Sequence[Course], fold: int) -> int:
    """The epoch with the least squared error on all folds but this one."""
    curves = [
        len(course.member.val_rows) * np.array([moment.record.msle for moment in course.moments])
        for course in courses
        if course.member.fold != fold
    ]
    return int(np.sum(curves, axis=0).argmin())


def _combined(
    course: Course, linear: FittedHeads, stop: int, problem: Problem, target: Target
) -> TrainedMember[FittedHeads]:
    rows, moments = course.member.val_rows, (course.best, course.moments[stop])
    best, final = (_joined(moment.raw, linear, course, problem.inputs, target) for moment in moments)
    seen, truth = problem.inputs.take(rows), problem.log_views[rows]
    return TrainedMember(
        fold=course.member.fold,
        best=best,
        final=final,
        best_epoch=course.best.record.epoch,
        best_msle=msle(truth, best.predict(seen)),
        final_msle=msle(truth, final.predict(seen)),
        train_size=len(course.member.train_rows),
        val_size=len(rows),
        history=tuple(course.records),
    )


def _joined(raw: RawMember, linear: FittedHeads, course: Course, inputs: Inputs, target: Target) -> FittedHeads:
    """w_m (network_m + linear_m v_m / w_m): the two models' sum, under the weights w that the networks trained."""
    heads = {}
    for index, (modality, head) in enumerate(linear.heads.items()):
        ratio = float(linear.weights[index] / raw.weights[index])
        heads[modality] = Head((*head.recentred(0.0, ratio).branches, raw.branches[index]))
    return FittedHeads.canonical(
        heads,
        raw_weights=raw.weights,
        intercept=linear.intercept + raw.intercept,
        inputs=inputs,
        train_rows=course.member.train_rows,
        standardisation=course.member.standardisation,
        target=target,
    )
