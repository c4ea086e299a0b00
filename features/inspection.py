"""What lies in a cache folder, told from names, manifests and the small parts of shards.

No vector is read, no byte is hashed, nothing is locked or changed: that is `vp status`. Whether every byte is right is
the question of `features.verification`.
"""

import json
import re
import socket
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np

from features.durable import TEMPORARY
from features.errors import CacheError
from features.listing import listed
from features.lock import PART_LOCKS, holder_of
from features.plan import MANIFEST, NEXT_MANIFEST, QUARANTINE, TIMING, CachePlan, PlannedShard, read_plan
from features.processes import is_alive
from features.shards import FILE_NAME, ShardFacts, max_shard_bytes, read_facts
from features.status import Status
from features.survey import Place

_KNOWN = {status.value for status in Status}
_LOCK = re.compile(r"\.part-\d+-of-\d+\.(lock|holder\.json)")


class Role(StrEnum):
    """Why a file lies in a cache folder."""

    MANIFEST = "manifest"
    SHARD = "shard"  # named by a manifest, or serving the pending plan
    SUPERSEDED = "superseded shard"  # one that no manifest needs
    QUARANTINE = "quarantine"
    TEMPORARY = "temporary file"
    LOCK = "lock"
    TIMING = "timing"
    STRAY = "not written by vp"


LEFTOVERS = (Role.SUPERSEDED, Role.QUARANTINE, Role.TEMPORARY)
"""What `vp prune` removes."""


@dataclass(frozen=True)
class Entry:
    """One file (or link, or folder that should not be there) and its own size; links are not followed."""

    path: Path
    role: Role
    size_bytes: int


@dataclass(frozen=True)
class Writer:
    """A process that holds a lock; `certain` unless it runs on another machine, where it cannot be asked."""

    lock: str
    pid: int
    host: str
    since: str
    certain: bool

    def __str__(self) -> str:
        doubt = "" if self.certain else " (another machine: it may have ended)"
        return f"process {self.pid} on {self.host} since {self.since}{doubt}"


@dataclass(frozen=True, eq=False)
class Inspection:
    """A cache folder as it lies there.

    `facts` holds what could be read of the shard files that matter, by name; `unreadable` why one could not be read;
    `faults` why a manifest could not. `serving` names the file of each planned shard that is there.
    """

    folder: Path
    published: CachePlan | None
    pending: CachePlan | None
    faults: Sequence[str]
    entries: Sequence[Entry]
    facts: Mapping[str, ShardFacts]
    unreadable: Mapping[str, str]
    serving: Mapping[Place, str]
    pending_there: int
    writers: Sequence[Writer]

    @property
    def plan(self) -> CachePlan | None:
        """The plan that readers go by, or the one being carried out if none is finished yet."""
        return self.published or self.pending

    @property
    def shards(self) -> dict[Place, ShardFacts]:
        """The planned shards that are there and could be read."""
        return {place: self.facts[name] for place, name in self.serving.items() if name in self.facts}

    @property
    def missing(self) -> list[PlannedShard]:
        """Planned shards that have no file, or one that cannot be read or is another shard."""
        there = self.shards
        planned = () if self.plan is None else self.plan.shards
        return [shard for shard in planned if not is_planned(there.get((shard.kind, shard.index)), shard)]

    @property
    def size_bytes(self) -> int:
        """Bytes of everything in the folder."""
        return sum(entry.size_bytes for entry in self.entries)

    def ids(self) -> list[str] | None:
        """The ids of all rows, in their order; None if a shard that tells them is missing."""
        plan, there = self.plan, self.shards
        if plan is None:
            return None
        found: list[str] = []
        for planned in plan.of_kind(next(iter(plan.dims))):
            facts = next((there[kind, planned.index] for kind in plan.dims if (kind, planned.index) in there), None)
            if facts is None:
                return None
            found += facts.ids
        return found

    def statuses(self) -> dict[str, dict[str, int]]:
        """Kind -> status -> number of rows, of the shards that are there."""
        counts: dict[str, Counter[str]] = {kind: Counter() for kind in (self.plan.dims if self.plan else ())}
        for (kind, _), facts in self.shards.items():
            for value, count in zip(*np.unique(facts.status, return_counts=True), strict=True):
                known = int(value) in _KNOWN
                counts[kind][Status(value).label if known else f"unknown ({value})"] += int(count)
        return {kind: dict(count) for kind, count in counts.items()}

    def of_role(self, *roles: Role) -> list[Entry]:
        """The files that are there for one of these reasons."""
        return [entry for entry in self.entries if entry.role in roles]


