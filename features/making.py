"""Have the missing shards of a cache made by workers, whatever happens to them, and keep account."""

import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float16

from features import durable
from features.decode import source_digest
from features.embed import Donors, EncodedRows, Stopwatch
from features.errors import CacheError
from features.kinds import IMAGE
from features.plan import TIMING, PlannedShard, unknown_environment
from features.progress import Progress
from features.shard_worker import Made, NoDonors, ShardJob, SplitContext, publish
from features.shards import max_shard_bytes, read_shard
from features.status import Status, bad
from features.supervise import Done, Lost, Told
from features.survey import Assessment, EarlierVectors, FoundShard, Place
from features.videos import VideoTable

STRIKES_OF_A_PART, STRIKES_OF_A_ROW = 1, 2
"""Parts of a shard that killed its workers are suspected anyway; a single row gets a second chance."""

LOWEST_COSINE = {"fp32": 0.9999}
LOWEST_COSINE_OTHERWISE = 0.999
"""A vector that is made again elsewhere may differ so much, by precision."""

_IN_WORDS = {
    "read": "reading thumbnails",
    "decode": "decoding thumbnails",
    "tokenize": "tokenising",
    "encode": "the encoder",
    "write": "writing shards",
}

Event = Told[ShardJob] | Done[ShardJob, Made] | Lost[ShardJob]


@runtime_checkable
class Workers(Protocol):
    """Who does the jobs; `features.supervise.Supervisor` is one."""

    def run(self, shared: SplitContext, jobs: Iterator[ShardJob]) -> Iterator[Event]:
        """Have jobs done; `shared` is what they have in common."""

    def retry(self, lost: Lost[ShardJob], jobs: Sequence[ShardJob], strikes: int) -> None:
        """Have the parts of a lost job done."""


@dataclass
class Timing:
    """Where the time went, in seconds.

    busy_seconds
        From the first word of a worker, when encoders are loaded, to the last.
    steady
        Vectors that were made in that time.
    waited
        Where workers waited, all of them together, by part of the work.
    feed
        How long the threads that feed thumbnails worked, together.
    vectors
        How many each device made.
    fits
        The smallest batch that a worker had to come down to, because memory ran out; 0 if none did.
    """

    busy_seconds: float = 0.0
    steady: int = 0
    waited: Stopwatch = field(default_factory=Stopwatch)
    feed: Stopwatch = field(default_factory=Stopwatch)
    vectors: Counter[str] = field(default_factory=Counter)
    fits: int = 0

    @property
    def bottleneck(self) -> str:
        """Where most of the time goes, in words."""
        part = self.waited.bottleneck
        if part == "decode" and self.feed.bottleneck == "read":
            part = "read"
        return _IN_WORDS.get(part, part)

    @property
    def vectors_per_second(self) -> float:
        """The rate once all is loaded; 0 if there was too little to tell."""
        return self.steady / self.busy_seconds if self.steady > 0 and self.busy_seconds > 0 else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {
            "busy_seconds": round(self.busy_seconds, 3),
            "seconds_waited": {part: round(seconds, 3) for part, seconds in self.waited.seconds.items()},
            "seconds_of_feed_threads": {part: round(seconds, 3) for part, seconds in self.feed.seconds.items()},
            "vectors": dict(self.vectors),
            "vectors_per_second": round(self.vectors_per_second, 2),
            "batch_that_fits": self.fits or None,
            "bottleneck": self.bottleneck,
        }


