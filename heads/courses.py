"""The way of every member through the epochs: side by side where that is faster, each until it stops."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64

from heads.config import HeadsConfig
from heads.errors import UnfitDataError
from heads.folds import FoldPlan
from heads.inputs import Inputs, check_same_videos
from heads.members import EpochRecord
from heads.metrics import mae, msle, rmse
from heads.mlp import RawMember
from heads.pack import DeviceInputs, Entry, Member, Pack, n_steps
from heads.simplex import canonical_weights, head_means

OnEpoch = Callable[[EpochRecord], None]

NARROW = 128
"""Widest hidden layer of the networks that a CPU trains side by side as well: their steps mostly wait for calls."""

NARROW_PACK = 3
"""Members that a CPU trains side by side; the columns of more of them do not stay in its caches."""


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
    """The epoch with the least squared error on all folds but this one; every moment must have been kept."""
    others = [course for course in courses if course.member.fold != fold]
    last = max(len(course.moments) for course in others)
    curves = [
        len(course.member.val_rows) * np.array([course.at(epoch).record.msle for epoch in range(last)])
        for course in others
    ]
    return int(np.sum(curves, axis=0).argmin())


def run_courses(
    inputs: Inputs,
    log_views: Float64[np.ndarray, " video"],
    plan: FoldPlan,
    entries: Sequence[Entry],
    *,
    device: str = "cpu",
    on_epoch: OnEpoch | None = None,
    packed: bool | None = None,
) -> list[Course]:
    """Run every member through its epochs, in the order of the entries.

    If the entries have a start every moment is kept, the one before the first epoch included; else the best and the
    last. A member whose validation MSLE has not improved for `patience` epochs stops: its last moment stays its last.
    """
    check_same_videos(inputs, log_views, plan)
    keep_all = entries[0].start is not None
    data = DeviceInputs(inputs, torch.device(device), read_whole=not keep_all)
    courses: dict[int, Course] = {}
    for places in _packs(entries, plan, data.device, packed=packed):
        pack = Pack(data, log_views, plan, [entries[place] for place in places])
        courses |= zip(places, _run_pack(pack, log_views, on_epoch, keep_all=keep_all), strict=True)
    return [courses[place] for place in range(len(entries))]


def _packs(
    entries: Sequence[Entry], plan: FoldPlan, device: torch.device, *, packed: bool | None
) -> list[Sequence[int]]:
    """Places of the entries that train side by side: those of the same shapes, as many as are worth it."""
    alike: dict[tuple[int, ...], list[int]] = {}
    for place, (entry, config) in enumerate((entry, entry.config) for entry in entries):
        steps = n_steps(len(plan.train_rows(entry.fold)), config.batch_size)
        alike.setdefault((steps, config.batch_size, config.hidden_dim, config.epochs), []).append(place)
    packs: list[Sequence[int]] = []
    for places in alike.values():
        most = _pack_size(entries[places[0]].config, device, packed=packed) or len(places)
        packs += [places[first : first + most] for first in range(0, len(places), most)]
    return packs


def _pack_size(config: HeadsConfig, device: torch.device, *, packed: bool | None) -> int | None:
    """Most members of a pack; None: all that are alike."""
    if packed is not None:
        return None if packed else 1
    if device.type != "cpu":
        return None
    return NARROW_PACK if config.hidden_dim <= NARROW else 1


class _Way:
    """A member's course so far."""

    def __init__(self, member: Member, *, keep_all: bool) -> None:
        self._member, self._keep_all = member, keep_all
        self.records: list[EpochRecord] = []
        self.moments: list[Moment] = []
        self._best_epoch, self._best = 0, np.inf

    @property
    def stopped(self) -> bool:
        """Whether it has waited for an improvement long enough."""
        patience = self._member.config.patience
        return bool(patience and self.records and self.records[-1].epoch - self._best_epoch >= patience)

    def add(self, moment: Moment) -> None:
        """Keep what there is to keep of an epoch; epoch 0 is before the first."""
        record = moment.record
        if record.epoch:
            self.records.append(record)
        if record.msle < self._best:
            self._best_epoch, self._best = record.epoch, record.msle
        self.moments.append(moment)
        if not self._keep_all:
            self.moments = [kept for kept in self.moments if kept is moment or kept.record.epoch == self._best_epoch]

    def course(self) -> Course:
        """All of it."""
        return Course(self._member, self.records, self.moments)


