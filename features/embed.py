"""From sources to vectors, one shard at a time: batches, repeats and rows that cannot be encoded.

A row is never dropped. Batches never straddle shards and tails are padded to the batch size, because equal batch
shapes give bit-equal vectors whatever else is in the batch, and other shapes do not. Packed texts (`TextLayout`)
share one shape, and one that is longer is alone; rectangles of texts are as wide as the longest among them.
"""

import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float16, Float32, Int64, UInt8

from features.errors import WorkersFailedError
from features.preprocess import Thumbnail
from features.status import Status
from features.text_layout import TextLayout
from features.texts import Prompt

Item = TypeVar("Item")


@runtime_checkable
class Encoder(Protocol):
    """A frozen encoder, loaded on its device."""

    @property
    def text_layout(self) -> TextLayout:
        """How texts of different lengths make up a batch."""

    def encode_images(self, pixels: UInt8[np.ndarray, "batch 3 height width"]) -> Float32[np.ndarray, "batch dim"]:
        """Vectors of preprocessed crops (not normalised)."""

    def tokenize(self, texts: Sequence[str]) -> tuple[list[Int64[np.ndarray, " token"]], Bool[np.ndarray, " text"]]:
        """Token ids of each text, and which texts were cut at the layout's `max_tokens`."""

    def encode_tokens(
        self, tokens: Sequence[Int64[np.ndarray, " token"]], pad_to: int | None
    ) -> Float32[np.ndarray, "batch dim"]:
        """Vectors of tokenised texts (not normalised), padded to so many tokens each; None packs them."""


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

    @classmethod
    def without_vector(cls, status: Status, source_digest: bytes, dim: int) -> "EncodedRows":
        """One row that has no vector."""
        digest = np.frombuffer(source_digest, np.uint8).reshape(1, 16)
        return cls(np.zeros((1, dim), np.float16), np.array([status], np.uint8), digest, {}, copied=0)

    @classmethod
    def joined(cls, pieces: "Sequence[EncodedRows]") -> "EncodedRows":
        """The rows of several pieces, one after the other."""
        notes: Counter[str] = Counter()
        for piece in pieces:
            notes.update(piece.notes)
        return cls(
            embedding=np.concatenate([piece.embedding for piece in pieces]),
            status=np.concatenate([piece.status for piece in pieces]),
            source_digest=np.concatenate([piece.source_digest for piece in pieces]),
            notes=notes,
            copied=sum(piece.copied for piece in pieces),
        )


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

    def add(self, seconds: Mapping[str, float]) -> None:
        """Add what another stopwatch measured."""
        for part, more in seconds.items():
            self.seconds[part] = self.seconds.get(part, 0.0) + more

    @property
    def bottleneck(self) -> str:
        """The part that took longest so far, apart from loading the encoder once."""
        return max(self.seconds.keys() - {"load"}, key=lambda part: self.seconds[part], default="")


@dataclass(frozen=True, eq=False)
class Tokenized:
    """The texts of one shard: as an encoder reads them, their token ids, and which were cut at its limit."""

    prompts: Sequence[Prompt]
    tokens: Sequence[Int64[np.ndarray, " _"]]
    truncated: Bool[np.ndarray, " row"]

    @classmethod
    def by(cls, encoder: Encoder, prompts: Sequence[Prompt]) -> "Tokenized":
        """Tokenise texts."""
        return cls(prompts, *encoder.tokenize([prompt.text for prompt in prompts]))


