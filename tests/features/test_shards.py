"""A shard comes back as it went in, or it is refused: nothing in between, whoever made the file."""

import hashlib
import importlib.util
import inspect
import io
import os
import random
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import h5py
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from features import shards
from features.errors import CacheError
from features.shards import (
    Shard,
    ShardFacts,
    ShardMemory,
    from_bytes,
    max_shard_bytes,
    read_facts,
    read_shard,
    to_bytes,
    write_shard,
)
from features.videos import MAX_ID_CHARACTERS

ROWS, DIM = 3, 4
LIMIT = max_shard_bytes(ROWS, DIM)


def a_shard(**changes) -> Shard:
    fields = {
        "kind": "image",
        "index": 7,
        "encoder": "an encoder",
        "key": "a key",
        "ids": ["dQw4w9WgXcQ", "-Abc_12345", "00123456789"],
        "embedding": np.arange(12, dtype=np.float16).reshape(3, 4) / 7,
        "status": np.array([0, 3, 255], np.uint8),
        "source_digest": np.arange(48, dtype=np.uint8).reshape(3, 16),
        "notes": {"truncated": 2, "repaired": 0},
    }
    return Shard(**fields | changes)


def assert_equal(found: Shard, expected: Shard) -> None:
    for name in ("kind", "index", "encoder", "key", "ids", "notes"):
        assert getattr(found, name) == getattr(expected, name)
    for name in ("embedding", "status", "source_digest"):
        ours, theirs = getattr(found, name), getattr(expected, name)
        assert (ours.dtype, ours.shape, ours.tobytes()) == (theirs.dtype, theirs.shape, theirs.tobytes())


def named(folder: Path, raw: bytes, name: str = "image-000007") -> Path:
    """A file with this content and the name that its content deserves."""
    path = folder / f"{name}.{hashlib.sha256(raw).hexdigest()[:16]}.h5"
    path.write_bytes(raw)
    return path


PLAIN_IDS = st.text("abcXYZ019_-", min_size=1, max_size=64)
ODD_IDS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=30)


@st.composite
def any_fields(draw: st.DrawFn) -> dict:
    rows, dim = draw(st.integers(0, 6)), draw(st.integers(1, 5))
    words = st.text(st.characters(codec="ascii", exclude_characters="\0"))
    return {
        "kind": draw(st.sampled_from(["image", "text"])),
        "index": draw(st.integers(0, 10**7)),
        "encoder": draw(words),
        "key": draw(words),
        "ids": draw(st.lists(draw(st.sampled_from([PLAIN_IDS, ODD_IDS])), min_size=rows, max_size=rows)),
        "embedding": draw(hnp.arrays(np.uint16, (rows, dim))).view(np.float16),  # NaNs and infinities too
        "status": draw(hnp.arrays(np.uint8, rows)),
        "source_digest": draw(hnp.arrays(np.uint8, (rows, 16))),
        "notes": draw(st.dictionaries(st.text("ab_", min_size=1, max_size=9), st.integers(0, 2**40), max_size=3)),
    }


@settings(deadline=None, derandomize=True, max_examples=40)
@given(any_fields())
@example({"ids": ["日本 😱", "a\nb", " é "]})
@example({"ids": ["x" * 64, "x" * 65, "../../etc/passwd"]})
def test_what_is_written_is_read_back_bit_by_bit(fields: dict):
    shard = a_shard(**fields)
    assert_equal(from_bytes(to_bytes(shard), "a shard"), shard)


def test_arrays_in_another_memory_order_are_stored_the_same(tmp_path: Path):
    shard = a_shard()
    turned = a_shard(
        embedding=np.asfortranarray(shard.embedding),
        source_digest=np.repeat(shard.source_digest, 2, axis=1)[:, ::2],
        status=np.repeat(shard.status, 3)[::3],
    )
    assert write_shard(tmp_path, turned) == write_shard(tmp_path, shard)