def _run_pack(
    pack: Pack, log_views: Float64[np.ndarray, " video"], on_epoch: OnEpoch | None, *, keep_all: bool
) -> list[Course]:
    """Run a pack until its last member stops; one that stopped before is carried along, and nothing of it is kept."""
    ways = [_Way(member, keep_all=keep_all) for member in pack.members]
    gauge_outputs = pack.recentre()
    running = list(range(len(ways)))
    if keep_all:
        for index, moment in _moments(pack, running, log_views, gauge_outputs, _Epoch(0, None, 0.0)):
            ways[index].add(moment)
    for epoch in range(1, pack.members[0].config.epochs + 1):
        for index, moment in _run_epoch(pack, running, log_views, epoch):
            ways[index].add(moment)
            if on_epoch is not None:
                on_epoch(moment.record)
        running = [index for index in running if not ways[index].stopped]
        if not running:
            break
    return [way.course() for way in ways]


@dataclass(frozen=True)
class _Epoch:
    number: int
    losses: Float64[np.ndarray, " member"] | None
    seconds: float


def _run_epoch(
    pack: Pack, running: Sequence[int], log_views: Float64[np.ndarray, " video"], epoch: int
) -> list[tuple[int, Moment]]:
    started = time.perf_counter()
    losses = pack.train_epoch()
    for index in running:
        if not np.isfinite(losses[index]):
            raise _diverged(pack.members[index], epoch, "training loss")
    gauge_outputs = pack.recentre()
    return _moments(pack, running, log_views, gauge_outputs, _Epoch(epoch, losses, time.perf_counter() - started))


def _moments(
    pack: Pack,
    running: Sequence[int],
    log_views: Float64[np.ndarray, " video"],
    gauge_outputs: Sequence[Float64[np.ndarray, "modality _"]],
    epoch: _Epoch,
) -> list[tuple[int, Moment]]:
    """Validate the members that run, as they are now."""
    present = pack.data.inputs.present
    val_outputs = pack.outputs([member.val_rows for member in pack.members])
    moments = []
    for index in running:
        member, raw, outputs = pack.members[index], pack.heads.member(index), val_outputs[index]
        rows = member.val_rows
        centre = head_means(gauge_outputs[index], present[:, member.gauge_rows])
        z = raw.intercept + raw.weights @ (centre[:, None] + (outputs - centre[:, None]) * present[:, rows])
        if not np.isfinite(z).all():
            raise _diverged(member, epoch.number, "predictions")
        log_true, log_pred = log_views[rows], member.base[rows] + member.standardisation.sd * z
        record = EpochRecord(
            fold=member.fold,
            epoch=epoch.number,
            train_loss=None if epoch.losses is None else float(epoch.losses[index]),
            val_loss=msle(log_true, log_pred) / member.standardisation.sd**2,
            msle=msle(log_true, log_pred),
            mae=mae(log_true, log_pred),
            rmse=rmse(log_true, log_pred),
            learning_rate=None if epoch.losses is None else member.config.lr,
            weights=_weights(pack, index, raw, gauge_outputs[index] - centre[:, None]),
            raw_weights=dict(zip(pack.data.inputs.modalities, raw.weights.tolist(), strict=True)),
            seconds=epoch.seconds,
            seed=member.config.seed,
        )
        moments.append((index, Moment(record, raw)))
    return moments


def _weights(pack: Pack, index: int, raw: RawMember, centred: Float64[np.ndarray, "modality row"]) -> dict[str, float]:
    """Canonical weights of the whole model, what the member began with included, from its gauge rows."""
    member, inputs = pack.members[index], pack.data.inputs
    rows = member.gauge_rows
    contributions = member.terms[:, rows] + raw.weights[:, None] * centred * inputs.present[:, rows]
    spreads = member.beside | dict(zip(inputs.modalities, contributions.std(axis=1).tolist(), strict=True))
    return dict(zip(spreads, canonical_weights(np.array([*spreads.values()])).tolist(), strict=True))


def _diverged(member: Member, epoch: int, what: str) -> UnfitDataError:
    return UnfitDataError(
        f"the {what} must stay finite, but did not for fold {member.fold} in epoch {epoch}: "
        f"lower --lr (now {member.config.lr:g})"
    )
