"""EmbeddingStore: the finished cache of one split, read back aligned by video id."""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float16, Int, UInt8

from features.errors import CacheError
from features.extract_command import command_for
from features.listing import is_there, listed
from features.plan import MANIFEST, NEXT_MANIFEST, CachePlan, PlannedShard, read_plan
from features.shards import FILE_NAME, Shard, ShardMemory, max_shard_bytes, read_shard
from features.status import Status

READ_THREADS = 4
"""Reading and hashing release the interpreter lock; more threads than this only queue for the disk."""


@dataclass(frozen=True, eq=False)
class Embeddings:
    """Vectors of one kind, one per row; a row whose status is not OK has no meaningful vector."""

    ids: list[str]
    vectors: Float16[np.ndarray, "row dim"]
    status: UInt8[np.ndarray, " row"]
    source_digest: UInt8[np.ndarray, "row 16"]  # of the thumbnail's bytes or of the text; zeros where there is none

    @property
    def present(self) -> Bool[np.ndarray, " row"]:
        """Which rows have a vector."""
        return np.asarray(self.status == Status.OK)

    def cut(self, rows: slice) -> "Embeddings":
        """A range of rows, not copied."""
        return Embeddings(self.ids[rows], self.vectors[rows], self.status[rows], self.source_digest[rows])

    def aligned(self, ids: Sequence[str], extract: str = "vp extract") -> "Embeddings":
        """The rows of `ids`, in that order; `extract` is the command that brings the cache up to date.

        Raises
        ------
        CacheError
            Some ids are not in the cache; the message names the first five.
        """
        if list(ids) == self.ids:
            return self
        row_of = {id_: row for row, id_ in enumerate(self.ids)}
        missing = [id_ for id_ in ids if id_ not in row_of]
        if missing:
            raise CacheError(
                f"{len(missing)} of {len(ids)} videos have no embedding (first: {', '.join(missing[:5])}): "
                f"the dataset has changed since; run `{extract}` again"
            )
        rows: Int[np.ndarray, " row"] = np.array([row_of[id_] for id_ in ids], dtype=np.int64)
        return Embeddings(list(ids), self.vectors[rows], self.status[rows], self.source_digest[rows])


@dataclass(frozen=True)
class EmbeddingStore:
    """A finished cache folder and its manifest."""

    folder: Path
    plan: CachePlan

    @classmethod
    def open(cls, folder: Path) -> "EmbeddingStore":
        """Open a finished cache.

        Raises
        ------
        CacheError
            There is none, it is not finished (the message says how far it is), it cannot be read, or its manifest is
            damaged.
        """
        plan = read_plan(folder / MANIFEST) if is_there(folder / MANIFEST) else None
        if plan is None:
            raise CacheError(_unfinished(folder))
        if not plan.is_complete:
            again = command_for(folder.parent.name, plan)
            raise CacheError(f"{folder / MANIFEST} does not name all its shards: run `{again}` again")
        return cls(folder, plan)

    @property
    def extract(self) -> str:
        """The command that brings the cache up to date."""
        return command_for(self.folder.parent.name, self.plan)

    def read(self, kind: str) -> Embeddings:
        """All vectors of one kind, every byte checked; memory is one copy of the vectors."""
        planned = self.plan.of_kind(kind)
        vectors = np.empty((self.plan.rows, self.plan.dims[kind]), np.float16)
        status = np.empty(self.plan.rows, np.uint8)
        source_digest = np.empty((self.plan.rows, 16), np.uint8)
        ids: list[list[str]] = [[] for _ in planned]

        memory = ShardMemory()

        def load(part: PlannedShard) -> None:
            shard = self.shard(part, memory)
            vectors[part.start : part.stop] = shard.embedding
            status[part.start : part.stop] = shard.status
            source_digest[part.start : part.stop] = shard.source_digest
            ids[part.index] = list(shard.ids)

        with ThreadPoolExecutor(READ_THREADS) as pool:
            list(pool.map(load, planned))
        return Embeddings([id_ for part in ids for id_ in part], vectors, status, source_digest)

    def ranges(self, kind: str, rows: int) -> Iterator[Embeddings]:
        """All vectors of one kind, `rows` at a time (the last range may be shorter), every byte checked.

        Shards are read ahead of what was asked for, so that reading and working on what was read overlap; memory is
        that of about two ranges, however many rows there are.
        """
        waiting: list[Embeddings] = []
        for shard in self._read_ahead(kind, rows):
            waiting.append(Embeddings(list(shard.ids), shard.embedding, shard.status, shard.source_digest))
            while sum(len(part.ids) for part in waiting) >= rows:
                there = _joined(waiting)
                yield there.cut(slice(0, rows))
                waiting = [there.cut(slice(rows, None))] if len(there.ids) > rows else []
        if waiting:
            yield _joined(waiting)

    def _read_ahead(self, kind: str, rows: int) -> Iterator[Shard]:
        """The shards of one kind in order; those of the next `rows` rows are being read meanwhile."""
        reading: deque[Future[Shard]] = deque()
        most = rows // self.plan.rows_per_shard + READ_THREADS
        with ThreadPoolExecutor(READ_THREADS) as pool:
            for planned in self.plan.of_kind(kind):
                reading.append(pool.submit(self.shard, planned))
                if len(reading) > most:
                    yield reading.popleft().result()
            while reading:
                yield reading.popleft().result()

    def shard(self, planned: PlannedShard, memory: ShardMemory | None = None) -> Shard:
        """One shard, checked against the manifest; with `memory`, arrays are views into that."""
        dim = self.plan.dims[planned.kind]
        limit = max_shard_bytes(planned.rows, dim)
        shard = read_shard(self.folder / planned.file, max_bytes=limit, memory=memory)
        found = (shard.kind, shard.index, shard.key, *shard.embedding.shape)
        expected = (planned.kind, planned.index, planned.key, planned.rows, dim)
        if found != expected:
            raise CacheError(f"shard {self.folder / planned.file} is {found}, the manifest says {expected}")
        return shard


def _joined(parts: Sequence[Embeddings]) -> Embeddings:
    if len(parts) == 1:
        return parts[0]
    return Embeddings(
        [id_ for part in parts for id_ in part.ids],
        np.concatenate([part.vectors for part in parts]),
        np.concatenate([part.status for part in parts]),
        np.concatenate([part.source_digest for part in parts]),
    )


def _unfinished(folder: Path) -> str:
    found = listed(folder)
    pending = read_plan(folder / NEXT_MANIFEST)
    if pending is None:
        return f"no embeddings in {folder}: run `{command_for(folder.parent.name)}`"
    keys = {(shard.kind, shard.index) for shard in pending.shards}
    there = {(match["kind"], int(match["index"])) for path in found if (match := FILE_NAME.fullmatch(path.name))}
    so_far, again = f"{len(keys & there)} of {len(keys)} shards", command_for(folder.parent.name, pending)
    return f"the cache in {folder} is incomplete ({so_far}): run `{again}` again"
