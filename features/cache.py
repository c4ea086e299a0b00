"""Make the cache of one split: plan the shards, keep what is there and still right, compute the rest, publish.

Done is what the folder holds and verifies; nothing else records progress, so nothing can disagree with the data.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from features import durable
from features.errors import CacheError
from features.kinds import IMAGE
from features.lock import WHOLE, Part, part_lock
from features.making import Making, Timing, Workers
from features.plan import (
    MANIFEST,
    NEXT_MANIFEST,
    QUARANTINE,
    CachePlan,
    PlannedShard,
    differences,
    digest,
    merged_environment,
    shard_key,
    shard_ranges,
    write_plan,
)
from features.progress import Progress
from features.shards import index_of
from features.status import Status, bad
from features.survey import Assessment, assess, read_survey, thumbnail_stamps
from features.videos import VideoTable


@dataclass(frozen=True)
class Recipe:
    """How rows become vectors, as far as the plan of a cache depends on it."""

    semantic: Mapping[str, Any]
    environment: Mapping[str, str]
    dims: Mapping[str, int]
    batch_size: int
    rows_per_shard: int


@dataclass(frozen=True)
class BadRow:
    """A row with a source that should be usable and is not."""

    row: int
    kind: str
    status: str


@dataclass(frozen=True)
class CacheSummary:
    """What `make_cache` found and did.

    `missing` counts the shards that other parts have still to make. `statuses` counts rows by kind and status, `notes`
    what happened to texts.
    """

    rows: int
    shards_written: int
    shards_kept: int
    missing: int
    vectors_encoded: int
    vectors_copied: int
    statuses: Mapping[str, Mapping[str, int]]
    notes: Mapping[str, int]
    bad_rows: Sequence[BadRow]
    timing: Timing


def make_cache(
    folder: Path,
    table: VideoTable,
    recipe: Recipe,
    workers: Workers,
    progress: Progress,
    *,
    part: Part = WHOLE,
    wait_seconds: float = 0.0,
) -> CacheSummary:
    """Bring the cache in `folder` up to date with the table; what is there already is kept.

    With a `part`, only its shards are made; whoever makes the last shard of all publishes the manifest.
    `wait_seconds` is how long to wait for another process that is writing the same shards.

    Raises
    ------
    CacheError
        The folder holds vectors of another encoder, preprocessing or precision, or vectors that cannot be made again
        here.
    LockedError, StorageError, WorkersFailedError
        Another process is writing there; the disk cannot take the shards; workers die whatever they do.
    """
    before = _assess(folder, table, recipe)
    if before.is_finished:  # nothing to write: works on a read-only disk, and beside a writer
        return _summary(before, Making(table, before, progress))
    with part_lock(folder, part, wait_seconds=wait_seconds):
        durable.remove_leftovers(folder)
        before = _assess(folder, table, recipe)
        _quarantine(before, part, progress)
        making = Making(table, before, progress)
        making.check_environment(workers, recipe.environment)
        _write_pending(before)
        making.make(workers, [shard for shard in before.missing if part.holds(shard.index)])
        durable.remove_leftovers(folder)  # again: a process that was killed may have been long in dying
        after = before.with_more(making.made) if part == WHOLE else _assess(folder, table, recipe)
        if not after.missing:
            _publish(after)
        return _summary(after, making)


def make_plan(table: VideoTable, recipe: Recipe) -> CachePlan:
    """The plan of a cache, from the dataset and the encoder alone."""
    encoder = digest(recipe.semantic)
    shards = []
    for index, start, stop in shard_ranges(len(table), recipe.rows_per_shard):
        for kind in recipe.dims:
            texts = table.text_digest[start:stop].tobytes() if kind != IMAGE else b""
            key = shard_key(encoder, kind, recipe.batch_size, table.ids[start:stop], texts)
            stamps = thumbnail_stamps(table, start, stop) if kind == IMAGE else ""
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
    environment: Mapping[str, str] = recipe.environment
    for plan in survey.plans:
        environment = merged_environment(environment, plan.environment)
    return assess(survey, replace(make_plan(table, recipe), environment=environment), table)


def _quarantine(before: Assessment, part: Part, progress: Progress) -> None:
    """Move damaged shards of our part out of the way; those of others are for them to move."""
    folder = before.survey.folder
    for name in before.survey.damaged:
        if not part.holds(index_of(name)):
            continue
        progress.warn(f"{folder / name} is damaged: moved to {QUARANTINE}/, its rows are encoded again")
        durable.move(folder / name, folder / QUARANTINE / name)


def _write_pending(before: Assessment) -> None:
    """Pin the plan, unless it is pinned already."""
    pending = before.survey.pending
    if pending is None or replace(pending, created_utc="") != replace(before.plan, created_utc=""):
        write_plan(before.survey.folder / NEXT_MANIFEST, before.plan)


def _publish(after: Assessment) -> None:
    files = {place: shard.name for place, shard in after.kept.items()}
    write_plan(after.survey.folder / MANIFEST, after.plan.with_files(files))
    durable.remove(after.survey.folder / NEXT_MANIFEST)


def _summary(after: Assessment, making: Making) -> CacheSummary:
    """Count what is there now."""
    statuses: dict[str, Counter[str]] = {kind: Counter() for kind in after.plan.dims}
    notes: Counter[str] = Counter()
    bad_rows: list[BadRow] = []
    for planned in after.plan.shards:
        found = after.kept.get((planned.kind, planned.index))
        if found is None:
            continue
        labels = [Status(value).label for value in found.status.tolist()]
        statuses[planned.kind].update(labels)
        notes.update(found.notes)
        bad_rows += [BadRow(planned.start + row, planned.kind, labels[row]) for row in bad(found.status)]
    return CacheSummary(
        rows=after.plan.rows,
        shards_written=len(making.made),
        shards_kept=len(after.kept) - len(making.made),
        missing=len(after.missing),
        vectors_encoded=sum(len(shard.status) for shard in making.made.values()) - making.copied,
        vectors_copied=making.copied,
        statuses=statuses,
        notes=notes,
        bad_rows=bad_rows,
        timing=making.timing,
    )
