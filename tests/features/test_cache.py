"""The cache: nothing is lost, nothing is mixed, nothing is done twice."""

import csv
import errno
import os
import random
import subprocess
import sys
import time
from dataclasses import replace
from datetime import datetime

import numpy as np
import pytest

from features import durable
from features.errors import CacheError, LockedError, StorageError
from features.lock import writer_lock
from features.shards import read_shard, write_shard
from features.status import Status
from features.store import EmbeddingStore
from features.text_layout import TextLayout


class Crash(BaseException):
    """The process dies here."""


class FailingCalls(durable.DiskCalls):
    """Raises at the n-th call that changes the disk."""

    def __init__(self, failure, at):
        self.failure, self.at, self.count = failure, at, 0

    def _step(self):
        self.count += 1
        if self.count == self.at:
            raise self.failure

    def create(self, path):
        self._step()
        return super().create(path)

    def write(self, descriptor, data):
        self._step()
        return super().write(descriptor, data[: max(1, len(data) // 2)])  # and every write is short

    def sync(self, descriptor):
        self._step()
        super().sync(descriptor)

    def replace(self, source, target):
        self._step()
        super().replace(source, target)


def make(world, encoder, **changes):
    return world.make(encoder, **changes)


def names(world):
    return sorted(path.name for path in world.folder.glob("*.h5"))


def vectors_by_id(world):
    store = EmbeddingStore.open(world.folder)
    found = {}
    for kind in store.plan.dims:
        read = store.read(kind)
        found[kind] = {
            id_: (tuple(v), s) for id_, v, s in zip(read.ids, read.vectors.tolist(), read.status, strict=True)
        }
    return found


def clean_vectors(world, fake_encoder, tmp_path):
    """What a single clean run over the dataset as it is now gives."""
    here, world.folder = world.folder, tmp_path / f"clean-{random.random()}"
    make(world, fake_encoder())
    found, world.folder = vectors_by_id(world), here
    return found


def test_a_second_run_writes_nothing_and_loads_no_encoder(cache_world, fake_encoder):
    first = make(cache_world, fake_encoder())
    before = {path: path.stat().st_mtime_ns for path in cache_world.folder.iterdir()}
    again = make(cache_world, None)
    assert (first.shards_written, again.shards_written, again.shards_kept) == (6, 0, 6)
    assert {path: path.stat().st_mtime_ns for path in cache_world.folder.iterdir()} == before


def test_equal_datasets_give_equal_shard_names(make_world, fake_encoder, tmp_path):
    worlds = [make_world(tmp_path / name) for name in "ab"]
    for world in worlds:
        make(world, fake_encoder())
    assert names(worlds[0]) == names(worlds[1])


def test_only_missing_shards_are_made_again(cache_world, fake_encoder):
    make(cache_world, fake_encoder())
    before = names(cache_world)
    (cache_world.folder / before[1]).unlink()
    encoder = fake_encoder()
    summary = make(cache_world, encoder)
    assert (summary.shards_written, encoder.images, encoder.texts) == (1, 8, 0)
    assert names(cache_world) == before


def test_times_from_the_future_and_a_clock_that_went_back_change_nothing(cache_world, fake_encoder, monkeypatch):
    make(cache_world, fake_encoder())
    before = names(cache_world)
    for path in [*cache_world.folder.iterdir(), *cache_world.data.rglob("*")]:
        os.utime(path, (4e9, 4e9))

    class Yesterday(datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(1970, 1, 2, tzinfo=tz)

    for module in ("features.cache", "features.lock"):
        monkeypatch.setattr(f"{module}.datetime", Yesterday)
    assert make(cache_world, None).shards_kept == 6
    (cache_world.folder / before[0]).unlink()
    assert make(cache_world, fake_encoder()).shards_written == 1
    assert names(cache_world) == before


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "folder"])
def test_a_damaged_shard_is_set_aside_and_only_it_is_made_again(cache_world, fake_encoder, damage):
    make(cache_world, fake_encoder())
    before = names(cache_world)
    path = cache_world.folder / before[0]
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.unlink()
    if damage == "folder":
        path.mkdir()
    else:
        path.write_bytes({"flip": bytes(raw), "cut": bytes(raw[:100]), "empty": b""}[damage])
    with pytest.raises(CacheError, match="damaged"):
        vectors_by_id(cache_world)
    summary = make(cache_world, fake_encoder())
    assert summary.shards_written == 1
    assert names(cache_world) == before
    assert [path.name for path in (cache_world.folder / "quarantine").iterdir()] == [before[0]]


def test_a_shard_with_a_status_that_nobody_knows_is_made_again(cache_world, fake_encoder):
    make(cache_world, fake_encoder())
    before = names(cache_world)
    path = cache_world.folder / before[0]
    shard = read_shard(path, max_bytes=10**6)
    path.unlink()
    write_shard(cache_world.folder, replace(shard, status=np.full_like(shard.status, 77)))
    assert make(cache_world, fake_encoder()).shards_written == 1
    assert names(cache_world) == before


def test_another_encoder_is_refused_with_both_values(cache_world, fake_encoder):
    make(cache_world, fake_encoder())
    with pytest.raises(CacheError, match="precision: 'bf16' here, 'fp32' there"):
        make(cache_world, fake_encoder(), semantic={"weights": "w", "precision": "bf16"})


@pytest.mark.parametrize("change", ["append", "remove", "reorder", "title", "thumbnail", "appears"])
def test_a_changed_dataset_costs_only_what_changed(cache_world, fake_encoder, tmp_path, change):
    world = cache_world
    missing = world.data / "train_val" / "id-005.jpg"
    missing.unlink()
    make(world, fake_encoder())
    old = vectors_by_id(world)
    images, texts = {
        "append": (1, 1), "remove": (0, 0), "reorder": (0, 0), "title": (0, 1), "thumbnail": (1, 0), "appears": (1, 0),
    }[change]  # fmt: skip
    if change == "append":
        world.rows.append(["id-new", "a new title", 5, 2015])
        world.paint("id-new", 31)
    elif change == "remove":
        del world.rows[3]
    elif change == "reorder":
        world.rows.reverse()
    elif change == "title":
        world.rows[9][1] = "another title altogether"
    elif change == "thumbnail":
        world.paint("id-009", 32)
    else:
        world.paint("id-005", 33)
    world.write()
    encoder = fake_encoder()
    make(world, encoder)
    assert (encoder.images, encoder.texts) == (images, texts)
    assert vectors_by_id(world) == clean_vectors(world, fake_encoder, tmp_path)
    assert (vectors_by_id(world) == old) == (change == "reorder")
    make(world, None)  # and now it is finished


def test_a_thumbnail_that_was_only_touched_is_not_encoded_again(cache_world, fake_encoder):
    make(cache_world, fake_encoder())
    os.utime(cache_world.data / "train_val" / "id-000.jpg", (1, 1))
    make(cache_world, None)


def test_a_superseded_shard_never_comes_back(cache_world, fake_encoder, tmp_path):
    make(cache_world, fake_encoder())
    cache_world.paint("id-000", 34)
    make(cache_world, fake_encoder())
    named = EmbeddingStore.open(cache_world.folder).plan.shards[0].file
    (cache_world.folder / named).unlink()
    make(cache_world, fake_encoder())
    assert vectors_by_id(cache_world) == clean_vectors(cache_world, fake_encoder, tmp_path)


def test_the_old_cache_stays_readable_until_the_new_one_is_whole(cache_world, fake_encoder):
    make(cache_world, fake_encoder())
    old = vectors_by_id(cache_world)
    for row in cache_world.rows:
        row[1] += " changed"
    cache_world.write()

    def die():
        raise Crash

    with pytest.raises(Crash):
        make(cache_world, fake_encoder(die))
    assert vectors_by_id(cache_world) == old


def test_an_unfinished_cache_says_how_far_it_is(cache_world, fake_encoder):
    batches = iter(range(100))

    def die_at_the_fifth_batch():
        if next(batches) == 4:
            raise Crash

    with pytest.raises(Crash):
        make(cache_world, fake_encoder(die_at_the_fifth_batch))
    with pytest.raises(CacheError, match=r"incomplete \(2 of 6 shards\): run `vp extract --model .*` again"):
        EmbeddingStore.open(cache_world.folder)


def test_any_sequence_of_kills_ends_in_the_undisturbed_cache(cache_world, fake_encoder, tmp_path):
    rng = random.Random(5)
    make(cache_world, fake_encoder())
    undisturbed = names(cache_world)
    cache_world.folder = tmp_path / "disturbed"

    def maybe_die():
        if rng.random() < 0.3:
            raise Crash

    for _ in range(60):
        try:
            make(cache_world, fake_encoder(maybe_die))
            break
        except Crash:
            continue
    assert names(cache_world) == undisturbed
    assert not list(cache_world.folder.glob(".tmp*"))


@pytest.mark.parametrize(
    "failure_every",
    [
        (Crash(), 7),
        pytest.param((Crash(), 1), marks=pytest.mark.slow),
        pytest.param((OSError(errno.ENOSPC, "No space left on device"), 1), marks=pytest.mark.slow),
        pytest.param((OSError(errno.EIO, "I/O"), 1), marks=pytest.mark.slow),
    ],
)
def test_stopping_before_any_step_on_the_disk_loses_nothing(
    cache_world, fake_encoder, tmp_path, monkeypatch, failure_every
):
    failure, every = failure_every
    make(cache_world, fake_encoder(), rows_per_shard=16)
    undisturbed = names(cache_world)
    for at in range(1, 500, every):
        cache_world.folder = tmp_path / f"stopped-{at}"
        failing = FailingCalls(failure, at)
        monkeypatch.setattr(durable, "calls", failing)
        if _survives(cache_world, fake_encoder):
            break
        monkeypatch.setattr(durable, "calls", durable.DiskCalls())
        make(cache_world, fake_encoder(), rows_per_shard=16)
        assert names(cache_world) == undisturbed, f"after stopping at step {at}"
        assert not list(cache_world.folder.glob(".tmp*"))
    assert at > 20


def _survives(world, fake_encoder):
    try:
        make(world, fake_encoder(), rows_per_shard=16)
    except Crash:
        return False
    except StorageError as error:
        message = str(error)
        assert "cannot write" in message
        assert "run the same command again" in message
        return False
    return True


def test_bad_thumbnails_keep_their_rows_with_a_status(cache_world, fake_encoder):
    (cache_world.data / "train_val" / "id-001.jpg").unlink()
    (cache_world.data / "train_val" / "id-002.jpg").write_text("<html>not found</html>")
    cache_world.rows[3][0] = "../../etc/passwd"
    cache_world.write()
    summary = make(cache_world, fake_encoder())
    read = EmbeddingStore.open(cache_world.folder).read("image")
    assert read.status[:5].tolist() == [Status.OK, Status.MISSING, Status.UNIDENTIFIED, Status.BAD_ID, Status.OK]
    assert not read.vectors[1:4].any()
    assert [(bad.row, bad.status) for bad in summary.bad_rows] == [(1, "missing"), (2, "unidentified"), (3, "bad_id")]


def test_repeats_inside_a_shard_are_encoded_once(cache_world, fake_encoder):
    for row in range(8):
        cache_world.paint(f"id-{row:03d}", 77)
        cache_world.rows[row][1] = "the same title"
    cache_world.write()
    encoder = fake_encoder()
    make(cache_world, encoder)
    assert (encoder.images, encoder.texts) == (1 + 14, 1 + 14)
    read = EmbeddingStore.open(cache_world.folder).read("image")
    assert (read.vectors[:8] == read.vectors[0]).all()


def test_a_vector_that_is_not_finite_is_marked_and_never_passes_as_good(cache_world, fake_encoder):
    class Broken(fake_encoder):
        def encode_tokens(self, tokens, pad_to):
            return np.full((len(tokens), 4), np.nan, np.float32)

    summary = make(cache_world, Broken())
    assert summary.statuses["text"] == {"nonfinite": 22}


def test_one_row_is_enough(cache_world, fake_encoder):
    del cache_world.rows[1:]
    cache_world.write()
    assert make(cache_world, fake_encoder(), batch_size=32).vectors_encoded == 2


def test_an_empty_text_is_marked_but_is_no_fault(cache_world, fake_encoder):
    cache_world.rows[0][1] = ""
    cache_world.write()
    summary = make(cache_world, fake_encoder())
    assert summary.statuses["text"] == {"empty_text": 1, "ok": 21}
    assert not summary.bad_rows


def test_a_second_writer_is_told_who_is_writing(cache_world, fake_encoder):
    with (
        writer_lock(cache_world.folder / ".part-1-of-1.lock"),
        pytest.raises(LockedError, match=f"process {os.getpid()} on "),
    ):
        make(cache_world, fake_encoder())


def test_the_lock_of_a_killed_process_is_free_at_once(tmp_path):
    script = (
        "import sys, time; from pathlib import Path; from features.lock import writer_lock\n"
        f"with writer_lock(Path({str(tmp_path / 'x.lock')!r})):\n print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(LockedError), writer_lock(tmp_path / "x.lock"):
            pass
        process.kill()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            with writer_lock(tmp_path / "x.lock"):
                return
        except LockedError:
            time.sleep(0.05)
    pytest.fail("the lock outlived its holder")


def test_vectors_are_read_back_in_the_order_that_was_asked_for(cache_world, fake_encoder):
    make(cache_world, fake_encoder())
    read = EmbeddingStore.open(cache_world.folder).read("text")
    turned = read.aligned(read.ids[::-1])
    assert (turned.vectors == read.vectors[::-1]).all()
    with pytest.raises(CacheError, match=r"1 of 2 videos have no embedding \(first: nobody\)"):
        read.aligned([read.ids[0], "nobody"])


def test_texts_are_padded_to_a_multiple_of_eight_and_no_further_than_the_encoder_reads(cache_world, fake_encoder):
    encoder = fake_encoder()
    make(cache_world, encoder)
    assert set(encoder.pads) <= {8, 16, 20}
    whole = fake_encoder()
    whole.text_layout = TextLayout.whole(20)
    cache_world.folder = cache_world.folder.with_name("whole")
    make(cache_world, whole)
    assert set(whole.pads) == {20}


def test_titles_and_descriptions_are_encoded_alone_where_each_has_its_vector(cache_world, fake_encoder):
    columns = [["id", "title", "description", "views", "year"]]
    rows = [
        [id_, f"title {row}", f"words {row % 3}" * (row % 2), views, 2020]
        for row, (id_, _, views, _) in enumerate(cache_world.rows)
    ]
    with (cache_world.data / "train_val.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([*columns, *rows])
    summary = cache_world.make(fake_encoder(), dims={"title": 4, "description": 4})
    store, encoder = EmbeddingStore.open(cache_world.folder), fake_encoder()
    for kind, texts in (("title", [row[1] for row in rows]), ("description", [row[2] for row in rows])):
        read = store.read(kind)
        tokens, _ = encoder.tokenize([text or "x" for text in texts])
        expected = encoder.encode_tokens(tokens, 20)
        there = np.array([bool(text) for text in texts])
        np.testing.assert_array_equal(read.present, there)
        np.testing.assert_array_equal(read.vectors[there], expected[there].astype(np.float16))
    assert summary.statuses["description"] == {"ok": 11, "empty_text": 11}