class Making:
    """The work on one cache: which shards were made, from which pieces, and what that took."""

    def __init__(self, table: VideoTable, before: Assessment, progress: Progress) -> None:
        self._table, self._before, self._plan, self._progress = table, before, before.plan, progress
        self.made: dict[Place, FoundShard] = {}
        self.copied = 0
        self.timing = Timing()
        self._pieces: dict[Place, dict[int, EncodedRows]] = {}

    def check_environment(self, workers: Workers, ours: Mapping[str, str]) -> None:
        """Before adding to shards that another machine or version made, make some of their vectors again.

        Raises
        ------
        CacheError
            They come out different here.
        """
        plans = self._before.survey.plans
        unknown = unknown_environment(ours, plans[0].environment) if plans else []
        kinds = {shard.kind for shard in self._before.missing}
        if not unknown or not kinds:
            return
        samples = [sample for kind in sorted(kinds) if (sample := self._sample(kind)) is not None]
        for event in workers.run(self._context({kind: NoDonors() for kind in kinds}), iter(samples)):
            if isinstance(event, Lost):
                raise CacheError(
                    f"vectors that are stored in {self._before.survey.folder} cannot be made again here: {event.reason}"
                )
            if isinstance(event, Done) and event.result.part is not None:
                self._compare(event.job, event.result.part, unknown)

    def _sample(self, kind: str) -> ShardJob | None:
        """A batch of rows that begins with the first stored vector of a kind; None if none is stored."""
        for planned in self._plan.of_kind(kind):
            found = self._kept(planned)
            if found is not None and (found.status == Status.OK).any():
                start = planned.start + int(np.argmax(found.status == Status.OK))
                return self._job(planned).part(start, min(planned.stop, start + self._plan.batch_size))
        return None

    def _kept(self, planned: PlannedShard) -> FoundShard | None:
        return self._before.kept.get((planned.kind, planned.index))

    def _compare(self, sample: ShardJob, again: EncodedRows, unknown: Sequence[str]) -> None:
        folder, planned = self._before.survey.folder, sample.planned
        rows = slice(sample.start - planned.start, sample.stop - planned.start)
        name = self._before.kept[planned.kind, planned.index].name
        stored = read_shard(folder / name, max_bytes=max_shard_bytes(planned.rows, self._plan.dims[planned.kind]))
        both = (again.status == Status.OK) & (stored.status[rows] == Status.OK)
        lowest = _lowest_cosine(again.embedding[both], stored.embedding[rows][both])
        told = f"{int(both.sum())} stored {planned.kind} vectors were made again: lowest cosine {lowest:.6f}"
        if lowest < LOWEST_COSINE.get(str(self._plan.semantic.get("precision")), LOWEST_COSINE_OTHERWISE):
            raise CacheError(
                f"{folder} was made in another environment ({'; '.join(unknown)}), where vectors come out otherwise: "
                f"{told}. Go on in the environment it was begun in, or choose another --work"
            )
        self._progress.note(f"the cache was begun in another environment ({'; '.join(unknown)}); {told}")

    def make(self, workers: Workers, missing: Sequence[PlannedShard]) -> None:
        """Have the missing shards encoded and written."""
        if not missing:
            return
        kinds = sorted({shard.kind for shard in missing})
        label = f"{self._table.split} {' and '.join(kinds)}"
        self._progress.begin(label, sum(shard.rows for shard in missing), "vectors")
        start = 0.0
        context = self._context({kind: EarlierVectors(self._before, kind) for kind in kinds})
        for event in workers.run(context, map(self._job, missing)):
            self._take(event, workers, context)
            start = start or time.monotonic()
            self.timing.busy_seconds = time.monotonic() - start
        self._progress.end()
        durable.publish(self._before.survey.folder / TIMING, json.dumps(self.timing.to_dict(), indent=1) + "\n")

    def _take(self, event: Event, workers: Workers, context: SplitContext) -> None:
        if isinstance(event, Told):
            self.timing.steady += event.units if self.timing.busy_seconds else 0
            self._progress.advance(event.units, bottleneck=self.timing.bottleneck, device=event.device)
        elif isinstance(event, Lost):
            self._corner(event, workers, context)
        else:
            self._account(event)
            if event.result.shard is not None:
                self._finish(event.job.planned, event.result.shard)
            elif event.result.part is not None:
                self._piece(event.job, event.result.part, context)

    def _account(self, done: Done[ShardJob, Made]) -> None:
        made, timing = done.result, self.timing
        self.copied += made.copied
        timing.vectors[done.device] += done.job.rows
        timing.waited.add(made.seconds)
        timing.feed.add(made.feed_seconds)
        if made.fits < self._plan.batch_size and (not timing.fits or made.fits < timing.fits):
            timing.fits = made.fits
            self._progress.warn(f"memory ran out on {done.device}: {made.fits} rows at a time from now on")

    def _corner(self, event: Lost[ShardJob], workers: Workers, context: SplitContext) -> None:
        """Halve what kills its workers until the row is found that does it; that row is marked."""
        lost, kind = event.job, event.job.planned.kind
        if lost.rows > 1:
            for half in lost.halves():
                workers.retry(event, [half], STRIKES_OF_A_ROW if half.rows == 1 else STRIKES_OF_A_PART)
            return
        self._progress.warn(f"{self._table.path.name}: encoding the {kind} of id {lost.ids[0]} kills its worker")
        self._progress.advance(1)
        is_text = kind != IMAGE
        source = lost.text_digests[0].tobytes() if is_text else source_digest(lost.thumbnails[0])
        self._piece(lost, EncodedRows.without_vector(Status.WORKER_CRASH, source, context.dims[kind]), context)

    def _piece(self, job: ShardJob, rows: EncodedRows, context: SplitContext) -> None:
        """Keep the rows of a part; the last one makes the shard whole."""
        planned = job.planned
        pieces = self._pieces.setdefault((planned.kind, planned.index), {})
        pieces[job.start] = rows
        if sum(len(piece.status) for piece in pieces.values()) == planned.rows:
            whole = EncodedRows.joined([pieces[start] for start in sorted(pieces)])
            self._finish(planned, publish(context, planned, self._table.ids[planned.start : planned.stop], whole))

    def _finish(self, planned: PlannedShard, shard: FoundShard) -> None:
        self.made[planned.kind, planned.index] = shard
        self._progress.advance(0, bad=len(bad(shard.status)))

    def _job(self, planned: PlannedShard) -> ShardJob:
        table, start, stop = self._table, planned.start, planned.stop
        is_text = planned.kind != IMAGE
        return ShardJob(
            planned=planned,
            start=start,
            stop=stop,
            ids=table.ids[start:stop],
            thumbnails=[] if is_text else [table.thumbnail(row) for row in range(start, stop)],
            texts=[text.of_kind(planned.kind) for text in table.texts(start, stop)] if is_text else [],
            text_digests=table.text_digest[start : stop if is_text else start],
        )

    def _context(self, earlier: Mapping[str, Donors]) -> SplitContext:
        return SplitContext(self._before.survey.folder, self._plan.encoder, self._plan.dims, earlier)


def _lowest_cosine(ours: Float16[np.ndarray, "row dim"], theirs: Float16[np.ndarray, "row dim"]) -> float:
    a, b = ours.astype(np.float64), theirs.astype(np.float64)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosines = np.where(norms > 0, (a * b).sum(axis=1) / np.maximum(norms, 1e-30), (a == b).all(axis=1))
    return float(cosines.min(initial=1.0))
