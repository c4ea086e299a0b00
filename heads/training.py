"""Train one member per fold: all its heads and their weights together, on arrays that sit in memory."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64

from heads.config import HeadsConfig
from heads.errors import UnfitDataError
from heads.fitted import FittedHeads, Head
from heads.folds import FoldPlan
from heads.inputs import Inputs
from heads.members import EpochRecord, TrainedMember
from heads.metrics import mae, msle, rmse
from heads.mlp import RawMember
from heads.pack import DeviceInputs, Member, Pack, Start, n_steps
from heads.simplex import canonical_gauge, head_means
from heads.targets import Target

OnEpoch = Callable[[EpochRecord], None]


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
    """Train one member per fold, on every row that the fold does not validate; returned in the order of the folds.

    A member depends on its rows, on `config` and on (seed, fold), not on which others are trained beside it.
    `packed` trains all members with equally many steps per epoch as one program; by default only on an accelerator,
    as a CPU gains nothing from it. Packed and one by one agree up to rounding.

    Raises ValueError for arrays of different length, and UnfitDataError for a target that is constant or not finite,
    a modality that no training row of a fold has, and a training loss that is no longer finite.
    """
    courses = run_courses(inputs, log_views, plan, config, device=device, on_epoch=on_epoch, packed=packed)
    return [_trained(course, inputs, log_views, Target(config.target)) for course in courses]


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


def run_courses(
    inputs: Inputs,
    log_views: Float64[np.ndarray, " video"],
    plan: FoldPlan,
    config: HeadsConfig,
    *,
    device: str = "cpu",
    on_epoch: OnEpoch | None = None,
    packed: bool | None = None,
    starts: Mapping[int, Start] | None = None,
) -> list[Course]:
    """Run every member through all epochs, in the order of the folds.

    With `starts` (by fold) every moment is kept, the one before the first epoch included; else the best and the last.
    """
    if not inputs.n_videos == len(log_views) == len(plan.fold_of):
        lengths = f"{inputs.n_videos}, {len(log_views)} and {len(plan.fold_of)} rows"
        raise ValueError(f"inputs, targets and fold plan must be of the same videos, given {lengths}")
    data = DeviceInputs(inputs, torch.device(device), read_whole=starts is None)
    together = data.device.type != "cpu" if packed is None else packed
    courses: list[Course] = []
    for folds in _equal_steps(plan, config.batch_size) if together else [[fold] for fold in range(plan.n_folds)]:
        pack = Pack(data, log_views, plan, folds, config, starts=starts)
        courses += _run_pack(pack, log_views, config, on_epoch, keep_all=starts is not None)
    return sorted(courses, key=lambda course: course.member.fold)


def _equal_steps(plan: FoldPlan, batch_size: int) -> list[list[int]]:
    packs: dict[int, list[int]] = {}
    for fold in range(plan.n_folds):
        packs.setdefault(n_steps(len(plan.train_rows(fold)), batch_size), []).append(fold)
    return list(packs.values())


def _run_pack(
    pack: Pack,
    log_views: Float64[np.ndarray, " video"],
    config: HeadsConfig,
    on_epoch: OnEpoch | None,
    *,
    keep_all: bool,
) -> list[Course]:
    records: list[list[EpochRecord]] = [[] for _ in pack.members]
    kept: list[list[Moment]] = [[] for _ in pack.members]
    gauge_outputs = pack.recentre()
    if keep_all:
        kept = [[moment] for moment in _moments(pack, log_views, config, gauge_outputs, _Epoch(0, None, None, 0.0))]
    for epoch in range(1, config.epochs + 1):
        for index, moment in enumerate(_run_epoch(pack, log_views, config, epoch)):
            records[index].append(moment.record)
            kept[index] = [*kept[index], moment] if keep_all else _best_and_last([*kept[index], moment])
            if on_epoch is not None:
                on_epoch(moment.record)
    return [Course(*parts) for parts in zip(pack.members, records, kept, strict=True)]


def _best_and_last(moments: list[Moment]) -> list[Moment]:
    best = min(moments, key=lambda moment: moment.record.msle)
    return [best] if best is moments[-1] else [best, moments[-1]]


@dataclass(frozen=True)
class _Epoch:
    number: int
    losses: Float64[np.ndarray, " member"] | None
    learning_rate: float | None
    seconds: float


def _run_epoch(pack: Pack, log_views: Float64[np.ndarray, " video"], config: HeadsConfig, epoch: int) -> list[Moment]:
    started = time.perf_counter()
    losses = pack.train_epoch()
    _check_finite(losses, pack, config, epoch)
    gauge_outputs = pack.recentre()
    epoch_facts = _Epoch(epoch, losses, config.lr, time.perf_counter() - started)
    return _moments(pack, log_views, config, gauge_outputs, epoch_facts)


def _moments(
    pack: Pack,
    log_views: Float64[np.ndarray, " video"],
    config: HeadsConfig,
    gauge_outputs: Sequence[Float64[np.ndarray, "modality _"]],
    epoch: _Epoch,
) -> list[Moment]:
    """Validate every member as it is now."""
    present = pack.data.inputs.present
    val_outputs = pack.outputs([member.val_rows for member in pack.members])
    moments = []
    for index, (member, outputs) in enumerate(zip(pack.members, val_outputs, strict=True)):
        raw, rows = pack.heads.member(index), member.val_rows
        centre = head_means(gauge_outputs[index], present[:, member.gauge_rows])
        z = raw.intercept + raw.weights @ (centre[:, None] + (outputs - centre[:, None]) * present[:, rows])
        if not np.isfinite(z).all():
            raise _diverged(member.fold, epoch.number, "predictions", config)
        log_true, log_pred = log_views[rows], member.base[rows] + member.standardisation.sd * z
        gauge = canonical_gauge(gauge_outputs[index], present[:, member.gauge_rows], raw.weights, raw.intercept)
        record = EpochRecord(
            fold=member.fold,
            epoch=epoch.number,
            train_loss=None if epoch.losses is None else float(epoch.losses[index]),
            val_loss=msle(log_true, log_pred) / member.standardisation.sd**2,
            msle=msle(log_true, log_pred),
            mae=mae(log_true, log_pred),
            rmse=rmse(log_true, log_pred),
            learning_rate=epoch.learning_rate,
            weights=_by_modality(pack, gauge.weights),
            raw_weights=_by_modality(pack, raw.weights),
            seconds=epoch.seconds,
        )
        moments.append(Moment(record, raw))
    return moments


def _check_finite(losses: Float64[np.ndarray, " member"], pack: Pack, config: HeadsConfig, epoch: int) -> None:
    for member, loss in zip(pack.members, losses, strict=True):
        if not np.isfinite(loss):
            raise _diverged(member.fold, epoch, "training loss", config)


def _diverged(fold: int, epoch: int, what: str, config: HeadsConfig) -> UnfitDataError:
    return UnfitDataError(
        f"the {what} must stay finite, but did not for fold {fold} in epoch {epoch}: lower --lr (now {config.lr:g})"
    )


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
    )


def _by_modality(pack: Pack, weights: Float64[np.ndarray, " modality"]) -> dict[str, float]:
    return dict(zip(pack.data.inputs.modalities, weights.tolist(), strict=True))
