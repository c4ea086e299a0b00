"""How far a cache is from the dataset as it is now: rows that came, went or moved, texts and thumbnails that changed.

Rows are compared by id, never by position. The key of a shard holds its ids and texts, so as long as the keys are those
that the dataset gives, nothing of the shards needs to be looked at.
"""

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from features.csv_rows import shown
from features.decode import NO_SOURCE, digest_of, read_source
from features.kinds import IMAGE
from features.plan import CachePlan, PlannedShard, shard_key, shard_ranges
from features.progress import Progress
from features.shards import ShardFacts
from features.status import Status
from features.store import READ_THREADS
from features.survey import Place, stamps_of
from features.videos import VideoTable

EXAMPLES = 5

Rows = Int64[np.ndarray, " row"]


@dataclass
class Some:
    """How many rows, and the ids of the first of them."""

    count: int = 0
    first: list[str] = field(default_factory=list)

    def add(self, ids: Iterable[str]) -> None:
        """Count more rows."""
        for id_ in ids:
            self.count += 1
            if len(self.first) < EXAMPLES:
                self.first.append(id_)

    @property
    def rows(self) -> str:
        """How many, in words."""
        return "1 row" if self.count == 1 else f"{self.count} rows"

    @property
    def told(self) -> str:
        """The first ids, and whether there are more."""
        return ", ".join(map(shown, self.first)) + (", ..." if self.count > len(self.first) else "")


@dataclass
class Staleness:
    """What differs, in rows.

    added, gone, moved
        Rows of the dataset that the cache lacks; of the cache that the dataset lacks; of both, in another place.
    texts, thumbnails
        Rows whose text, or the bytes of whose thumbnail, are not what the vectors were made from.
    unreadable
        Rows whose thumbnail is there but cannot be read now, so whether it has changed cannot be told.
    touched
        Rows of shards in which some thumbnail has another size or time than when the vectors were made: at least one
        file was written since, though maybe with the same content. Counted unless contents are compared.
    unknown
        Rows that cannot be compared, because their shard cannot be read.
    """

    added: Some = field(default_factory=Some)
    gone: Some = field(default_factory=Some)
    moved: Some = field(default_factory=Some)
    texts: Some = field(default_factory=Some)
    thumbnails: Some = field(default_factory=Some)
    unreadable: Some = field(default_factory=Some)
    touched: Some = field(default_factory=Some)
    unknown: int = 0

    @property
    def counts(self) -> dict[str, int]:
        """All of it as numbers."""
        parts = {name: part.count for name, part in vars(self).items() if isinstance(part, Some)}
        return parts | {"unknown": self.unknown}

    @property
    def told(self) -> list[str]:
        """Each difference in words; thumbnails that were only touched are none yet."""
        words = {
            "added": "of the dataset not in the cache",
            "gone": "no longer in the dataset",
            "moved": "elsewhere in the dataset",
            "texts": "with another text now",
            "thumbnails": "with another thumbnail now",
        }
        parts: dict[str, Some] = {name: getattr(self, name) for name in words}
        return [f"{part.rows} {words[name]} ({part.told})" for name, part in parts.items() if part.count]

    @property
    def unreadable_told(self) -> str:
        """Thumbnails that cannot be read, in words; empty if all can."""
        if not self.unreadable.count:
            return ""
        return f"{self.unreadable.rows} whose thumbnail cannot be read any more ({self.unreadable.told})"

    @property
    def is_fresh(self) -> bool:
        """Whether nothing differs."""
        return not any(self.counts.values())

    @property
    def is_only_unreadable(self) -> bool:
        """Whether nothing is known to differ, but some thumbnails cannot be read."""
        return self.unreadable.count > 0 and sum(self.counts.values()) == self.unreadable.count

    @property
    def is_only_touched(self) -> bool:
        """Whether only the times of some thumbnails speak against the cache."""
        return self.touched.count > 0 and sum(self.counts.values()) == self.touched.count


def compare(
    plan: CachePlan,
    shards: Mapping[Place, ShardFacts],
    table: VideoTable,
    progress: Progress,
    *,
    contents: bool = False,
) -> Staleness:
    """Compare a cache with its dataset; with `contents` every thumbnail is read and hashed."""
    return _Comparison(plan, shards, table, progress).run(contents=contents)


