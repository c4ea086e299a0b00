"""Whether every byte and value of a cache is right: names, digests, structure, ids, statuses, vectors and sources.

One shard per thread is in memory at a time; what is kept of it is 27 bytes or so for each row.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool

from features.errors import CacheError
from features.inspection import Inspection, inspect
from features.kinds import IMAGE, KINDS
from features.plan import CachePlan, PlannedShard, shard_key
from features.progress import Progress
from features.shards import Shard, ShardFacts, ShardMemory, max_shard_bytes, read_shard
from features.staleness import Some, compare
from features.status import Status, unknown
from features.store import READ_THREADS
from features.survey import Place
from features.videos import VideoTable


@dataclass(frozen=True)
class Fault:
    """Something that is wrong, where, and what repairs it."""

    where: Path
    what: str
    repair: str


@dataclass(frozen=True)
class Checked:
    """What was checked of a cache, and everything that is wrong with it."""

    shards: int
    size_bytes: int
    faults: list[Fault]


def verify_cache(
    folder: Path, table: VideoTable | None, extract: str, progress: Progress, *, sources: bool = True
) -> Checked:
    """Check a cache; `extract` is the command that would make it, `table` the dataset if it can be compared.

    With `sources` every thumbnail is hashed as well and compared with what its vector was made from.
    """
    inspection = inspect(folder)
    faults = [_manifest_fault(folder, message) for message in inspection.faults]
    if inspection.plan is None:
        if not faults:
            faults.append(Fault(folder, "holds no manifest", f"`{extract}`"))
        return Checked(0, inspection.size_bytes, faults)
    verification = _Verification(inspection, inspection.plan, extract, progress)
    faults += verification.unfinished()
    faults += verification.shards()
    faults += verification.unequal_ids()
    if table is not None:
        faults += verification.stale(table, sources=sources)
    return Checked(len(inspection.plan.shards), inspection.size_bytes, faults)


def _manifest_fault(folder: Path, message: str) -> Fault:
    what, _, advice = message.removeprefix(f"{folder}/").rpartition(": ")
    return Fault(folder, what, advice.replace("its folder", str(folder)))


class _Verification:
    """The checks of one cache; `shards` comes first, the later ones look at what it found."""

    def __init__(self, inspection: Inspection, plan: CachePlan, extract: str, progress: Progress) -> None:
        self._inspection, self._plan, self._extract, self._progress = inspection, plan, f"`{extract}`", progress
        self._folder = inspection.folder
        self._memory = ShardMemory()
        self._good: dict[Place, ShardFacts] = {}

    def unfinished(self) -> Iterator[Fault]:
        pending, published = self._inspection.pending, self._inspection.published
        if pending is not None:
            k_of_n = f"{self._inspection.pending_there} of {len(pending.shards)}"
            yield Fault(self._folder, f"is not finished: {k_of_n} planned shards are there", self._extract)
        if published is not None and not published.is_complete:
            yield Fault(self._folder, "its manifest does not name all its shards", self._extract)

    def shards(self) -> Iterator[Fault]:
        planned = self._plan.shards
        self._progress.begin(f"{self._folder.parent.name}/{self._folder.name}", len(planned), "shards")
        with ThreadPoolExecutor(READ_THREADS) as pool:
            for shard, (facts, wrong) in zip(planned, pool.map(self._shard, planned), strict=True):
                yield from wrong
                if facts is not None:
                    self._good[shard.kind, shard.index] = facts
                self._progress.advance(1, bad=len(wrong))
        self._progress.end()

    def _shard(self, planned: PlannedShard) -> tuple[ShardFacts | None, list[Fault]]:
        """Read one shard with every check; no facts if its bytes are not what they should be."""
        name = self._inspection.serving.get((planned.kind, planned.index), planned.file)
        if not name:  # the pending plan still has to make it
            return None, []
        path = self._folder / name
        if not path.exists():
            return None, [Fault(path, "is missing", self._extract)]
        try:
            limit = max_shard_bytes(planned.rows, self._plan.dims[planned.kind])
            shard = read_shard(path, max_bytes=limit, memory=self._memory)
        except CacheError as error:
            what = str(error).removeprefix(f"shard {path} ").removeprefix(f"shard {name} ")
            return None, [Fault(path, what.removesuffix(": run `vp extract` again"), self._extract)]
        again = f"remove {path}, then {self._extract}"
        if identity := _identity_fault(shard, self._plan, planned):
            return None, [Fault(path, identity, again)]
        return ShardFacts.of(shard), [Fault(path, what, again) for what in _value_faults(shard)]

    def unequal_ids(self) -> Iterator[Fault]:
        """Image and text shards of one range must be of the same videos."""
        first, *others = self._plan.dims
        for kind, index in [(shard.kind, shard.index) for shard in self._plan.shards if shard.kind in others]:
            here, there = self._good.get((kind, index)), self._good.get((first, index))
            if here is not None and there is not None and here.ids != there.ids:
                what = f"{kind} and {first} shards {index} are not of the same videos"
                yield Fault(self._folder, what, f"move {self._folder} away, then {self._extract}")

    def stale(self, table: VideoTable, *, sources: bool) -> Iterator[Fault]:
        found = compare(self._plan, self._good, table, self._progress, contents=sources)
        for what in found.told:
            yield Fault(self._folder, what, self._extract)
        if found.unreadable_told:
            yield Fault(self._folder, found.unreadable_told, "make the files readable")


def _identity_fault(shard: Shard, plan: CachePlan, planned: PlannedShard) -> str:
    """Why a whole shard is not the planned one; empty if it is."""
    found = {"kind": shard.kind, "index": shard.index, "encoder": shard.encoder, "key": shard.key}
    found |= {"rows": shard.embedding.shape[0], "dim": shard.embedding.shape[1]}
    expected = {"kind": planned.kind, "index": planned.index, "encoder": plan.encoder, "key": planned.key}
    expected |= {"rows": planned.rows, "dim": plan.dims[planned.kind]}
    wrong = [
        f"{name} {_brief(found[name])}, not {_brief(expected[name])}" for name in found if found[name] != expected[name]
    ]
    if wrong:
        return f"is another shard than the manifest says: {'; '.join(wrong)}"
    if shard.kind not in KINDS:
        return ""
    texts = shard.source_digest.tobytes() if shard.kind != IMAGE else b""
    if shard_key(plan.encoder, shard.kind, plan.batch_size, shard.ids, texts) != planned.key:
        return "holds other ids or texts than the plan"
    return ""


def _brief(value: object) -> object:
    return value[:12] if isinstance(value, str) else value


def _value_faults(shard: Shard) -> Iterator[str]:
    strange = unknown(shard.status)
    if strange.any():
        yield f"{_rows(shard, strange)} with an unknown status"
    ok = shard.status == Status.OK
    broken = ok & ~np.isfinite(shard.embedding).all(axis=1)
    if broken.any():
        yield f"{_rows(shard, broken)} marked ok whose vector is not finite"
    sourceless = ok & ~shard.source_digest.any(axis=1)
    if sourceless.any():
        yield f"{_rows(shard, sourceless)} marked ok without the digest of a source"


def _rows(shard: Shard, which: Bool[np.ndarray, " row"]) -> str:
    some = Some()
    some.add(shard.ids[row] for row in np.flatnonzero(which).tolist())
    return f"holds {some.rows} ({some.told})"
