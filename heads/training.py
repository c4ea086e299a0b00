"""Train members, all their heads and their weights together, on arrays that sit in memory."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64

from heads.config import HeadsConfig
from heads.courses import OnEpoch, run_courses
from heads.fitted import FittedHeads, Head
from heads.folds import FoldPlan
from heads.inputs import Inputs
from heads.members import TrainedMember
from heads.metrics import msle
from heads.mlp import RawMember
from heads.pack import Entry
from heads.stopping import Course
from heads.targets import Target


def train_members(
    inputs: Inputs,
    log_views: Float64[np.ndarray, " video"],
    plan: FoldPlan,
    config: HeadsConfig,
    *,
    device: str = "cpu",
    on_epoch: OnEpoch | None = None,
    packed: bool | None = None,
) -> list[TrainedMember[FittedHeads]]:
    """Train a member per fold and seed, on every row that the fold does not validate; in the order of folds and seeds.

    A member depends on its rows, on `config` and on (seed, fold), not on which others are trained beside it.
    `packed` trains all members with equally many steps per epoch as one program; by default only on an accelerator,
    as a CPU gains next to nothing from it. Packed and one by one agree up to rounding.

    Raises ValueError for arrays of different length, and UnfitDataError for a target that is constant or not finite,
    a modality that no training row of a fold has, and a training loss that is no longer finite.
    """
    (members,) = train_each(inputs, log_views, plan, [config], device=device, on_epoch=on_epoch, packed=packed)
    return members


def train_each(
    inputs: Inputs,
    log_views: Float64[np.ndarray, " video"],
    plan: FoldPlan,
    configs: Sequence[HeadsConfig],
    *,
    device: str = "cpu",
    on_epoch: OnEpoch | None = None,
    packed: bool | None = None,
) -> list[list[TrainedMember[FittedHeads]]]:
    """`train_members` of several configurations, as one program where their shapes allow it."""
    entries = [entries_of(plan, config) for config in configs]
    together = [entry for own in entries for entry in own]
    courses = iter(run_courses(inputs, log_views, plan, together, device=device, on_epoch=on_epoch, packed=packed))
    return [
        [_trained(next(courses), inputs, log_views, Target(config.target)) for _ in own]
        for own, config in zip(entries, configs, strict=True)
    ]


def entries_of(plan: FoldPlan, config: HeadsConfig) -> list[Entry]:
    """A member for every fold and each of the configuration's seeds."""
    return [Entry(fold, seeded) for fold in range(plan.n_folds) for seeded in config.of_each_seed()]


def _trained(
    course: Course, inputs: Inputs, log_views: Float64[np.ndarray, " video"], target: Target
) -> TrainedMember[FittedHeads]:
    member, best, last = course.member, course.best, course.moments[-1]

    def in_canonical_gauge(raw: RawMember) -> FittedHeads:
        heads = (Head((branch,)) for branch in raw.branches)
        return FittedHeads.canonical(
            dict(zip(inputs.modalities, heads, strict=True)),
            raw_weights=raw.weights,
            intercept=raw.intercept,
            inputs=inputs,
            train_rows=member.train_rows,
            standardisation=member.standardisation,
            target=target,
        )

    seen, truth = inputs.take(member.val_rows), log_views[member.val_rows]
    best_heads, last_heads = in_canonical_gauge(best.raw), in_canonical_gauge(last.raw)
    return TrainedMember(
        fold=member.fold,
        best=best_heads,
        final=last_heads,
        best_epoch=best.record.epoch,
        best_msle=msle(truth, best_heads.predict(seen)),
        final_msle=msle(truth, last_heads.predict(seen)),
        train_size=len(member.train_rows),
        val_size=len(member.val_rows),
        history=tuple(course.records),
        seed=member.config.seed,
    )
