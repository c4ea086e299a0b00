"""Train one member per fold: all its heads and their weights together, on arrays that sit in memory."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64

from heads.config import HeadsConfig
from heads.errors import UnfitDataError
from heads.fitted import FittedHeads
from heads.folds import FoldPlan
from heads.inputs import Inputs
from heads.metrics import mae, msle, rmse
from heads.mlp import RawMember
from heads.pack import DeviceInputs, Pack, n_steps
from heads.simplex import canonical_gauge
from heads.targets import Target


@dataclass(frozen=True, kw_only=True)
class EpochRecord:
    """One member after one epoch (1, 2, ...); losses are on the z scale, errors in log units on its validation rows.

    `train_loss` is the mean over the epoch's steps, with dropout. `weights` are canonical, from at most
    `heads.pack.GAUGE_ROWS` training rows. `seconds` are those of all members that trained side by side.
    """

    fold: int
    epoch: int
    train_loss: float
    val_loss: float
    msle: float
    mae: float
    rmse: float
    learning_rate: float
    weights: dict[str, float]
    raw_weights: dict[str, float]
    seconds: float


@dataclass(frozen=True, eq=False, kw_only=True)
class TrainedMember:
    """A fold's member at the epoch with the lowest validation MSLE (the first of equals) and at the last epoch."""

    fold: int
    best: FittedHeads
    final: FittedHeads
    best_epoch: int
    best_msle: float
    final_msle: float
    train_size: int
    val_size: int
    history: tuple[EpochRecord, ...]


def train_members(
    inputs: Inputs,
    log_views: Float64[np.ndarray, " video"],
    plan: FoldPlan,
    config: HeadsConfig,
    *,
    device: str = "cpu",
    on_epoch: Callable[[EpochRecord], None] | None = None,
    packed: bool | None = None,
) -> list[TrainedMember]:
    """Train one member per fold, on every row that the fold does not validate; returned in the order of the folds.

    A member depends on its rows, on `config` and on (seed, fold), not on which others are trained beside it.
    `packed` trains all members with equally many steps per epoch as one program; by default only on an accelerator,
    as a CPU gains nothing from it. Packed and one by one agree up to rounding.

    Raises ValueError for arrays of different length, and UnfitDataError for a target that is constant or not finite,
    a modality that no training row of a fold has, and a training loss that is no longer finite.
    """
    if not inputs.n_videos == len(log_views) == len(plan.fold_of):
        lengths = f"{inputs.n_videos}, {len(log_views)} and {len(plan.fold_of)} rows"
        raise ValueError(f"inputs, targets and fold plan must be of the same videos, given {lengths}")
    data = DeviceInputs(inputs, torch.device(device))
    together = data.device.type != "cpu" if packed is None else packed
    trained: list[TrainedMember] = []
    for folds in _equal_steps(plan, config.batch_size) if together else [[fold] for fold in range(plan.n_folds)]:
        trained += _train_pack(Pack(data, log_views, plan, folds, config), log_views, config, on_epoch)
    return sorted(trained, key=lambda member: member.fold)


def _equal_steps(plan: FoldPlan, batch_size: int) -> list[list[int]]:
    packs: dict[int, list[int]] = {}
    for fold in range(plan.n_folds):
        packs.setdefault(n_steps(len(plan.train_rows(fold)), batch_size), []).append(fold)
    return list(packs.values())


@dataclass(frozen=True, eq=False)
class _Moment:
    record: EpochRecord
    raw: RawMember


def _train_pack(
    pack: Pack,
    log_views: Float64[np.ndarray, " video"],
    config: HeadsConfig,
    on_epoch: Callable[[EpochRecord], None] | None,
) -> list[TrainedMember]:
    histories: list[list[EpochRecord]] = [[] for _ in pack.members]
    best: dict[int, _Moment] = {}
    last: dict[int, _Moment] = {}
    pack.recentre()
    for epoch in range(1, config.epochs + 1):
        for index, moment in enumerate(_run_epoch(pack, log_views, config, epoch)):
            last[index] = moment
            best[index] = min(best.get(index, moment), moment, key=lambda seen: seen.record.msle)
            histories[index].append(moment.record)
            if on_epoch is not None:
                on_epoch(moment.record)
    target = Target(config.target)
    return [
        _finished(pack, index, moments=(best[index], last[index]), history=tuple(history), target=target)
        for index, history in enumerate(histories)
    ]


def _run_epoch(pack: Pack, log_views: Float64[np.ndarray, " video"], config: HeadsConfig, epoch: int) -> list[_Moment]:
    started = time.perf_counter()
    losses = pack.train_epoch()
    _check_finite(losses, pack, config, epoch)
    gauge_outputs = pack.recentre()
    val_outputs = pack.outputs([member.val_rows for member in pack.members])
    seconds = time.perf_counter() - started
    moments = []
    for index, (member, outputs) in enumerate(zip(pack.members, val_outputs, strict=True)):
        raw = pack.heads.member(index)
        present = pack.data.inputs.present
        z = raw.intercept + raw.weights @ (outputs * present[:, member.val_rows])
        log_true, log_pred = log_views[member.val_rows], member.standardisation.undo(z)
        gauge = canonical_gauge(gauge_outputs[index], present[:, member.gauge_rows], raw.weights, raw.intercept)
        record = EpochRecord(
            fold=member.fold,
            epoch=epoch,
            train_loss=float(losses[index]),
            val_loss=msle(log_true, log_pred) / member.standardisation.sd**2,
            msle=msle(log_true, log_pred),
            mae=mae(log_true, log_pred),
            rmse=rmse(log_true, log_pred),
            learning_rate=config.lr,
            weights=_by_modality(pack, gauge.weights),
            raw_weights=_by_modality(pack, raw.weights),
            seconds=seconds,
        )
        moments.append(_Moment(record, raw))
    return moments


def _check_finite(losses: Float64[np.ndarray, " member"], pack: Pack, config: HeadsConfig, epoch: int) -> None:
    for member, loss in zip(pack.members, losses, strict=True):
        if not np.isfinite(loss):
            raise UnfitDataError(
                f"the training loss must stay finite, but is {loss} for fold {member.fold} in epoch {epoch}: "
                f"lower --lr (now {config.lr:g})"
            )


def _finished(
    pack: Pack, index: int, *, moments: tuple[_Moment, _Moment], history: tuple[EpochRecord, ...], target: Target
) -> TrainedMember:
    member, inputs, (best, last) = pack.members[index], pack.data.inputs, moments
    train_inputs = inputs.take(member.train_rows)

    def in_canonical_gauge(raw: RawMember) -> FittedHeads:
        heads = dict(zip(inputs.modalities, raw.heads, strict=True))
        return FittedHeads.canonical(
            heads,
            raw_weights=raw.weights,
            intercept=raw.intercept,
            train_inputs=train_inputs,
            standardisation=member.standardisation,
            target=target,
        )

    return TrainedMember(
        fold=member.fold,
        best=in_canonical_gauge(best.raw),
        final=in_canonical_gauge(last.raw),
        best_epoch=best.record.epoch,
        best_msle=best.record.msle,
        final_msle=last.record.msle,
        train_size=len(member.train_rows),
        val_size=len(member.val_rows),
        history=history,
    )


def _by_modality(pack: Pack, weights: Float64[np.ndarray, " modality"]) -> dict[str, float]:
    return dict(zip(pack.data.inputs.modalities, weights.tolist(), strict=True))
