"""One shard: the vectors of a planned range of rows, in one immutable HDF5 file.

    embedding      (row, dim) float16, as the encoder gives it (not normalised: the norm carries information)
    id             (row,)     the video's id
    status         (row,)     uint8, see `features.status`
    source_digest  (row, 16)  uint8, first half of the SHA-256 of the thumbnail's bytes or of the row's text

The image of the file is built in memory and its SHA-256 is part of its name, so a reader checks every byte before
libhdf5 parses one (its own security notes say that it is not made for hostile files). Nothing is compressed: float16
embeddings shrink by a few per cent at several times the read time. No text is of variable length: libhdf5 allocates
whatever length such a text claims before it looks for its bytes. So all that is read is as large as the file at most.
"""

import hashlib
import io
import math
import os
import re
import stat
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from jaxtyping import Float16, Shaped, UInt8

from features import durable
from features.errors import CacheError
from features.videos import MAX_ID_CHARACTERS

FORMAT = "vp-shard"
SCHEMA = 2  # 1 had texts of variable length
FILE_NAME = re.compile(r"(?P<kind>[a-z]+)-(?P<index>\d{6,})\.(?P<digest>[0-9a-f]{16})\.h5")

_BYTES_PER_ID = 4 * MAX_ID_CHARACTERS + 64  # only bounds what a reader will load
_FOREIGN = (OSError, KeyError, RuntimeError, ValueError, TypeError, IndexError, AttributeError, OverflowError)
"""Whatever h5py and numpy raise on a file that is no shard."""
_MAX_ATTRIBUTES, _MAX_ATTRIBUTE_BYTES = 64, 4096
_DATASETS = {"embedding", "id", "source_digest", "status"}


@dataclass(frozen=True, eq=False)
class Shard:
    """The rows of one shard, and what they were made from.

    `encoder` identifies what made the vectors, `key` this shard within the plan (both in `features.plan`); `notes`
    counts what happened to the rows, such as texts that were cut at the encoder's limit.
    """

    kind: str
    index: int
    encoder: str
    key: str
    ids: Sequence[str]
    embedding: Float16[np.ndarray, "row dim"]
    status: UInt8[np.ndarray, " row"]
    source_digest: UInt8[np.ndarray, "row 16"]
    notes: Mapping[str, int]


@dataclass(frozen=True, eq=False)
class ShardFacts:
    """What a shard says of itself and of its rows, without their vectors; `stored_ids` are bytes, which are small."""

    kind: str
    index: int
    encoder: str
    key: str
    dim: int
    stored_ids: Shaped[np.ndarray, " row"]
    status: UInt8[np.ndarray, " row"]
    source_digest: UInt8[np.ndarray, "row 16"]

    @classmethod
    def of(cls, shard: Shard) -> "ShardFacts":
        """Keep what is small; the copies let go of the file's bytes."""
        ids = np.array([id_.encode("utf-8") for id_ in shard.ids])  # no id holds the NUL that numpy would cut off
        status, source_digest, dim = shard.status.copy(), shard.source_digest.copy(), shard.embedding.shape[1]
        return cls(shard.kind, shard.index, shard.encoder, shard.key, dim, ids, status, source_digest)

    @property
    def ids(self) -> list[str]:
        """The videos' ids, in row order."""
        return _decoded_ids(self.stored_ids)


def write_shard(folder: Path, shard: Shard) -> str:
    """Publish a shard; returns its file name. Equal shards get equal names."""
    raw = to_bytes(shard)
    name = f"{shard.kind}-{shard.index:06d}.{hashlib.sha256(raw).hexdigest()[:16]}.h5"
    durable.publish(folder / name, raw)
    return name


