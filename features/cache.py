"""Make the cache of one split: plan the shards, keep what is there and still right, compute the rest, publish.

Done is what the folder holds and verifies; nothing else records progress, so nothing can disagree with the data.
"""

from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from features import durable
from features.embed import EncodedRows, Encoder, ShardEncoder, Stopwatch, read_ahead
from features.errors import CacheError
from features.lock import writer_lock
from features.plan import (
    MANIFEST,
    NEXT_MANIFEST,
    CachePlan,
    PlannedShard,
    differences,
    digest,
    shard_key,
    shard_ranges,
    write_plan,
)
from features.preprocess import Thumbnail
from features.progress import Progress
from features.shards import Shard, write_shard
from features.status import ABSENT_BUT_NOT_BAD, Status
from features.survey import Assessment, EarlierVectors, FoundShard, Place, assess, read_survey, thumbnail_stamps
from features.texts import Prompt
from features.videos import VideoTable

LOCK = ".part-1-of-1.lock"
QUARANTINE = "quarantine"


@dataclass(frozen=True)
class Recipe:
    """How rows become vectors: everything `make_cache` needs to know of the encoder.

    `load_encoder` takes the kinds that are needed and is called only if a shard is missing; `read_thumbnail` and
    `read_prompt` turn one row's sources into what the encoder takes.
    """

    semantic: Mapping[str, Any]
    environment: Mapping[str, str]
    dims: Mapping[str, int]
    batch_size: int
    rows_per_shard: int
    num_workers: int
    load_encoder: Callable[[Sequence[str]], Encoder]
    read_thumbnail: Callable[[Path | Status], Thumbnail]
    read_prompt: Callable[[str, str], Prompt]


@dataclass(frozen=True)
class BadRow:
    """A row with a source that should be usable and is not."""

    row: int
    kind: str
    status: str


@dataclass(frozen=True)
class CacheSummary:
    """What `make_cache` found and did.

    `statuses` counts rows by kind and status, `notes` what happened to texts, `seconds` is by part of the work.
    """

    rows: int
    shards_written: int
    shards_kept: int
    vectors_encoded: int
    vectors_copied: int
    statuses: Mapping[str, Mapping[str, int]]
    notes: Mapping[str, int]
    bad_rows: Sequence[BadRow]
    seconds: Mapping[str, float]


def make_cache(
    folder: Path, table: VideoTable, recipe: Recipe, progress: Progress, *, wait_seconds: float = 0.0
) -> CacheSummary:
    """Bring the cache in `folder` up to date with the table; what is there already is kept.

    `wait_seconds` is how long to wait for another process that is writing there.

    Raises
    ------
    CacheError
        The folder holds vectors of another encoder, preprocessing or precision.
    LockedError, StorageError
        Another process is writing there; the disk cannot take the shards.
    """
    before = _assess(folder, table, recipe)
    if before.is_finished:  # nothing to write: works on a read-only disk, and beside a writer
        return _summary(before, {}, 0, Stopwatch())
    with writer_lock(folder / LOCK, wait_seconds=wait_seconds):
        durable.remove_leftovers(folder)
        before = _assess(folder, table, recipe)
        for name in before.survey.damaged:
            progress.warn(f"{folder / name} is damaged: moved to {QUARANTINE}/, its rows are encoded again")
            durable.move(folder / name, folder / QUARANTINE / name)
        _write_pending(before)
        watch = Stopwatch()
        made, copied = _make_missing(table, recipe, before, progress, watch)
        files = {place: shard.name for place, shard in {**before.kept, **made}.items()}
        write_plan(folder / MANIFEST, before.plan.with_files(files))
        durable.remove(folder / NEXT_MANIFEST)
    return _summary(before, made, copied, watch)


