"""From sources to vectors, one shard at a time: batches, repeats and rows that cannot be encoded.

A row is never dropped. Batches never straddle shards and tails are padded to the batch size, because equal batch
shapes give bit-equal vectors whatever else is in the batch, and other shapes do not.
"""

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol, TypeVar, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float16, Float32, Int64, UInt8

from features.preprocess import Thumbnail
from features.status import Status
from features.texts import Prompt

Row = TypeVar("Row")
Item = TypeVar("Item")

TOKEN_STEP = 8
"""Text batches are trimmed to a multiple of this many tokens: few distinct shapes, little padding."""


@runtime_checkable
class Encoder(Protocol):
    """A frozen encoder, loaded on its device."""

    @property
    def max_tokens(self) -> int:
        """The longest text in tokens, with its start and end."""

    @property
    def trims_text(self) -> bool:
        """Whether padding may be left away without changing a vector."""

    def encode_images(self, pixels: UInt8[np.ndarray, "batch 3 height width"]) -> Float32[np.ndarray, "batch dim"]:
        """Vectors of preprocessed crops (not normalised)."""

    def tokenize(self, texts: Sequence[str]) -> tuple[list[Int64[np.ndarray, " token"]], Bool[np.ndarray, " text"]]:
        """Token ids of each text, and which texts were cut at `max_tokens`."""

    def encode_tokens(
        self, tokens: Sequence[Int64[np.ndarray, " token"]], pad_to: int
    ) -> Float32[np.ndarray, "batch dim"]:
        """Vectors of tokenised texts (not normalised)."""


@runtime_checkable
class Donors(Protocol):
    """Vectors made earlier by the same encoder, found by the digest of what they were made from."""

    def find(self, source_digest: bytes) -> Float16[np.ndarray, " dim"] | None:
        """The vector of a source, or None."""


@dataclass(frozen=True, eq=False)
class EncodedRows:
    """What a shard will hold: one vector, status and source digest per row; `copied` were not computed."""

    embedding: Float16[np.ndarray, "row dim"]
    status: UInt8[np.ndarray, " row"]
    source_digest: UInt8[np.ndarray, "row 16"]
    notes: Mapping[str, int]
    copied: int


@dataclass
class Stopwatch:
    """Seconds spent in each part of the work."""

    seconds: dict[str, float] = field(default_factory=dict)

    def timed(self, part: str, work: Callable[[], Item]) -> Item:
        """Do the work and add its time to `part`."""
        start = time.perf_counter()
        result = work()
        self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - start
        return result

    @property
    def bottleneck(self) -> str:
        """The part that took longest so far, apart from loading the encoder once."""
        return max(self.seconds.keys() - {"load"}, key=lambda part: self.seconds[part], default="")


def read_ahead(
    rows: Iterable[Row], read: Callable[[Row], Item], workers: int, ahead: int
) -> Generator[Item, None, None]:
    """Map `read` over rows in order, on threads, at most `ahead` rows before they are asked for.

    Close it if it is not read to its end.
    """
    with ThreadPoolExecutor(workers, thread_name_prefix="feed") as pool:
        queue: deque[Future[Item]] = deque()
        try:
            for row in rows:
                queue.append(pool.submit(read, row))
                if len(queue) > ahead:
                    yield queue.popleft().result()
            while queue:
                yield queue.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


@dataclass(frozen=True, eq=False)
class ShardEncoder:
    """Encodes the rows of one shard after the other, in batches of one size."""

    encoder: Encoder
    batch_size: int
    watch: Stopwatch

    def images(self, feed: Iterator[Thumbnail], rows: int, dim: int, donors: Donors) -> EncodedRows:
        """Encode the next `rows` thumbnails of the feed; equal files are encoded once."""
        result = _Rows(rows, dim, donors)
        batch: dict[int, UInt8[np.ndarray, "3 height width"]] = {}

        def flush() -> None:
            blank = np.zeros_like(next(iter(batch.values())))
            pixels = np.stack([*batch.values(), *[blank] * (self.batch_size - len(batch))])
            vectors = self.watch.timed("encode", partial(self.encoder.encode_images, pixels))
            result.vectors[list(batch)] = vectors[: len(batch)]
            batch.clear()

        for row in range(rows):
            thumbnail = self.watch.timed("decode", partial(next, feed))
            result.digests[row] = np.frombuffer(thumbnail.source_sha256, np.uint8)
            result.status[row] = thumbnail.status
            if thumbnail.pixels is not None and not result.has_vector_for(row, thumbnail.source_sha256):
                batch[row] = thumbnail.pixels
            if len(batch) == self.batch_size:
                flush()
        if batch:
            flush()
        return result.finished({})

    def texts(
        self, prompts: Sequence[Prompt], digests: UInt8[np.ndarray, "row 16"], dim: int, donors: Donors
    ) -> EncodedRows:
        """Encode the texts of one shard; equal texts are encoded once, in batches of similar length."""
        result = _Rows(len(prompts), dim, donors)
        result.digests[:] = digests
        result.status[:] = [Status.OK if prompt.text else Status.EMPTY_TEXT for prompt in prompts]
        tokens, truncated = self.watch.timed("tokenize", lambda: self.encoder.tokenize([p.text for p in prompts]))
        new = [row for row, prompt in enumerate(prompts) if not result.has_vector_for(row, prompt.text.encode("utf-8"))]
        new.sort(key=lambda row: len(tokens[row]))
        for start in range(0, len(new), self.batch_size):
            rows = new[start : start + self.batch_size]
            batch = [tokens[row] for row in rows] + [tokens[rows[0]]] * (self.batch_size - len(rows))
            pad_to = _padded_length(max(map(len, batch)), self.encoder)
            vectors = self.watch.timed("encode", partial(self.encoder.encode_tokens, batch, pad_to))
            result.vectors[rows] = vectors[: len(rows)]
        notes = {"truncated": int(truncated.sum()), "repaired": sum(prompt.repaired for prompt in prompts)}
        return result.finished(notes)


def _padded_length(longest: int, encoder: Encoder) -> int:
    if not encoder.trims_text:
        return encoder.max_tokens
    return min(encoder.max_tokens, -(-longest // TOKEN_STEP) * TOKEN_STEP)


class _Rows:
    """The rows of one shard while they are filled in."""

    def __init__(self, rows: int, dim: int, donors: Donors) -> None:
        self.vectors = np.zeros((rows, dim), np.float32)
        self.status = np.zeros(rows, np.uint8)
        self.digests = np.zeros((rows, 16), np.uint8)
        self._donors = donors
        self._first_row: dict[bytes, int] = {}
        self._repeats: list[tuple[int, int]] = []
        self._copied = 0

    def has_vector_for(self, row: int, content: bytes) -> bool:
        """Whether the row repeats an earlier row, or was encoded in an earlier run; then it needs no encoding."""
        first = self._first_row.setdefault(content, row)
        if first != row:
            self._repeats.append((row, first))
            return True
        donated = self._donors.find(self.digests[row].tobytes())
        if donated is None:
            return False
        self.vectors[row] = donated
        self._copied += 1
        return True

    def finished(self, notes: Mapping[str, int]) -> EncodedRows:
        """Round to float16; a vector that is not finite there marks its row instead of passing as good."""
        for row, first in self._repeats:
            self.vectors[row] = self.vectors[first]
        with np.errstate(over="ignore"):
            embedding = self.vectors.astype(np.float16)
        broken = ~np.isfinite(embedding).all(axis=1)
        embedding[broken] = 0
        self.status[broken] = Status.NONFINITE
        return EncodedRows(embedding, self.status, self.digests, notes, self._copied)