class ShardMemory(threading.local):
    """Memory into which a thread reads one shard after the other; each ends what was read before.

    Fresh memory for every shard takes the system longer than the shard takes to be read and hashed.
    """

    def __init__(self) -> None:
        self._memory = bytearray()

    def read(self, path: Path) -> memoryview:
        """The bytes of a file."""
        with path.open("rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            if size > len(self._memory):
                self._memory = bytearray(size)
            there = memoryview(self._memory)[:size]
            filled = 0
            while count := file.readinto(there[filled:]):
                filled += count
        return there[:filled].toreadonly()


def read_shard(path: Path, *, max_bytes: int, memory: ShardMemory | None = None) -> Shard:
    """Read one shard, checking its digest before its content; with `memory`, arrays are views into that.

    Raises
    ------
    CacheError
        The file is missing, was changed or cut, or is not a shard of this format.
    """
    return from_bytes(read_checked(path, max_bytes=max_bytes, memory=memory), path.name)


def read_facts(path: Path, *, max_bytes: int) -> ShardFacts:
    """Read a shard without its vectors and without hashing its bytes: quick, but no proof that they are whole.

    Raises
    ------
    CacheError
        The file is missing, too large, or not a shard of this format.
    """
    _checked_name(path)
    try:
        _checked_size(path, max_bytes)
        with h5py.File(path, "r", locking=False) as file:
            attributes = _attributes(file.id, path.name)
            datasets = _checked_datasets(file.id, attributes, path.name)
            stored_ids = _read(datasets["id"])
            _decoded_ids(stored_ids)  # so that whoever asks for them later is not the one to find out
            return ShardFacts(
                kind=str(attributes["kind"]),
                index=int(attributes["index"]),
                encoder=str(attributes["encoder"]),
                key=str(attributes["key"]),
                dim=datasets["embedding"].shape[1],
                stored_ids=stored_ids,
                status=_read(datasets["status"]),
                source_digest=_read(datasets["source_digest"]),
            )
    except _FOREIGN as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise CacheError(f"shard {path} cannot be read ({reason}): run `vp extract` again") from error


def read_checked(path: Path, *, max_bytes: int, memory: ShardMemory | None = None) -> bytes | memoryview:
    """The bytes of a shard file whose name carries their digest."""
    match = _checked_name(path)
    try:
        _checked_size(path, max_bytes)
        raw = memory.read(path) if memory is not None else path.read_bytes()
    except OSError as error:
        raise CacheError(f"shard {path} cannot be read ({error.strerror}): run `vp extract` again") from error
    if hashlib.sha256(raw).hexdigest()[:16] != match["digest"]:
        raise CacheError(f"shard {path} is damaged (its bytes do not match its name): run `vp extract` again")
    return raw


def index_of(name: str) -> int:
    """The index of a shard, from the name of its file.

    >>> index_of("image-000007.0123456789abcdef.h5")
    7
    """
    return int(name.rpartition("-")[2].partition(".")[0])


def _checked_name(path: Path) -> re.Match[str]:
    match = FILE_NAME.fullmatch(path.name)
    if match is None:
        raise CacheError(f"{path} is not named like a shard (kind-000000.<16 hex digits>.h5)")
    return match


def _checked_size(path: Path, max_bytes: int) -> None:
    facts = path.stat()
    if not stat.S_ISREG(facts.st_mode) and not stat.S_ISDIR(facts.st_mode):  # a FIFO would wait for a writer
        raise CacheError(f"shard {path} is no regular file")
    if facts.st_size > max_bytes:
        raise CacheError(f"shard {path} has {facts.st_size:,} bytes where at most {max_bytes:,} can be right")


def max_shard_bytes(rows: int, dim: int) -> int:
    """An upper bound for the size of a shard file; a larger one is refused unread."""
    return rows * (2 * dim + 17 + _BYTES_PER_ID) + 1_000_000


def to_bytes(shard: Shard) -> bytes:
    """The HDF5 file as bytes: contiguous, without filters or times, hence equal for equal content."""
    image = io.BytesIO()
    with h5py.File(image, "w") as file:
        file.attrs["schema"] = SCHEMA
        file.attrs["index"] = shard.index
        for name, text in (("format", FORMAT), ("kind", shard.kind), ("encoder", shard.encoder), ("key", shard.key)):
            file.attrs[name] = _encoded_texts([text])[0]
        for name, count in sorted(shard.notes.items()):
            file.attrs[f"note_{name}"] = count
        file.create_dataset("embedding", data=shard.embedding)
        file.create_dataset("id", data=_encoded_texts(shard.ids))
        file.create_dataset("source_digest", data=shard.source_digest)
        file.create_dataset("status", data=shard.status)
    return image.getvalue()


class _Image(io.RawIOBase):
    """A file that is in memory, for h5py; io.BytesIO would copy it."""

    def __init__(self, raw: bytes | memoryview) -> None:
        self._raw, self._at = memoryview(raw), 0

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: len(self._raw)}[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        part = self._raw[self._at : self._at + len(buffer)]
        buffer[: len(part)] = part
        self._at += len(part)
        return len(part)


def from_bytes(raw: bytes | memoryview, name: str) -> Shard:
    """Parse a shard; everything is checked against its declaration before any value is read."""
    try:
        with h5py.File(_Image(raw), "r") as file:
            attributes = _attributes(file.id, name)
            datasets = _checked_datasets(file.id, attributes, name)
            return Shard(
                kind=str(attributes["kind"]),
                index=int(attributes["index"]),
                encoder=str(attributes["encoder"]),
                key=str(attributes["key"]),
                ids=_decoded_ids(_in_place(raw, datasets["id"])),
                embedding=_in_place(raw, datasets["embedding"]),
                status=_in_place(raw, datasets["status"]),
                source_digest=_in_place(raw, datasets["source_digest"]),
                notes=_notes(attributes),
            )
    except _FOREIGN as error:
        raise CacheError(f"shard {name} is not a shard of this version of vp ({error})") from error


# What follows asks libhdf5 through h5py's lower floor: its upper one takes a third longer, under one lock for all
# threads, and a cache of many shards is read no faster than that.


def _attributes(file: Any, name: str) -> dict[str, Any]:
    """The attributes of a shard, each looked at before it is read."""
    found = {}
    count = h5py.h5a.get_num_attrs(file)
    if count > _MAX_ATTRIBUTES:
        raise CacheError(f"shard {name} has {count:,} attributes where {_MAX_ATTRIBUTES} are plenty")
    for place in range(count):
        attribute = h5py.h5a.open(file, index=place)
        attribute_name, dtype = attribute.name.decode("utf-8"), attribute.dtype
        if attribute.shape != () or dtype.kind not in "Siu" or dtype.itemsize > _MAX_ATTRIBUTE_BYTES:
            raise CacheError(f"shard {name}: {attribute_name} is neither a number nor a short text of a fixed length")
        value = np.empty((), dtype)
        attribute.read(value)
        plain = value.item()
        found[attribute_name] = plain.decode("utf-8") if isinstance(plain, bytes) else plain
    return found


def _notes(attributes: Mapping[str, Any]) -> dict[str, int]:
    return {name.removeprefix("note_"): int(value) for name, value in attributes.items() if name.startswith("note_")}


def _encoded_texts(texts: Sequence[str]) -> Shaped[np.ndarray, " row"]:
    """Texts in UTF-8, each as long as the longest: none may end in NUL, which fills the others up."""
    encoded = [text.encode("utf-8") for text in texts]
    return np.array(encoded, dtype=f"S{max(map(len, encoded), default=0) or 1}")


def _decoded_ids(stored: Shaped[np.ndarray, " row"]) -> list[str]:
    encoded = stored.tolist()
    ids = b"\0".join(encoded).decode("utf-8").split("\0")  # at once: three times as fast as one by one
    if len(ids) == len(encoded):
        return ids
    return [id_.decode("utf-8") for id_ in encoded]  # there are none, or a NUL lies in the middle of one


def _read(dataset: Any) -> Any:
    """All values of a dataset."""
    values = np.empty(dataset.shape, dataset.dtype)
    dataset.read(h5py.h5s.ALL, h5py.h5s.ALL, values)
    return values


def _checked_datasets(file: Any, attributes: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The datasets of a shard, each opened once: opening is most of what reading a shard costs beside its bytes."""
    if attributes.get("format") != FORMAT or attributes.get("schema") != SCHEMA:
        raise CacheError(f"shard {name} has format {attributes.get('format')!r} {attributes.get('schema')!r}")
    root = h5py.h5g.open(file, b"/")
    names = {link.decode("utf-8", "replace") for link in root}
    if names != _DATASETS:
        raise CacheError(f"shard {name} holds {', '.join(sorted(names)[:8])}, not {', '.join(sorted(_DATASETS))}")
    for dataset_name in _DATASETS:
        if root.links.get_info(dataset_name.encode()).type != h5py.h5l.TYPE_HARD:
            raise CacheError(f"shard {name}: {dataset_name} is a link; shards hold their data themselves")
    datasets = {dataset_name: h5py.h5o.open(root, dataset_name.encode()) for dataset_name in _DATASETS}
    for dataset_name, dataset in datasets.items():
        _check_layout(dataset, f"shard {name}: {dataset_name}")
    shapes = {dataset_name: dataset.shape for dataset_name, dataset in datasets.items()}
    stored_types = {dataset_name: dataset.dtype for dataset_name, dataset in datasets.items()}
    rows, dim = shapes["embedding"][0], shapes["embedding"][-1]
    expected = {"embedding": (rows, dim), "id": (rows,), "source_digest": (rows, 16), "status": (rows,)}
    if shapes != expected:
        raise CacheError(f"shard {name} has shapes {shapes}")
    if stored_types["id"].kind != "S":
        raise CacheError(f"shard {name}: id is {stored_types['id']}, not text of a fixed length")
    types = {"embedding": np.float16, "source_digest": np.uint8, "status": np.uint8}
    for dataset_name, dtype in types.items():
        if stored_types[dataset_name] != dtype:
            raise CacheError(f"shard {name}: {dataset_name} is {stored_types[dataset_name]}, not {np.dtype(dtype)}")
    return datasets


def _check_layout(dataset: Any, label: str) -> None:
    if not isinstance(dataset, h5py.h5d.DatasetID):
        raise CacheError(f"{label} is no dataset")
    plan = dataset.get_create_plist()
    layout = plan.get_layout()
    if layout == h5py.h5d.VIRTUAL or plan.get_external_count():
        raise CacheError(f"{label} takes its data from another file")
    if layout == h5py.h5d.CHUNKED or plan.get_nfilters():
        raise CacheError(f"{label} is chunked or filtered; shards are contiguous")
    declared, stored = dataset.dtype.itemsize * math.prod(dataset.shape), dataset.get_storage_size()
    if declared != stored:
        raise CacheError(f"{label} declares {declared:,} bytes and stores {stored:,}")


def _in_place(raw: bytes | memoryview, dataset: Any) -> Any:
    """A view of the dataset inside the bytes that are in memory already: no copy."""
    dtype, shape = dataset.dtype, dataset.shape
    if 0 in shape:
        return np.empty(shape, dtype)
    offset = dataset.get_offset()
    return np.frombuffer(raw, dtype, count=math.prod(shape), offset=offset).reshape(shape)
