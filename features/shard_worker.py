"""What a worker process of an extraction does: it encodes the rows of a shard and publishes it."""

import os
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from features.decode import read_source
from features.embed import Device, Donors, EncodedRows, Encoder, ShardEncoder, Stopwatch, Tokenized, UnroundedRows
from features.feed import Source, ThumbnailFeed
from features.kinds import IMAGE, TEXT, tower_of
from features.plan import PlannedShard
from features.preprocess import Thumbnail
from features.shards import Shard, write_shard
from features.survey import FoundShard
from features.texts import Prompt
from features.videos import VideoText


@dataclass(frozen=True, kw_only=True)
class ShardSetup:
    """How each process is set up; picklable, and called there with the device.

    load_encoder
        (tower, device) -> the encoder with that tower; called once for each tower that there are jobs for.
    cut
        From the bytes of a thumbnail's file to what the encoder takes.
    read_prompt
        From title and description to the text that the encoder reads.
    batch_size
        Rows in a forward pass.
    in_flight
        Forward passes at a time.
    feed_threads
        Threads that read and decode thumbnails, in each process.
    compute_threads
        Threads of one matrix product on a CPU, in each process; 0 leaves the library's own choice.
    """

    load_encoder: Callable[[str, str], Encoder]
    cut: Callable[[bytes | Any], Thumbnail]
    read_prompt: Callable[[str, str], Prompt]
    batch_size: int
    in_flight: int = 1
    feed_threads: int = 1
    compute_threads: int = 0

    def __call__(self, device: str) -> "ShardWorker":
        """Set up the process that this is called in."""
        return ShardWorker(self, device)


@dataclass(frozen=True, eq=False)
class SplitContext:
    """What all shards of one split have in common.

    `encoder` identifies what makes the vectors; `earlier` finds vectors that were made before, for each kind that there
    are jobs of.
    """

    folder: Path
    encoder: str
    dims: Mapping[str, int]
    earlier: Mapping[str, Donors]


@dataclass(frozen=True, eq=False)
class ShardJob:
    """Rows `start` to `stop` (exclusive) of a split, inside one planned shard.

    A whole shard is published by the worker; the rows of a part come back to whoever ordered them.
    """

    planned: PlannedShard
    start: int
    stop: int
    ids: Sequence[str]
    thumbnails: Sequence[Source] = ()
    texts: Sequence[VideoText] = ()
    text_digests: UInt8[np.ndarray, "text 16"] = field(default_factory=lambda: np.zeros((0, 16), np.uint8))
    is_whole: bool = True

    @property
    def rows(self) -> int:
        """Number of rows."""
        return self.stop - self.start

    def halves(self) -> "list[ShardJob]":
        """The same rows as two jobs."""
        middle = self.start + self.rows // 2
        return [self.part(self.start, middle), self.part(middle, self.stop)]

    def part(self, start: int, stop: int) -> "ShardJob":
        """Only these rows."""
        kept = slice(start - self.start, stop - self.start)
        fields = {name: getattr(self, name)[kept] for name in ("ids", "thumbnails", "texts", "text_digests")}
        return replace(self, start=start, stop=stop, is_whole=False, **fields)


@dataclass(frozen=True, eq=False)
class Made:
    """The result of a job: a published shard, or the rows of a part; and what it cost.

    `seconds` is where the worker waited, `feed_seconds` how long its feed's threads worked together; `fits` is how many
    rows at a time fit into memory.
    """

    shard: FoundShard | None
    part: EncodedRows | None
    copied: int
    seconds: Mapping[str, float]
    feed_seconds: Mapping[str, float]
    fits: int


class NoDonors:
    """No vectors were made earlier."""

    def find(self, source_digest: bytes) -> None:
        """None."""


class ShardWorker:
    """Encodes shards on one device; satisfies `features.worker.Worker`."""

    def __init__(self, setup: ShardSetup, device: str) -> None:
        self._setup, self._device_name = setup, device
        os.environ.setdefault("RAYON_NUM_THREADS", str(setup.feed_threads))  # of tokenizers, which takes every core
        if setup.compute_threads:
            import torch  # noqa: PLC0415 - whoever only pickles a setup does not need it

            torch.set_num_threads(setup.compute_threads)
        self._device = Device(setup.batch_size, setup.in_flight)
        self._feed = ThumbnailFeed(read_source, setup.cut, setup.feed_threads, ahead=2 * setup.batch_size)
        self._helper = ThreadPoolExecutor(1, thread_name_prefix="tokenize")
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="write")
        self._encoders: dict[str, Encoder] = {}
        self._loading = Stopwatch()  # a worker's first job tells how long its encoders took
        self._tokenized: deque[Future[Tokenized]] = deque()
        self._context: SplitContext

    def share(self, shared: SplitContext) -> None:
        """Take what all shards of the next split have in common, and load the encoders of their kinds."""
        self._context = shared
        for kind in shared.earlier:
            self._loading.timed("load", partial(self._encoder, kind))

    def announce(self, job: ShardJob) -> None:
        """Begin to read the thumbnails, or to tokenise the texts, of a job that is to come."""
        self._feed.add(job.thumbnails)
        if job.planned.kind != IMAGE:
            self._tokenized.append(self._helper.submit(self._tokenize, job))

    def work(self, job: ShardJob, tell: Callable[[int], None]) -> "Future[Made]":
        """Encode the rows of a job; the future ends when a whole shard is on the disk."""
        context, kind = self._context, job.planned.kind
        watch, self._loading = self._loading, Stopwatch()
        shard = ShardEncoder(
            encoder=self._encoder(kind),
            device=self._device,
            dim=context.dims[kind],
            donors=context.earlier[kind],
            watch=watch,
            tell=tell,
        )
        if kind == IMAGE:
            unrounded = shard.images(self._feed.next, job.rows)
        else:
            unrounded = shard.texts(watch.timed("tokenize", self._tokenized.popleft().result), job.text_digests)
        return self._writer.submit(self._finish, job, context, unrounded, watch)

    def close(self) -> None:
        """End all threads."""
        self._feed.close()
        self._device.close()
        self._helper.shutdown(wait=False, cancel_futures=True)
        self._writer.shutdown()

    def _tokenize(self, job: ShardJob) -> Tokenized:
        prompts = [self._setup.read_prompt(text.title, text.description) for text in job.texts]
        return Tokenized.by(self._encoder(TEXT), prompts)

    def _encoder(self, kind: str) -> Encoder:
        tower = tower_of(kind)
        if tower not in self._encoders:
            self._encoders[tower] = self._setup.load_encoder(tower, self._device_name)
        return self._encoders[tower]

    def _finish(self, job: ShardJob, context: SplitContext, unrounded: UnroundedRows, watch: Stopwatch) -> Made:
        rows, shard = unrounded.finished(), None
        if job.is_whole:
            shard = watch.timed("write", lambda: publish(context, job.planned, job.ids, rows))
        part = None if job.is_whole else rows
        return Made(shard, part, rows.copied, watch.seconds, self._feed.take_seconds(), self._device.fits)


def publish(context: SplitContext, planned: PlannedShard, ids: Sequence[str], rows: EncodedRows) -> FoundShard:
    """Write one shard."""
    shard = Shard(
        kind=planned.kind,
        index=planned.index,
        encoder=context.encoder,
        key=planned.key,
        ids=ids,
        embedding=rows.embedding,
        status=rows.status,
        source_digest=rows.source_digest,
        notes=rows.notes,
    )
    return FoundShard.of(write_shard(context.folder, shard), shard)