def inspect(folder: Path) -> Inspection:
    """Look at a cache folder; damage is told in the result, never raised."""
    faults: list[str] = []
    published, pending = (_plan_in(folder / name, faults) for name in (MANIFEST, NEXT_MANIFEST))
    try:
        found = listed(folder)
    except CacheError as error:  # then no manifest can be read either
        found, faults, published, pending = [], [str(error)], None, None
    names = [path.name for path in found if FILE_NAME.fullmatch(path.name)]
    facts, unreadable = _facts_of(folder, names, published, pending)
    of_pending = _serving_pending(pending, facts)
    serving = of_pending if published is None else _named(folder, published)
    known = {shard.file for shard in published.shards} if published is not None else set()
    needed = known | set(of_pending.values())
    if faults or (published is None and pending is None):
        needed |= set(names)  # without its manifest no shard may be called superseded
    entries = tuple(_entries(found, needed, faults))
    writers = [writer for path in found if path.match(PART_LOCKS) and (writer := writer_of(path))]
    return Inspection(folder, published, pending, faults, entries, facts, unreadable, serving, len(of_pending), writers)


def is_planned(found: ShardFacts | None, planned: PlannedShard) -> bool:
    """Whether a shard that was found is the one that was planned."""
    return found is not None and (found.kind, found.index, found.key) == (planned.kind, planned.index, planned.key)


def writer_of(lock: Path) -> Writer | None:
    """Who holds a lock file, as its holder wrote it down; None for a holder of this machine that is gone."""
    try:
        told = json.loads(holder_of(lock).read_text(encoding="utf-8"))
        pid, host, since = int(told["pid"]), str(told["host"]), str(told["since"])
    except (OSError, ValueError, KeyError, TypeError):  # nobody, or somebody who is just starting or ending
        return None
    here = host == socket.gethostname()
    return None if here and not is_alive(pid) else Writer(lock.name, pid, host, since, certain=here)


def _plan_in(path: Path, faults: list[str]) -> CachePlan | None:
    try:
        return read_plan(path)
    except CacheError as error:
        faults.append(str(error))
        return None


def _facts_of(
    folder: Path, names: Sequence[str], published: CachePlan | None, pending: CachePlan | None
) -> tuple[dict[str, ShardFacts], dict[str, str]]:
    """What the shard files say that the manifests name, or may need."""
    plans = [plan for plan in (published, pending) if plan is not None]
    dims: dict[str, int] = {}
    for plan in plans:
        dims |= plan.dims
    rows = max((plan.rows_per_shard for plan in plans), default=0)
    named = {shard.file for shard in published.shards} if published is not None else set()
    facts: dict[str, ShardFacts] = {}
    unreadable: dict[str, str] = {}
    for name in names if pending is not None else sorted(named.intersection(names)):
        kind: Any = FILE_NAME.fullmatch(name)
        try:
            facts[name] = read_facts(folder / name, max_bytes=max_shard_bytes(rows, dims.get(kind["kind"], 0)))
        except CacheError as error:
            unreadable[name] = str(error)
    return facts, unreadable


def _serving_pending(pending: CachePlan | None, facts: Mapping[str, ShardFacts]) -> dict[Place, str]:
    """The file of each shard of the pending plan that is there already."""
    if pending is None:
        return {}
    planned = {(shard.kind, shard.index): shard for shard in pending.shards}
    serving: dict[Place, str] = {}
    for name in sorted(facts.keys() - set(pending.superseded)):
        place = (facts[name].kind, facts[name].index)
        if place in planned and is_planned(facts[name], planned[place]):
            serving.setdefault(place, name)
    return serving


def _named(folder: Path, plan: CachePlan) -> dict[Place, str]:
    """The file that the manifest names for each shard, if there is something of that name."""
    return {
        (shard.kind, shard.index): shard.file for shard in plan.shards if shard.file and (folder / shard.file).exists()
    }


def _entries(found: Sequence[Path], needed: set[str], faults: list[str]) -> Iterator[Entry]:
    for path in found:
        role = _role(path, needed)
        if role is not Role.QUARANTINE:
            yield Entry(path, role, _own_bytes(path))
            continue
        try:
            yield from (Entry(inner, _role_in_quarantine(inner), _own_bytes(inner)) for inner in listed(path))
        except CacheError as error:
            faults.append(str(error))


def _role(path: Path, needed: set[str]) -> Role:
    if path.name == QUARANTINE and path.is_dir() and not path.is_symlink():
        return Role.QUARANTINE
    if path.is_symlink() or path.is_dir():  # neither is ever made by vp
        return Role.SHARD if path.name in needed else Role.STRAY
    if path.name in (MANIFEST, NEXT_MANIFEST, TIMING):
        return Role.TIMING if path.name == TIMING else Role.MANIFEST
    if FILE_NAME.fullmatch(path.name):
        return Role.SHARD if path.name in needed else Role.SUPERSEDED
    if TEMPORARY.fullmatch(path.name):
        return Role.TEMPORARY
    return Role.LOCK if _LOCK.fullmatch(path.name) else Role.STRAY


def _role_in_quarantine(path: Path) -> Role:
    is_file = path.is_file() and not path.is_symlink()
    return Role.QUARANTINE if is_file and FILE_NAME.fullmatch(path.name) else Role.STRAY


def _own_bytes(path: Path) -> int:
    try:
        return path.lstat().st_size
    except OSError:  # gone since it was listed: a writer is at work
        return 0
