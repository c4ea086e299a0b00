"""The way of every member through the epochs: side by side where that is faster, each until it stops."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float64

from heads.errors import UnfitDataError
from heads.folds import FoldPlan
from heads.inputs import Inputs, check_same_videos
from heads.members import EpochRecord
from heads.metrics import mae, msle, rmse
from heads.mlp import RawMember
from heads.pack import DeviceInputs, Entry, Member, Pack, n_steps
from heads.simplex import canonical_weights, head_means
from heads.stopping import Course, Moment, has_ended

OnEpoch = Callable[[EpochRecord], None]


def run_courses(
    inputs: Inputs,
    log_views: Float64[np.ndarray, " video"],
    plan: FoldPlan,
    entries: Sequence[Entry],
    *,
    device: str = "cpu",
    on_epoch: OnEpoch | None = None,
    packed: bool | None = None,
    teams: Sequence[Sequence[int]] = (),
) -> list[Course]:
    """Run every member through its epochs, in the order of the entries.

    If the entries have a start every moment is kept, the one before the first epoch included; else the best and the
    last. A member whose validation MSLE has not improved for `patience` epochs stops: its last moment stays its last.
    `teams` are the places of entries that end together, once `best_elsewhere` of none of their folds can still change.
    """
    check_same_videos(inputs, log_views, plan)
    keep_all = entries[0].start is not None
    data = DeviceInputs(inputs, torch.device(device), read_whole=not keep_all)
    ways: dict[int, _Way] = {}
    packs = _packs(entries, plan, data.device, packed=packed)
    for side_by_side in [packs] if teams else [[places] for places in packs]:
        runners = [
            _Runner(Pack(data, log_views, plan, [entries[place] for place in places]), log_views, on_epoch)
            for places in side_by_side
        ]
        for places, runner in zip(side_by_side, runners, strict=True):
            ways |= zip(places, runner.begin(keep_all=keep_all), strict=True)
        for epoch in range(1, entries[0].config.epochs + 1):
            for runner in runners:
                runner.run(epoch)
            _end(teams, ways)
            if not any(runner.running for runner in runners):
                break
    return [ways[place].course() for place in range(len(entries))]


def _packs(
    entries: Sequence[Entry], plan: FoldPlan, device: torch.device, *, packed: bool | None
) -> list[Sequence[int]]:
    """Places of the entries that train side by side: all of the same shapes, or on a CPU each by itself.

    On a CPU packs of three took 0.94 of the time of one by one, which is the same to the bit whatever the others.
    """
    together = device.type != "cpu" if packed is None else packed
    alike: dict[tuple[int, ...], list[int]] = {}
    for place, (entry, config) in enumerate((entry, entry.config) for entry in entries):
        steps = n_steps(len(plan.train_rows(entry.fold)), config.batch_size)
        shape = (steps, config.batch_size, config.hidden_dim)
        alike.setdefault(shape if together else (place,), []).append(place)
    return list(alike.values())


class _Way:
    """A member's course so far."""

    def __init__(self, member: Member, *, keep_all: bool) -> None:
        self._member, self._keep_all = member, keep_all
        self._records: list[EpochRecord] = []
        self._moments: list[Moment] = []
        self._best_epoch, self._best = 0, np.inf
        self.stopped = False

    def add(self, moment: Moment) -> None:
        """Keep what there is to keep of an epoch; epoch 0 is before the first."""
        record, patience = moment.record, self._member.config.patience
        if record.epoch:
            self._records.append(record)
        if record.msle < self._best:
            self._best_epoch, self._best = record.epoch, record.msle
        self._moments.append(moment)
        if not self._keep_all:
            self._moments = [kept for kept in self._moments if kept is moment or kept.record.epoch == self._best_epoch]
        self.stopped = bool(patience) and record.epoch - self._best_epoch >= patience

    def course(self) -> Course:
        """All of it."""
        return Course(self._member, self._records, self._moments)


def teams_of(entries: Sequence[Sequence[Entry]]) -> list[range]:
    """Places of each configuration's entries where they stand one after the other.

    >>> from heads.config import HeadsConfig
    >>> entries = [Entry(fold, HeadsConfig()) for fold in range(3)]
    >>> teams_of([entries[:2], entries[2:]])
    [range(0, 2), range(2, 3)]
    """
    ends = np.cumsum([0, *map(len, entries)]).tolist()
    return [range(first, after) for first, after in pairwise(ends)]


def _end(teams: Sequence[Sequence[int]], ways: Mapping[int, _Way]) -> None:
    """Stop the teams that have ended."""
    for team in teams:
        if has_ended([ways[place].course() for place in team]):
            for place in team:
                ways[place].stopped = True


class _Runner:
    """A pack on its way; a member that has stopped is carried along until all have, and nothing of it is kept."""

    def __init__(self, pack: Pack, log_views: Float64[np.ndarray, " video"], on_epoch: OnEpoch | None) -> None:
        self._pack, self._log_views, self._on_epoch = pack, log_views, on_epoch
        self._ways: list[_Way] = []

    @property
    def running(self) -> list[int]:
        """Places of the members in the pack that have not stopped."""
        return [index for index, way in enumerate(self._ways) if not way.stopped]

    def begin(self, *, keep_all: bool) -> list[_Way]:
        """The ways of the members, before the first epoch."""
        self._ways = [_Way(member, keep_all=keep_all) for member in self._pack.members]
        gauge_outputs = self._pack.recentre()
        if keep_all:
            before = _Epoch(0, None, 0.0)
            for index, moment in _moments(self._pack, self.running, self._log_views, gauge_outputs, before):
                self._ways[index].add(moment)
        return self._ways

    def run(self, epoch: int) -> None:
        """One epoch, if anybody still runs."""
        if not self.running:
            return
        for index, moment in _run_epoch(self._pack, self.running, self._log_views, epoch):
            self._ways[index].add(moment)
            if self._on_epoch is not None:
                self._on_epoch(moment.record)


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
        f"lower --lr, or leave it out of --sweep (now {member.config.lr:g})"
    )