BUILD = """
import hashlib, numpy as np
from features.shards import Shard, to_bytes
{a_shard}
for ids in {ids}:
    print(hashlib.sha256(to_bytes(a_shard(ids=ids))).hexdigest())
"""


def test_equal_shards_have_equal_bytes_in_every_process_and_at_any_time():
    ids = [["dQw4w9WgXcQ", "-Abc_12345", "00123456789"], ["日本 😱", "a", "some more text"]]
    script = BUILD.format(a_shard=inspect.getsource(a_shard), ids=ids)
    second = int(time.time())
    here = [hashlib.sha256(to_bytes(a_shard(ids=some))).hexdigest() for some in ids]
    while int(time.time()) == second:  # HDF5 would note times in whole seconds
        time.sleep(0.01)
    there = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert there.split() == here


def test_the_order_of_notes_does_not_matter(tmp_path: Path):
    notes = {"truncated": 2, "repaired": 0}
    turned = dict(reversed(notes.items()))
    assert write_shard(tmp_path, a_shard(notes=notes)) == write_shard(tmp_path, a_shard(notes=turned))


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "text"},
        {"index": 8},
        {"encoder": "another"},
        {"key": "another"},
        {"ids": ["dQw4w9WgXcQ", "-Abc_12345", "00123456780"]},
        {"embedding": np.arange(12, dtype=np.float16).reshape(3, 4) / 6},
        {"status": np.array([0, 3, 254], np.uint8)},
        {"source_digest": np.zeros((3, 16), np.uint8)},
        {"notes": {"truncated": 2}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_whatever_differs_in_a_shard_changes_its_digest(change: dict):
    assert to_bytes(a_shard(**change)) != to_bytes(a_shard())


def test_the_name_carries_kind_index_and_digest_of_the_bytes(tmp_path: Path):
    name = write_shard(tmp_path, a_shard())
    raw = (tmp_path / name).read_bytes()
    assert raw == to_bytes(a_shard())
    assert name == f"image-000007.{hashlib.sha256(raw).hexdigest()[:16]}.h5"
    assert_equal(read_shard(tmp_path / name, max_bytes=LIMIT), a_shard())


@pytest.mark.parametrize(
    "name",
    [
        "image-000007.h5",
        "image-7.0123456789abcdef.h5",
        "image-000007.0123456789ABCDEF.h5",
        "image-000007.0123456789abcdef.h5~",
        "../image-000007.0123456789abcdef",
    ],
)
def test_a_file_that_is_not_named_like_a_shard_is_not_opened(tmp_path: Path, name: str):
    with pytest.raises(CacheError, match="not named like a shard"):
        read_shard(tmp_path / name, max_bytes=LIMIT)


def test_a_shard_under_the_digest_of_another_is_refused(tmp_path: Path):
    first, second = (tmp_path / write_shard(tmp_path, a_shard(key=key)) for key in "ab")
    first.replace(second)
    with pytest.raises(CacheError, match="damaged"):
        read_shard(second, max_bytes=LIMIT)


def assert_damaged(path: Path, raw: bytes) -> None:
    path.write_bytes(raw)
    with pytest.raises(CacheError, match=r"damaged .* run `vp extract` again"):
        read_shard(path, max_bytes=LIMIT)


def test_a_single_flipped_bit_is_found_wherever_it_is(tmp_path: Path):
    raw = to_bytes(a_shard())
    path = named(tmp_path, raw)
    draw = random.Random(0)
    for position in range(0, len(raw), 61):
        flipped = bytearray(raw)
        flipped[position] ^= 1 << draw.randrange(8)
        assert_damaged(path, bytes(flipped))
    path.write_bytes(raw)
    assert_equal(read_shard(path, max_bytes=LIMIT), a_shard())


def test_a_file_that_was_cut_or_grew_is_found_at_any_length(tmp_path: Path):
    raw = to_bytes(a_shard())
    path = named(tmp_path, raw)
    for length in (*range(0, len(raw), 197), len(raw) - 1):
        assert_damaged(path, raw[:length])
    for more in (b"\0", b"\n", raw):
        assert_damaged(path, raw + more)


def test_a_file_that_is_too_large_is_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = named(tmp_path, to_bytes(a_shard()))
    size = path.stat().st_size
    assert_equal(read_shard(path, max_bytes=size), a_shard())
    monkeypatch.setattr(Path, "read_bytes", lambda _: pytest.fail("it was read"))
    with pytest.raises(CacheError, match=f"has {size:,} bytes where at most {size - 1:,} can be right"):
        read_shard(path, max_bytes=size - 1)


def test_a_shard_that_is_missing_or_a_folder_is_refused_with_the_command_that_mends_it(tmp_path: Path):
    path = tmp_path / "image-000007.0123456789abcdef.h5"
    with pytest.raises(CacheError, match=r"No such file or directory\): run `vp extract` again"):
        read_shard(path, max_bytes=LIMIT)
    path.mkdir()
    with pytest.raises(CacheError, match=r"Is a directory\): run `vp extract` again"):
        read_shard(path, max_bytes=LIMIT)


@settings(deadline=None, derandomize=True, max_examples=20)
@given(st.integers(1, 40), st.integers(1, 300), st.sampled_from(["x", "é"]), st.integers(1, 120))
def test_a_reader_never_finds_an_ordinary_shard_too_large(rows: int, dim: int, letter: str, length: int):
    shard = a_shard(
        ids=[letter * length] * rows,
        embedding=np.zeros((rows, dim), np.float16),
        status=np.zeros(rows, np.uint8),
        source_digest=np.zeros((rows, 16), np.uint8),
    )
    assert len(to_bytes(shard)) <= max_shard_bytes(rows, dim)


def test_what_was_written_can_be_read_with_the_longest_ids_that_a_dataset_may_have(tmp_path: Path):
    """A shard that its own reader refuses would be made again for ever."""
    shard = a_shard(ids=[letter * MAX_ID_CHARACTERS for letter in "😀b😱"])
    assert_equal(read_shard(tmp_path / write_shard(tmp_path, shard), max_bytes=LIMIT), shard)


def test_arrays_are_views_of_the_bytes_that_were_read():
    raw = to_bytes(a_shard())
    shard = from_bytes(raw, "a shard")
    whole = np.frombuffer(raw, np.uint8)
    for array in (shard.embedding, shard.status, shard.source_digest):
        assert np.shares_memory(array, whole)
        assert not array.flags.writeable


# Files that libhdf5 opens without complaint, and that are no shards. Each function spoils a good file; `other` is a
# complete shard beside it, from which something could be read.


def put(file, name, **dataset):
    del file[name]
    return file.create_dataset(name, **dataset)


def a_soft_link(file, other):
    del file["status"]
    file["status"] = h5py.SoftLink("/source_digest")


def an_external_link(file, other):
    del file["embedding"]
    file["embedding"] = h5py.ExternalLink(other, "embedding")


def a_link_to_nowhere(file, other):
    del file["embedding"]
    file["embedding"] = h5py.SoftLink("/nowhere")


def a_virtual_dataset(file, other):
    layout = h5py.VirtualLayout((ROWS, DIM), np.float16)
    layout[:] = h5py.VirtualSource(other, "embedding", (ROWS, DIM))
    del file["embedding"]
    file.create_virtual_dataset("embedding", layout)


def external_storage(file, other):
    put(file, "status", shape=ROWS, dtype=np.uint8, external=[(str(other), 0, ROWS)])


def chunks(file, other):
    put(file, "embedding", data=file["embedding"][()], chunks=(1, DIM))


def a_filter(file, other):
    put(file, "embedding", data=file["embedding"][()], compression="gzip")


def a_checksum_filter_on_ids(file, other):
    put(file, "id", data=file["id"][()], fletcher32=True)


def a_resizable_dataset(file, other):
    put(file, "status", data=file["status"][()], maxshape=(None,))


def data_in_the_header(file, other):
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_layout(h5py.h5d.COMPACT)
    del file["status"]
    space = h5py.h5s.create_simple((ROWS,))
    dataset = h5py.h5d.create(file.id, b"status", h5py.h5t.NATIVE_UINT8, space, properties)
    dataset.write(h5py.h5s.ALL, h5py.h5s.ALL, np.zeros(ROWS, np.uint8))


def wider_vectors(file, other):
    put(file, "embedding", data=np.zeros((ROWS, DIM), np.float32))


def big_endian_vectors(file, other):
    put(file, "embedding", data=np.zeros((ROWS, DIM), ">f2"))


def whole_numbers_as_vectors(file, other):
    put(file, "embedding", data=np.zeros((ROWS, DIM), np.int16))


def a_signed_status(file, other):
    put(file, "status", data=np.zeros(ROWS, np.int8))


def a_wide_digest(file, other):
    put(file, "source_digest", data=np.zeros((ROWS, 16), np.uint16))


def numbers_as_ids(file, other):
    put(file, "id", data=np.arange(ROWS))


def records_as_ids(file, other):
    put(file, "id", data=np.zeros(ROWS, [("first", "i4"), ("second", "i4")]))


def ids_that_are_no_utf_8(file, other):
    put(file, "id", data=np.array([b"\xff", b"a", b"b"]))


def a_row_too_few(file, other):
    put(file, "status", data=np.zeros(ROWS - 1, np.uint8))


def an_id_too_many(file, other):
    put(file, "id", data=np.array([b"a", b"b", b"c", b"d"]))


def a_short_digest(file, other):
    put(file, "source_digest", data=np.zeros((ROWS, 15), np.uint8))


def flat_vectors(file, other):
    put(file, "embedding", data=np.zeros(ROWS, np.float16))


def vectors_of_three_axes(file, other):
    put(file, "embedding", data=np.zeros((ROWS, DIM, DIM), np.float16))


def a_single_number(file, other):
    put(file, "embedding", data=np.float16(1))


def nothing_at_all(file, other):
    put(file, "embedding", data=h5py.Empty(np.float16))


def another_dataset(file, other):
    file.create_dataset("more", data=np.zeros(ROWS))


def a_missing_dataset(file, other):
    del file["status"]


def a_folder(file, other):
    del file["status"]
    file.create_group("status")


def another_format(file, other):
    file.attrs["format"] = "something else"


def a_newer_schema(file, other):
    file.attrs["schema"] = 3


def no_schema(file, other):
    del file.attrs["schema"]


def no_key(file, other):
    del file.attrs["key"]


def an_index_in_words(file, other):
    file.attrs["index"] = "seven"


def a_format_of_many_words(file, other):
    file.attrs["format"] = ["vp-shard", "vp-shard"]


def vectors_that_are_declared_but_not_stored(file, other):
    put(file, "embedding", shape=(ROWS, 250_000_000_000), dtype=np.float16)


def rows_that_are_declared_but_not_stored(file, other):
    rows = 1_000_000_000
    put(file, "embedding", shape=(rows, 768), dtype=np.float16)
    put(file, "source_digest", shape=(rows, 16), dtype=np.uint8)
    put(file, "status", shape=(rows,), dtype=np.uint8)
    put(file, "id", shape=(rows,), dtype="S11")


def ids_that_are_declared_but_not_stored(file, other):
    put(file, "id", shape=(ROWS,), dtype="S10000000")


def ids_of_variable_length(file, other):
    put(file, "id", data=np.array(["a", "b", "c"], dtype=h5py.string_dtype("utf-8")))


def a_text_of_variable_length(file, other):
    file.attrs["note_text"] = "a text, whose length libhdf5 would believe"


def a_list_as_attribute(file, other):
    file.attrs["note_list"] = np.zeros(1000)


def a_long_text(file, other):
    file.attrs["note_text"] = np.bytes_(b"x" * 10_000)


def a_hundred_attributes(file, other):
    for number in range(100):
        file.attrs[f"note_{number}"] = number


def folders_in_folders(file, other):
    del file["status"]
    folder = file.create_group("status")
    for _ in range(1000):
        folder = folder.create_group("x")


def five_thousand_folders(file, other):
    for number in range(5_000):
        file.create_group(f"x{number}")


FRAUDS = [
    *(ids_of_variable_length, a_text_of_variable_length, a_list_as_attribute, a_long_text),
    *(a_hundred_attributes, folders_in_folders, five_thousand_folders),
    *(a_soft_link, an_external_link, a_link_to_nowhere, a_virtual_dataset, external_storage),
    *(chunks, a_filter, a_checksum_filter_on_ids, a_resizable_dataset, data_in_the_header),
    *(wider_vectors, big_endian_vectors, whole_numbers_as_vectors, a_signed_status, a_wide_digest),
    *(numbers_as_ids, records_as_ids, ids_that_are_no_utf_8),
    *(a_row_too_few, an_id_too_many, a_short_digest, flat_vectors, vectors_of_three_axes),
    *(a_single_number, nothing_at_all, another_dataset, a_missing_dataset, a_folder),
    *(another_format, a_newer_schema, no_schema, no_key, an_index_in_words, a_format_of_many_words),
    *(vectors_that_are_declared_but_not_stored, rows_that_are_declared_but_not_stored),
    ids_that_are_declared_but_not_stored,
]


def as_users_have_it() -> ModuleType:
    """The module without the checks of types that tests add at every call, which would refuse some of the frauds."""
    spec = importlib.util.spec_from_file_location("shards_in_use", shards.__file__)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


IN_USE = as_users_have_it()


def refusal(folder: Path, fraud: Callable[[h5py.File, Path], None], read: str = "read_shard") -> str:
    """What is said of a shard after the fraud; its name carries the right digest."""
    other = folder / write_shard(folder, a_shard())
    image = io.BytesIO(to_bytes(a_shard()))
    with h5py.File(image, "r+") as file:
        fraud(file, other)
    path = named(folder, image.getvalue())
    with pytest.raises(CacheError) as caught:
        getattr(IN_USE, read)(path, max_bytes=100 * LIMIT)
    assert path.name in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("fraud", FRAUDS, ids=lambda fraud: fraud.__name__)
def test_a_file_that_is_no_shard_is_refused_at_once_although_its_digest_is_right(tmp_path: Path, fraud):
    start = time.perf_counter()
    assert refusal(tmp_path, fraud)
    assert time.perf_counter() - start < 2


@pytest.mark.parametrize("fraud", [f for f in FRAUDS if f is not data_in_the_header], ids=lambda f: f.__name__)
def test_what_is_no_shard_has_no_facts(tmp_path: Path, fraud):
    """Data in the header can be read without harm; only a view of the file's bytes needs it elsewhere."""
    assert refusal(tmp_path, fraud, "read_facts")


@pytest.mark.parametrize("ids", [["dQw4w9WgXcQ", "-Abc_12345", "00123456789"], ["a b", "\u00e4", "NA"]])
def test_facts_are_those_of_the_whole_shard(tmp_path: Path, ids: list[str]):
    path = tmp_path / write_shard(tmp_path, a_shard(ids=ids))
    facts, shard = read_facts(path, max_bytes=LIMIT), read_shard(path, max_bytes=LIMIT)
    for found in (facts, ShardFacts.of(shard)):
        assert (found.kind, found.index, found.encoder, found.key) == ("image", 7, "an encoder", "a key")
        assert (found.dim, found.ids) == (DIM, ids)
        np.testing.assert_array_equal(found.status, shard.status)
        np.testing.assert_array_equal(found.source_digest, shard.source_digest)


@pytest.mark.parametrize("raw", [b"", b"not HDF5", to_bytes(a_shard())[:-9]], ids=["empty", "text", "cut"])
def test_a_file_that_ends_early_has_no_facts(tmp_path: Path, raw: bytes):
    with pytest.raises(CacheError, match="cannot be read"):
        read_facts(named(tmp_path, raw), max_bytes=LIMIT)


@pytest.mark.parametrize(
    ("fraud", "reason"),
    [
        (a_soft_link, "status is a link"),
        (an_external_link, "embedding is a link"),
        (a_link_to_nowhere, "embedding is a link"),
        (a_virtual_dataset, "embedding takes its data from another file"),
        (external_storage, "status takes its data from another file"),
        (chunks, "embedding is chunked or filtered"),
        (a_filter, "embedding is chunked or filtered"),
        (wider_vectors, "embedding is float32, not float16"),
        (a_wide_digest, "source_digest is uint16, not uint8"),
        (a_signed_status, "status is int8, not uint8"),
        (vectors_that_are_declared_but_not_stored, "embedding declares 1,500,000,000,000 bytes and stores 0"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_would_lead_out_of_the_file_fill_the_memory_or_be_misread_is_refused_for_that_reason(
    tmp_path: Path, fraud, reason: str
):
    assert reason in refusal(tmp_path, fraud)


@pytest.mark.parametrize("raw", [b"", b"not HDF5", b"\x89HDF\r\n\x1a\n" + bytes(100)], ids=["empty", "text", "zeros"])
def test_a_file_that_is_no_hdf5_is_refused_although_its_digest_is_right(tmp_path: Path, raw: bytes):
    with pytest.raises(CacheError, match="is not a shard of this version of vp"):
        read_shard(named(tmp_path, raw), max_bytes=LIMIT)


ON_A_FULL_DISK = """
import resource, sys
from pathlib import Path
import numpy as np
from features.errors import StorageError
from features.shards import Shard, write_shard
{a_shard}
resource.setrlimit(resource.RLIMIT_FSIZE, (1_024, 1_024))
try:
    write_shard(Path(sys.argv[1]), a_shard())
except StorageError as error:
    print(error)
"""


def test_where_there_is_no_room_for_a_shard_nothing_is_left_and_nothing_crashes(tmp_path: Path):
    """Writing through HDF5 itself would end the interpreter with a segmentation fault."""
    script = ON_A_FULL_DISK.format(a_shard=inspect.getsource(a_shard))
    command = [sys.executable, "-c", script, tmp_path]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (process.returncode, process.stderr) == (0, "")
    assert "File too large" in process.stdout
    assert not list(tmp_path.iterdir())


def test_memory_that_is_read_into_again_and_again_gives_the_same_shards(tmp_path):
    """Large and small files in turn: nothing of one is left in the other, and a cut file is told as ever."""
    one_row = {"status": np.zeros(1, np.uint8), "source_digest": np.ones((1, 16), np.uint8)}
    both = [a_shard(), a_shard(ids=["only-one"], embedding=np.ones((1, 3), np.float16), **one_row)]
    names, memory = [write_shard(tmp_path, shard) for shard in both], ShardMemory()
    for turn in (0, 1, 0, 1, 1, 0):
        assert_equal(read_shard(tmp_path / names[turn], max_bytes=LIMIT, memory=memory), both[turn])
    raw = (tmp_path / names[0]).read_bytes()
    (tmp_path / names[0]).write_bytes(raw[:-1])
    with pytest.raises(CacheError, match="do not match its name"):
        read_shard(tmp_path / names[0], max_bytes=LIMIT, memory=memory)


def false_lengths(image: bytes) -> bytes:
    """A file whose texts of variable length claim four gigabytes each: length, place and index refer to one."""
    changed = bytearray(image)
    heap = image.find(b"GCOL")
    for index in range(1, 9):
        at = image.find(struct.pack("<QI", heap, index)) - 4
        if at >= 0:
            changed[at : at + 4] = struct.pack("<I", 0xFFFFFFF0)
    assert bytes(changed) != image
    return bytes(changed)


def one_text_for_all_ids(image: bytes) -> bytes:
    """A file whose ids are all the same long text, stored once."""
    with h5py.File(io.BytesIO(image)) as file:
        start, rows = file["id"].id.get_offset(), file["id"].shape[0]
    return image[:start] + image[start : start + 16] * rows + image[start + 16 * rows :]


def bombs(folder: Path) -> list[Path]:
    """Files with the right digest in their names that would take gigabytes or seconds if they were believed."""
    rows = 2_000
    sound = to_bytes(
        a_shard(
            ids=[f"id {row}" for row in range(rows)],
            embedding=np.zeros((rows, DIM), np.float16),
            status=np.zeros(rows, np.uint8),
            source_digest=np.zeros((rows, 16), np.uint8),
        )
    )

    def spoiled(fraud, raw=sound):
        image = io.BytesIO(raw)
        with h5py.File(image, "r+") as file:
            fraud(file, folder / "other.h5")
        return image.getvalue()

    def long_id(file, _other):
        ids = ["x" * 1_000_000, *("é" for _ in range(rows - 1))]
        put(file, "id", data=np.array(ids, dtype=h5py.string_dtype("utf-8")))

    raws = [
        spoiled(vectors_that_are_declared_but_not_stored, to_bytes(a_shard())),
        spoiled(rows_that_are_declared_but_not_stored),
        spoiled(ids_that_are_declared_but_not_stored, to_bytes(a_shard())),
        spoiled(five_thousand_folders),
        false_lengths(spoiled(a_text_of_variable_length)),
        false_lengths(spoiled(ids_of_variable_length, to_bytes(a_shard()))),
        one_text_for_all_ids(spoiled(long_id)),
    ]
    return [named(folder, raw) for raw in raws]


READ_BOMBS = """
import resource, sys, time
from pathlib import Path
from features.errors import CacheError
from features.shards import max_shard_bytes, read_facts, read_shard
limit = max_shard_bytes(1024, 768)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in map(Path, sys.argv[1:]):
    for read in (read_shard, read_facts):
        start = time.process_time()
        try:
            read(path, max_bytes=limit)
        except CacheError:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            print(f"{time.process_time() - start:.3f}", (peak - before) // 1024)
"""


def test_a_crafted_file_takes_neither_a_second_nor_200_megabytes_before_it_is_refused(tmp_path: Path):
    paths = bombs(tmp_path)
    command = [sys.executable, "-c", READ_BOMBS, *map(str, paths)]
    process = subprocess.run(command, capture_output=True, text=True, check=True)
    told = [line.split() for line in process.stdout.splitlines()]
    assert len(told) == 2 * len(paths), process.stdout
    assert max(float(seconds) for seconds, _ in told) < 1
    assert max(int(mebibytes) for _, mebibytes in told) < 200


@settings(deadline=None, derandomize=True, max_examples=300)
@given(st.data())
def test_any_change_of_the_bytes_under_a_name_that_fits_is_refused_or_is_a_shard_of_that_size(tmp_path_factory, data):
    folder = tmp_path_factory.getbasetemp() / "any-shard"
    folder.mkdir(exist_ok=True)
    raw = bytearray(to_bytes(a_shard()))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(raw) - 8))
        number = data.draw(st.sampled_from([0, 1, 255, 2**40, 2**63, 2**64 - 1, len(raw), at]))
        width = data.draw(st.sampled_from([1, 2, 4, 8]))
        raw[at : at + width] = number.to_bytes(8, "little")[:width]
    path = named(folder, bytes(raw))
    for read in (IN_USE.read_shard, IN_USE.read_facts):
        try:
            found = read(path, max_bytes=LIMIT)
        except CacheError as error:
            said = str(error)
        else:
            assert len(found.ids) == len(found.status) == len(found.source_digest) <= len(raw)
            said = path.name
        assert path.name in said
    path.unlink()


def test_a_fifo_or_a_device_under_the_name_of_a_shard_does_not_block(tmp_path: Path):
    os.mkfifo(tmp_path / "image-000000.0123456789abcdef.h5")
    (tmp_path / "image-000001.0123456789abcdef.h5").symlink_to("/dev/zero")
    for path in tmp_path.iterdir():
        for read in (read_shard, read_facts):
            with pytest.raises(CacheError, match="is no regular file"):
                read(path, max_bytes=LIMIT)