class Device:
    """Encodes batches on threads of its own, so that the next batch can be gathered meanwhile.

    When memory runs out, a batch is encoded in halves, quarters, ...; what fitted is remembered for later batches.

    Parameters
    ----------
    batch_size
        Rows in a batch; packed texts are more or fewer.
    in_flight
        Batches at a time: with two a GPU has the next one before it ends the first, a CPU can only do one.
    """

    def __init__(self, batch_size: int, in_flight: int) -> None:
        self.batch_size, self.in_flight = batch_size, in_flight
        self._pieces = 1
        self._pool = ThreadPoolExecutor(in_flight, thread_name_prefix="encode")

    @property
    def fits(self) -> int:
        """How many rows at a time have fitted into memory."""
        return -(-self.batch_size // self._pieces)

    def submit(self, encode: Callable[[Any], Float32[np.ndarray, "_ dim"]], batch: Any) -> "Future[Any]":
        """Encode a batch (anything that can be sliced); the future holds its vectors."""
        return self._pool.submit(self._encode, encode, batch)

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _encode(
        self, encode: Callable[[Any], Float32[np.ndarray, "_ dim"]], batch: Any
    ) -> Float32[np.ndarray, "_ dim"]:
        while True:
            pieces = self._pieces
            size = -(-len(batch) // pieces)  # packed texts are more or fewer than the rows of a batch
            try:
                return np.concatenate([encode(batch[start : start + size]) for start in range(0, len(batch), size)])
            except Exception as error:
                if not _is_out_of_memory(error):
                    raise
                if size == 1:
                    raise WorkersFailedError(
                        f"not even one row at a time fits into the memory of the device ({error}): "
                        "free some of it, or choose another device or a smaller encoder"
                    ) from error
            self._pieces = max(self._pieces, 2 * pieces)


_OUT_OF_MEMORY = (
    "DefaultCPUAllocator: can't allocate memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDA error: out of memory",
)


def _is_out_of_memory(error: Exception) -> bool:
    # By name, because importing torch costs seconds; torch's own allocator for CPUs raises a plain RuntimeError.
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or any(words in str(error) for words in _OUT_OF_MEMORY)
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class ShardEncoder:
    """Encodes the rows of one shard in batches of one size.

    `dim` is that of the vectors, `donors` are asked before anything is encoded, `tell` hears of rows as they are done.
    """

    encoder: Encoder
    device: Device
    dim: int
    donors: Donors
    watch: Stopwatch
    tell: Callable[[int], None]

    def images(self, next_thumbnail: Callable[[], Thumbnail], rows: int) -> "UnroundedRows":
        """Encode the next `rows` thumbnails; equal files are encoded once."""
        result = UnroundedRows(rows, self.dim, self.donors)
        flights = _Flights(self, result)
        batch: dict[int, UInt8[np.ndarray, "3 height width"]] = {}
        size = self.device.batch_size
        for row in range(rows):
            thumbnail = self.watch.timed("decode", next_thumbnail)
            result.digests[row] = np.frombuffer(thumbnail.source_sha256, np.uint8)
            result.status[row] = thumbnail.status
            if thumbnail.pixels is not None and not result.has_vector_for(row, thumbnail.source_sha256):
                batch[row] = thumbnail.pixels
            if batch and (len(batch) == size or row == rows - 1):
                blank = np.zeros_like(next(iter(batch.values())))
                pixels = np.stack([*batch.values(), *[blank] * (size - len(batch))])
                flights.launch(list(batch), self.encoder.encode_images, pixels)
                batch.clear()
            elif row not in batch:
                flights.pass_by()
        flights.land_all()
        return result

    def texts(self, texts: Tokenized, digests: UInt8[np.ndarray, "row 16"]) -> "UnroundedRows":
        """Encode texts; equal ones are encoded once, in batches of similar length."""
        result = UnroundedRows(len(texts.prompts), self.dim, self.donors)
        flights = _Flights(self, result)
        result.digests[:] = digests
        result.status[:] = [Status.OK if prompt.text else Status.EMPTY_TEXT for prompt in texts.prompts]
        contents = [prompt.text.encode("utf-8") for prompt in texts.prompts]
        new = [row for row, content in enumerate(contents) if not result.has_vector_for(row, content)]
        tokens = [texts.tokens[row] for row in new]
        for batch in self.encoder.text_layout.batches([len(text) for text in tokens], self.device.batch_size):
            encode = partial(self.encoder.encode_tokens, pad_to=batch.pad_to)
            flights.launch([new[text] for text in batch.texts], encode, batch.filled(tokens))
        flights.land_all()
        repaired = sum(prompt.repaired for prompt in texts.prompts)
        result.notes = {"truncated": int(texts.truncated.sum()), "repaired": repaired}
        return result


class _Flights:
    """Batches of one shard that are on the device, in the order of their start."""

    def __init__(self, shard: ShardEncoder, result: "UnroundedRows") -> None:
        self._device, self._watch, self._tell = shard.device, shard.watch, shard.tell
        self._result = result
        self._flying: deque[tuple[list[int], Future[Any]]] = deque()
        self._told = 0
        self._passed = 0

    def pass_by(self) -> None:
        """Count a row that needs no batch; a word now and then tells that the worker is alive."""
        self._passed += 1
        if self._passed == self._device.batch_size:
            self._say(self._passed)
            self._passed = 0

    def launch(self, rows: list[int], encode: Callable[[Any], Float32[np.ndarray, "_ dim"]], batch: Any) -> None:
        """Encode a batch whose first rows belong to `rows`."""
        while len(self._flying) >= self._device.in_flight:
            self._land()
        self._flying.append((rows, self._device.submit(encode, batch)))

    def land_all(self) -> None:
        """Wait for all of them; rows that needed no batch are done with the last one."""
        while self._flying:
            self._land()
        self._tell(len(self._result.status) - self._told)

    def _land(self) -> None:
        rows, future = self._flying.popleft()
        vectors = self._watch.timed("encode", future.result)
        self._result.vectors[rows] = vectors[: len(rows)]
        self._say(len(rows))

    def _say(self, rows: int) -> None:
        self._told += rows
        self._tell(rows)


class UnroundedRows:
    """The rows of one shard while they are filled in; `notes` are counts of its texts."""

    def __init__(self, rows: int, dim: int, donors: Donors) -> None:
        self.notes: Mapping[str, int] = {}
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

    def finished(self) -> EncodedRows:
        """Round to float16, repeats too; it takes long enough for another thread to do it while a GPU goes on."""
        for row, first in self._repeats:
            self.vectors[row] = self.vectors[first]
        return EncodedRows(rounded(self.vectors, self.status), self.status, self.digests, self.notes, self._copied)


def rounded(
    vectors: Float32[np.ndarray, "row dim"], status: UInt8[np.ndarray, " row"]
) -> Float16[np.ndarray, "row dim"]:
    """As a cache holds them; one that is not finite there becomes zeros, and its place in `status` says so."""
    with np.errstate(over="ignore"):
        embedding = vectors.astype(np.float16)
    broken = ~np.isfinite(embedding).all(axis=1)
    embedding[broken] = 0
    status[broken] = Status.NONFINITE
    return embedding