def make_plan(table: VideoTable, recipe: Recipe) -> CachePlan:
    """The plan of a cache, from the dataset and the encoder alone."""
    encoder = digest(recipe.semantic)
    shards = []
    for index, start, stop in shard_ranges(len(table), recipe.rows_per_shard):
        for kind in recipe.dims:
            texts = table.text_digest[start:stop].tobytes() if kind == "text" else b""
            key = shard_key(encoder, kind, recipe.batch_size, table.ids[start:stop], texts)
            stamps = thumbnail_stamps(table, start, stop) if kind == "image" else ""
            shards.append(PlannedShard(kind, index, start, stop, key, stamps))
    return CachePlan(
        semantic=recipe.semantic,
        environment=recipe.environment,
        split=table.split,
        rows=len(table),
        rows_per_shard=recipe.rows_per_shard,
        batch_size=recipe.batch_size,
        dims=recipe.dims,
        shards=tuple(shards),
        created_utc=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _assess(folder: Path, table: VideoTable, recipe: Recipe) -> Assessment:
    survey = read_survey(folder, recipe.dims, recipe.rows_per_shard)
    for plan in survey.plans:
        differing = differences(recipe.semantic, plan.semantic)
        if differing:
            raise CacheError(
                f"{folder} holds vectors that were made otherwise, and vectors of two kinds are never mixed. "
                f"Here is what was asked for, there is what the cache holds: {'; '.join(differing)}. "
                "Ask for the same as before, or choose another --work"
            )
    return assess(survey, make_plan(table, recipe), table)


def _write_pending(before: Assessment) -> None:
    """Pin the plan, unless it is pinned already."""
    pending = before.survey.pending
    if pending is None or replace(pending, created_utc="") != replace(before.plan, created_utc=""):
        write_plan(before.survey.folder / NEXT_MANIFEST, before.plan)


def _make_missing(
    table: VideoTable, recipe: Recipe, before: Assessment, progress: Progress, watch: Stopwatch
) -> tuple[dict[Place, FoundShard], int]:
    """Encode and write the missing shards; returns them, and how many of their vectors were only copied."""
    made: dict[Place, FoundShard] = {}
    copied = 0
    if not before.missing:
        return made, copied
    kinds = sorted({shard.kind for shard in before.missing})
    encoder = watch.timed("load", lambda: recipe.load_encoder(kinds))
    maker = _ShardMaker(table, recipe, before, ShardEncoder(encoder, recipe.batch_size, watch))
    progress.begin(f"{table.split} {' and '.join(kinds)}", sum(shard.rows for shard in before.missing), "vectors")
    with closing(maker):
        for planned in before.missing:
            rows = maker.encode(planned)
            made[planned.kind, planned.index] = watch.timed("write", partial(maker.write, planned, rows))
            copied += rows.copied
            progress.advance(planned.rows, bad=len(_bad(rows.status)), bottleneck=watch.bottleneck)
    progress.end()
    return made, copied


class _ShardMaker:
    """Encodes and writes the missing shards of one plan, in their order."""

    def __init__(self, table: VideoTable, recipe: Recipe, before: Assessment, encoder: ShardEncoder) -> None:
        self._table, self._recipe, self._plan, self._encoder = table, recipe, before.plan, encoder
        self._folder = before.survey.folder
        self._earlier = {kind: EarlierVectors(before, kind) for kind in before.plan.dims}
        self._feed = self._thumbnails([shard for shard in before.missing if shard.kind == "image"])

    def close(self) -> None:
        """End the threads that read thumbnails.

        Left to the garbage collector, they would be waited for wherever it happens to run, even inside the start of
        another thread, which then waits for itself.
        """
        self._feed.close()

    def encode(self, planned: PlannedShard) -> EncodedRows:
        """The vectors of one shard."""
        dim, earlier = self._plan.dims[planned.kind], self._earlier[planned.kind]
        if planned.kind == "image":
            return self._encoder.images(self._feed, planned.rows, dim, earlier)
        prompts = self._encoder.watch.timed("read", partial(self._prompts, planned))
        return self._encoder.texts(prompts, self._table.text_digest[planned.start : planned.stop], dim, earlier)

    def write(self, planned: PlannedShard, rows: EncodedRows) -> FoundShard:
        """Publish one shard."""
        shard = Shard(
            kind=planned.kind,
            index=planned.index,
            encoder=self._plan.encoder,
            key=planned.key,
            ids=self._table.ids[planned.start : planned.stop],
            embedding=rows.embedding,
            status=rows.status,
            source_digest=rows.source_digest,
            notes=rows.notes,
        )
        return FoundShard.of(write_shard(self._folder, shard), shard)

    def _prompts(self, planned: PlannedShard) -> list[Prompt]:
        texts = self._table.texts(planned.start, planned.stop)
        return [self._recipe.read_prompt(text.title, text.description) for text in texts]

    def _thumbnails(self, shards: Sequence[PlannedShard]) -> Generator[Thumbnail, None, None]:
        rows = (row for shard in shards for row in range(shard.start, shard.stop))
        ahead = 2 * self._plan.batch_size
        return read_ahead(
            rows, lambda row: self._recipe.read_thumbnail(self._table.thumbnail(row)), self._recipe.num_workers, ahead
        )


def _summary(before: Assessment, made: Mapping[Place, FoundShard], copied: int, watch: Stopwatch) -> CacheSummary:
    statuses: dict[str, Counter[str]] = {kind: Counter() for kind in before.plan.dims}
    notes: Counter[str] = Counter()
    bad_rows: list[BadRow] = []
    shards = {**before.kept, **made}
    for planned in before.plan.shards:
        found = shards[planned.kind, planned.index]
        labels = [Status(value).label for value in found.status.tolist()]
        statuses[planned.kind].update(labels)
        notes.update(found.notes)
        bad_rows += [BadRow(planned.start + row, planned.kind, labels[row]) for row in _bad(found.status)]
    return CacheSummary(
        rows=before.plan.rows,
        shards_written=len(made),
        shards_kept=len(before.kept),
        vectors_encoded=sum(len(shard.status) for shard in made.values()) - copied,
        vectors_copied=copied,
        statuses=statuses,
        notes=notes,
        bad_rows=bad_rows,
        seconds=watch.seconds,
    )


def _bad(status: UInt8[np.ndarray, " row"]) -> list[int]:
    harmless = [Status.OK, *ABSENT_BUT_NOT_BAD]
    return np.flatnonzero(~np.isin(status, harmless)).tolist()
