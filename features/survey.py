"""What a cache folder holds, and which of it still serves the dataset as it is now."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float16, Int64, UInt8

from features.decode import source_digest
from features.errors import CacheError
from features.kinds import IMAGE
from features.plan import MANIFEST, NEXT_MANIFEST, CachePlan, PlannedShard, read_plan
from features.shards import FILE_NAME, Shard, ShardMemory, max_shard_bytes, read_shard
from features.status import Status, unknown
from features.store import READ_THREADS
from features.videos import VideoTable

Place = tuple[str, int]
"""Kind and index of a shard."""


@dataclass(frozen=True, eq=False)
class FoundShard:
    """A shard file that verifies, without its vectors."""

    name: str
    kind: str
    index: int
    encoder: str
    key: str
    status: UInt8[np.ndarray, " row"]
    source_digest: UInt8[np.ndarray, "row 16"]
    notes: Mapping[str, int]

    @classmethod
    def of(cls, name: str, shard: Shard) -> "FoundShard":
        """Keep what is small; the copies let go of the file's bytes."""
        status, source_digest = shard.status.copy(), shard.source_digest.copy()
        return cls(name, shard.kind, shard.index, shard.encoder, shard.key, status, source_digest, shard.notes)


@dataclass(frozen=True, eq=False)
class Survey:
    """Manifests of a cache folder, the shard files that verify, and the names of those that do not."""

    folder: Path
    published: CachePlan | None
    pending: CachePlan | None
    found: Mapping[str, FoundShard]
    damaged: Sequence[str]

    @property
    def plans(self) -> list[CachePlan]:
        """The manifests that are there."""
        return [plan for plan in (self.pending, self.published) if plan is not None]


def read_survey(folder: Path, dims: Mapping[str, int], rows_per_shard: int) -> Survey:
    """Read and verify everything in a cache folder; `rows_per_shard` bounds what a file may hold."""
    published, pending = read_plan(folder / MANIFEST), read_plan(folder / NEXT_MANIFEST)
    rows = max([rows_per_shard, *(plan.rows_per_shard for plan in (published, pending) if plan is not None)])
    names = sorted(path.name for path in folder.glob("*.h5")) if folder.is_dir() else []
    kinds = {name: match["kind"] for name in names if (match := FILE_NAME.fullmatch(name)) and match["kind"] in dims}

    memory = ShardMemory()

    def verified(name: str) -> FoundShard | None:
        try:
            limit = max_shard_bytes(rows, dims[kinds[name]])
            shard = read_shard(folder / name, max_bytes=limit, memory=memory)
        except CacheError:
            return None
        return None if unknown(shard.status).any() else FoundShard.of(name, shard)

    with ThreadPoolExecutor(READ_THREADS) as pool:
        found = dict(zip(kinds, pool.map(verified, kinds), strict=True))
    good = {name: shard for name, shard in found.items() if shard is not None}
    return Survey(folder, published, pending, good, [name for name in kinds if name not in good])


@dataclass(frozen=True, eq=False)
class Assessment:
    """What is in the folder, what is wanted, and which found shards already serve the plan."""

    survey: Survey
    plan: CachePlan
    kept: Mapping[Place, FoundShard]

    @property
    def missing(self) -> list[PlannedShard]:
        """The shards that have to be made."""
        return [shard for shard in self.plan.shards if (shard.kind, shard.index) not in self.kept]

    def with_more(self, made: Mapping[Place, FoundShard]) -> "Assessment":
        """The same after more shards were made."""
        return replace(self, kept={**self.kept, **made})

    @property
    def is_finished(self) -> bool:
        """Whether the manifest already says just what the plan wants, and every file verifies."""
        published = self.survey.published
        if published is None or self.survey.pending is not None or self.survey.damaged or self.missing:
            return False
        files = {place: shard.name for place, shard in self.kept.items()}
        return published.shards == self.plan.with_files(files).shards


def assess(survey: Survey, plan: CachePlan, table: VideoTable) -> Assessment:
    """Find the shards of a plan that are there and fresh; its plan also names files that look right but are not.

    A thumbnail that changed leaves its shard's key as it is, so such a file has to be named as superseded until it is
    pruned; otherwise it could be taken for its successor.
    """
    superseded = {name for old in survey.plans for name in old.superseded}
    candidates: dict[tuple[str, int, str], FoundShard] = {}
    for name in sorted(survey.found, reverse=True):  # of two valid files for one shard the smaller name counts
        if name not in superseded:
            found = survey.found[name]
            candidates[found.kind, found.index, found.key] = found
    known_stamps = {(shard.key, shard.stamps) for old in survey.plans for shard in old.shards}
    kept = {}
    for shard in plan.shards:
        candidate = candidates.get((shard.kind, shard.index, shard.key))
        if candidate is None:
            continue
        if (shard.key, shard.stamps) in known_stamps or _has_same_sources(table, shard, candidate):
            kept[shard.kind, shard.index] = candidate
        else:
            superseded.add(candidate.name)
    return Assessment(survey, replace(plan, superseded=tuple(sorted(superseded & set(survey.found)))), kept)