class _Comparison:
    def __init__(
        self, plan: CachePlan, shards: Mapping[Place, ShardFacts], table: VideoTable, progress: Progress
    ) -> None:
        self._plan, self._shards, self._table, self._progress = plan, shards, table, progress
        self._planned = {(shard.kind, shard.index): shard for shard in plan.shards}
        self._found = Staleness()
        self._texts_known: set[int] = set()
        ranges = shard_ranges(len(table), plan.rows_per_shard)
        keys = {(kind, index): self._key(kind, start, stop) for index, start, stop in ranges for kind in plan.dims}
        self._same = {place for place, shard in self._planned.items() if keys.get(place) == shard.key}
        all_same = len(self._same) == len(self._planned)
        self._row_of = {} if all_same else {id_: row for row, id_ in enumerate(table.ids)}
        self._rows = {index: self._rows_of(index) for _, index in self._planned}

    def run(self, *, contents: bool) -> Staleness:
        self._compare_rows()
        for shard in self._plan.shards:
            if shard.kind != IMAGE:
                self._compare_texts(shard)
        images = self._plan.of_kind(IMAGE)
        if not contents:
            for shard in images:
                self._compare_stamps(shard)
            return self._found
        self._progress.begin(f"{self._plan.split} thumbnails", sum(shard.rows for shard in images), "files")
        with ThreadPoolExecutor(READ_THREADS) as pool:
            for shard in images:
                self._compare_contents(shard, pool)
                self._progress.advance(shard.rows)
        self._progress.end()
        return self._found

    def _key(self, kind: str, start: int, stop: int) -> str:
        """The key that a shard of these rows of the dataset would have."""
        texts = self._table.text_digest[start:stop].tobytes() if kind != IMAGE else b""
        return shard_key(self._plan.encoder, kind, self._plan.batch_size, self._table.ids[start:stop], texts)

    def _rows_of(self, index: int) -> Rows | None:
        """Where the rows of a shard stand in the table (-1: not any more); None if no shard can tell."""
        places = [(kind, index) for kind in self._plan.dims]
        for place in places:
            if place in self._same:
                return np.arange(self._planned[place].start, self._planned[place].stop)
        for place in places:
            if place in self._shards:
                return np.array([self._row_of.get(id_, -1) for id_ in self._shards[place].ids], dtype=np.int64)
        return None

    def _compare_rows(self) -> None:
        cached = np.zeros(len(self._table), bool)
        for index, rows in self._rows.items():
            start = index * self._plan.rows_per_shard
            if rows is None:
                self._found.unknown += min(self._plan.rows_per_shard, self._plan.rows - start)
                continue
            there = rows >= 0
            cached[rows[there]] = True
            if not there.all():
                ids = next(self._shards[kind, index].ids for kind in self._plan.dims if (kind, index) in self._shards)
                self._found.gone.add(ids[row] for row in np.flatnonzero(~there))
            self._found.moved.add(self._ids(rows[there & (rows != np.arange(start, start + len(rows)))]))
        if not self._found.unknown:  # what an unreadable shard holds is no news
            self._found.added.add(self._ids(np.flatnonzero(~cached)))

    def _compare_texts(self, shard: PlannedShard) -> None:
        if shard.index in self._texts_known or (shard.kind, shard.index) in self._same:
            return
        self._texts_known.add(shard.index)  # titles and descriptions have the same digests
        found, rows = self._pair(shard)
        if found is None:
            self._found.unknown += shard.rows if self._rows[shard.index] is not None else 0  # else counted already
            return
        there = np.flatnonzero(rows >= 0)
        changed = (self._table.text_digest[rows[there]] != found.source_digest[there]).any(axis=1)
        self._found.texts.add(self._ids(rows[there[changed]]))

    def _compare_stamps(self, shard: PlannedShard) -> None:
        rows = self._rows[shard.index]
        if rows is not None and ((rows < 0).any() or stamps_of(self._table, rows.tolist()) != shard.stamps):
            self._found.touched.add(self._ids(rows[rows >= 0]))

    def _compare_contents(self, shard: PlannedShard, pool: ThreadPoolExecutor) -> None:
        found, rows = self._pair(shard)
        if found is None:
            return
        there = np.flatnonzero(rows >= 0)
        now = pool.map(_digest_now, map(self._table.thumbnail, rows[there].tolist()))
        was = map(bytes, found.source_digest[there])
        changed, unreadable = [], []
        for digest, earlier in zip(now, was, strict=True):
            unreadable.append(digest is None and earlier != NO_SOURCE)
            changed.append(digest is not None and digest != earlier)
        self._found.thumbnails.add(self._ids(rows[there[changed]]))
        self._found.unreadable.add(self._ids(rows[there[unreadable]]))

    def _pair(self, shard: PlannedShard) -> tuple[ShardFacts, Rows] | tuple[None, Rows]:
        """A shard as it was found and its rows in the table; None for one that says nothing of these rows."""
        found, rows = self._shards.get((shard.kind, shard.index)), self._rows[shard.index]
        if rows is None or found is None or len(found.status) != len(rows):
            return None, np.empty(0, np.int64)
        return found, rows

    def _ids(self, rows: Rows) -> list[str]:
        return [self._table.ids[row] for row in rows.tolist()]


def _digest_now(thumbnail: Path | Status) -> bytes | None:
    """What a vector of the file would be made from; None where there is a file that cannot be read."""
    data = read_source(thumbnail)
    is_something_else = isinstance(thumbnail, Path) and not thumbnail.is_file()  # such as a folder or a pipe
    return None if data == Status.UNREADABLE and not is_something_else else digest_of(data)
