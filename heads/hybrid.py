"""`--head hybrid`: the linear head, and one small network per modality that learns what it leaves over.

A network reads the principal components of its modality: what is left is not linear in the strong directions, and the
weak ones would only be learned by heart.

The networks' last layers start at zero, so before the first epoch a member is exactly its linear head. `best` is the
epoch with the lowest validation MSLE. `final` is the epoch that was best on the other folds: no row that scores a
member has chosen when it stopped. Both may be epoch 0, so the networks never have to make anything worse. Training ends
before the last of `--epochs` where the other folds have not improved for a while, for every fold.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Float64

from heads.components import component_readers
from heads.config import HeadsConfig
from heads.courses import OnEpoch, run_courses, teams_of
from heads.cross_fitting import cross_fitted
from heads.errors import UnfitDataError
from heads.fitted import FittedHeads, Head
from heads.folds import FoldPlan
from heads.inputs import Inputs
from heads.joint_residual import with_joint
from heads.linear import solve
from heads.members import TrainedMember, Training
from heads.metrics import msle
from heads.mlp import RawMember
from heads.pack import Entry, Start
from heads.ridge import Problem
from heads.stopping import Course, best_elsewhere
from heads.targets import Target
from heads.training import entries_of

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
    """Fit the linear head of every fold, then the networks of each of its seeds.

    Raises what `fit_linear` and `train_members` do, and UnfitDataError for a joint network of a single modality.
    """
    (training,) = fit_hybrids(inputs, log_views, plan, [config], device=device, on_epoch=on_epoch)
    return training


def fit_hybrids(
    inputs: Inputs,
    log_views: Float64[np.ndarray, " video"],
    plan: FoldPlan,
    configs: Sequence[HeadsConfig],
    *,
    device: str = "cpu",
    on_epoch: OnEpoch | None = None,
) -> list[Training[FittedHeads]]:
    """`fit_hybrid` of configurations that differ in their networks alone: the linear head is fitted once."""
    first, target = configs[0], Target(configs[0].target)
    if first.joint and len(inputs.blocks) == 1:
        raise UnfitDataError(f"--joint reads across modalities, and there is only {inputs.modalities[0]}: leave it out")
    problem = Problem(inputs, log_views, plan, np.ones(len(log_views)), first.seed)
    linear = solve(problem, target, search=first.search)
    starts = [_start(problem, member, linear.facts, first) for member in linear.members]
    entries = [[replace(entry, start=starts[entry.fold]) for entry in _narrow(plan, config)] for config in configs]
    together = [entry for own in entries for entry in own]
    courses = iter(
        run_courses(inputs, log_views, plan, together, device=device, on_epoch=on_epoch, teams=teams_of(entries))
    )
    facts = {**linear.facts, "linear_msle": [member.final_msle for member in linear.members]}
    trainings = []
    for own in entries:
        members, stops = _members([next(courses) for _ in own], linear.members, problem, target)
        trainings.append(Training(members, linear.notes, facts | {"final_epoch": stops}))
    if first.joint:
        return with_joint(
            trainings,
            entries,
            starts,
            linear.members,
            problem=problem,
            target=target,
            device=device,
            on_epoch=on_epoch,
        )
    return trainings


def _narrow(plan: FoldPlan, config: HeadsConfig) -> Iterator[Entry]:
    narrow = replace(config, hidden_dim=max(config.hidden_dim // NARROWER, 2))
    yield from entries_of(plan, narrow)


def _start(
    problem: Problem, member: TrainedMember[FittedHeads], facts: Mapping[str, Any], config: HeadsConfig
) -> Start:
    """The linear head; where it has more columns than rows, it predicts the rows as if it had not seen them.

    It knows them by heart otherwise. Where it has fewer columns the networks do better with what it leaves over of the
    rows it has seen: each ridge without a part of them is a worse one, and they would mend what the whole one can.
    """
    fold, train_rows = member.fold, problem.plan.train_rows(member.fold)
    fitted = component_readers(problem, fold, COMPONENTS, np.random.default_rng((config.seed, fold)))
    terms = member.final.contributions(problem.inputs)
    base = member.final.baseline + terms.sum(axis=0)
    if sum(head.branches[0].reader.width for head in member.final.heads.values()) > len(train_rows):
        unseen = cross_fitted(problem, fold, facts["penalty"][fold], facts["scales"][fold], Target(config.target))
        base[train_rows] = base[train_rows] if unseen is None else unseen
    return Start(base, fitted, terms)


def _members(
    courses: Sequence[Course], linear: Sequence[TrainedMember[FittedHeads]], problem: Problem, target: Target
) -> tuple[list[TrainedMember[FittedHeads]], list[int]]:
    """Every member at its best epoch and at the one where its fold stops, and these epochs."""
    stops = [best_elsewhere(courses, fold) for fold in range(problem.plan.n_folds)]
    members = [
        _combined(course, linear[course.member.fold].final, stops[course.member.fold], problem, target)
        for course in courses
    ]
    return members, stops


def _combined(
    course: Course, linear: FittedHeads, stop: int, problem: Problem, target: Target
) -> TrainedMember[FittedHeads]:
    rows, moments = course.member.val_rows, (course.best, course.at(stop))
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
        seed=course.member.config.seed,
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