def thumbnail_stamps(table: VideoTable, start: int, stop: int) -> str:
    """`stamps_of` the rows from `start` to `stop` (exclusive)."""
    return stamps_of(table, range(start, stop))


def stamps_of(table: VideoTable, rows: Iterable[int]) -> str:
    """Digest of the sizes and times of some rows' thumbnails: while it holds, they need not be read to be known."""
    stamps = hashlib.sha256()
    for row in rows:
        path = table.thumbnail(row)
        try:
            facts = None if isinstance(path, Status) else path.stat()
        except OSError:
            facts = None
        stamps.update(b"none;" if facts is None else f"{facts.st_size} {facts.st_mtime_ns};".encode("ascii"))
    return stamps.hexdigest()


def _has_same_sources(table: VideoTable, shard: PlannedShard, found: FoundShard) -> bool:
    """Compare the thumbnails' bytes with what the shard was made from (its texts are part of its key)."""
    if shard.kind != IMAGE:
        return True
    return all(
        source_digest(table.thumbnail(row)) == found.source_digest[row - shard.start].tobytes()
        for row in range(shard.start, shard.stop)
    )


class EarlierVectors:
    """Vectors in files that the plan does not keep, made by the same encoder: rows that only moved are copied.

    Kept files are left out on purpose: repeats are looked for inside one shard only, so that a resumed cache equals
    an undisturbed one.
    """

    def __init__(self, assessment: Assessment, kind: str) -> None:
        survey, plan = assessment.survey, assessment.plan
        keeping = {found.name for found in assessment.kept.values()}
        self._folder = survey.folder
        self._limit = max_shard_bytes(max(old.rows_per_shard for old in [plan, *survey.plans]), plan.dims[kind])
        files = [
            found
            for found in survey.found.values()
            if found.kind == kind and found.encoder == plan.encoder and found.name not in keeping
        ]
        self._files = [found.name for found in files]
        self._digests, self._places = _index(files)
        self._numbers = _leading(self._digests)
        self._open: tuple[int, Float16[np.ndarray, "row dim"]] | None = None

    def find(self, source_digest: bytes) -> Float16[np.ndarray, " dim"] | None:
        """The vector of a source, or None."""
        wanted = np.frombuffer(source_digest, np.uint8)
        position = int(np.searchsorted(self._numbers, _leading(wanted[None])[0]))
        while position < len(self._digests) and (self._digests[position, :8] == wanted[:8]).all():
            if (self._digests[position] == wanted).all():
                return self._vector(*self._places[position].tolist())
            position += 1
        return None

    def _vector(self, number: int, row: int) -> Float16[np.ndarray, " dim"]:
        if self._open is None or self._open[0] != number:  # rows move together: the last file serves the next row too
            shard = read_shard(self._folder / self._files[number], max_bytes=self._limit)
            self._open = (number, shard.embedding)
        return np.asarray(self._open[1][row])


def _index(
    files: Sequence[FoundShard],
) -> tuple[UInt8[np.ndarray, "source 16"], Int64[np.ndarray, "source 2"]]:
    """Digests of all sources that have a vector, sorted, and the number of the file and the row of each."""
    digests, places = [np.empty((0, 16), np.uint8)], [np.empty((0, 2), np.int64)]
    for number, found in enumerate(files):
        rows = np.flatnonzero(found.status == Status.OK)
        digests.append(found.source_digest[rows])
        places.append(np.stack([np.full(len(rows), number), rows], axis=1))
    all_digests, all_places = np.concatenate(digests), np.concatenate(places)
    order = np.argsort(_leading(all_digests), kind="stable")
    return all_digests[order], all_places[order]


def _leading(digests: UInt8[np.ndarray, "source 16"]) -> Int64[np.ndarray, " source"]:
    """The first 8 bytes as one sortable number."""
    numbers: Int64[np.ndarray, " source"] = np.ascontiguousarray(digests[:, :8]).view(np.int64).reshape(-1)
    return numbers
