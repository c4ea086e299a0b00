"""What lies in a cache folder is told from names and small parts, whatever happened to it."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from features import cache, durable
from features.inspection import Role, inspect, writer_of
from features.lock import WHOLE, writer_lock
from features.plan import MANIFEST, NEXT_MANIFEST, QUARANTINE
from features.store import EmbeddingStore

SOURCE = Path(cache.__file__).parents[1]
GONE = 2**22 + 1
"""No process has this number: Linux gives at most 2^22."""


@pytest.fixture
def whole(cache_world, fake_encoder):
    cache_world.make(fake_encoder())
    return cache_world


class StopError(Exception):
    """The process stops here."""


def interrupted(world, fake_encoder, after):
    """Make a cache, and stop when so many batches are encoded."""
    batches = iter(range(after))

    def count():
        if next(batches, None) is None:
            raise StopError

    with pytest.raises(StopError):
        world.make(fake_encoder(count))


def roles(folder):
    return {entry.path.name: entry.role for entry in inspect(folder).entries}


def test_a_finished_cache_has_all_its_shards_and_nothing_else(whole):
    found = inspect(whole.folder)
    assert (found.missing, found.faults, found.unreadable, found.pending, found.writers) == ([], [], {}, None, [])
    assert {entry.role for entry in found.entries} == {Role.MANIFEST, Role.SHARD, Role.LOCK, Role.TIMING}
    assert found.size_bytes == sum(path.stat().st_size for path in whole.folder.iterdir())


def test_ids_and_statuses_are_those_of_the_store(whole, fake_encoder):
    assert inspect(whole.folder).ids() == whole.table().ids
    (whole.data / "train_val" / "id-003.jpg").write_bytes(b"no image")
    whole.make(fake_encoder())
    assert EmbeddingStore.open(whole.folder).read("image").present.sum() == 21
    assert inspect(whole.folder).statuses() == {"image": {"ok": 21, "unidentified": 1}, "text": {"ok": 22}}


def test_no_byte_of_a_vector_is_read(whole):
    path = sorted(whole.folder.glob("image*.h5"))[0]
    raw = bytearray(path.read_bytes())
    stored = EmbeddingStore.open(whole.folder).read("image").vectors[:8].tobytes()
    at = raw.find(stored)
    raw[at] ^= 1
    path.write_bytes(raw)
    assert inspect(whole.folder).missing == []


@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "folder", "another shard", "loop"])
def test_a_shard_that_cannot_be_used_is_missing(whole, damage):
    first, second, *_ = sorted(whole.folder.glob("text*.h5"))
    raw = first.read_bytes()
    first.unlink()
    if damage == "empty":
        first.write_bytes(b"")
    elif damage == "cut":
        first.write_bytes(raw[:-200])
    elif damage == "folder":
        first.mkdir()
    elif damage == "another shard":
        first.write_bytes(second.read_bytes())
    elif damage == "loop":
        first.symlink_to(first.name)
    found = inspect(whole.folder)
    assert [(shard.kind, shard.index) for shard in found.missing] == [("text", 0)]
    assert found.plan is not None


def test_an_unfinished_plan_is_told_by_its_shards(cache_world, fake_encoder):
    interrupted(cache_world, fake_encoder, after=5)
    found = inspect(cache_world.folder)
    n_files = len(list(cache_world.folder.glob("*.h5")))
    assert found.published is None
    assert (found.pending_there, len(found.pending.shards)) == (n_files, 6)
    assert 0 < n_files < 6
    assert {entry.role for entry in found.entries if entry.path.suffix == ".h5"} == {Role.SHARD}


def test_a_shard_that_no_manifest_names_is_superseded(whole, fake_encoder):
    before = {path.name for path in whole.folder.glob("*.h5")}
    whole.rows[0][1] = "another title"
    whole.write()
    whole.make(fake_encoder())
    superseded = {name for name, role in roles(whole.folder).items() if role is Role.SUPERSEDED}
    assert len(superseded) == 1
    assert superseded < before


def test_while_a_plan_is_pending_the_published_shards_are_still_named(whole, fake_encoder):
    whole.rows[0][1] = "another title"
    whole.write()
    interrupted(whole, fake_encoder, after=0)
    found = inspect(whole.folder)
    assert (found.published is not None, found.pending is not None) == (True, True)
    assert found.pending_there == 5
    assert found.of_role(Role.SUPERSEDED) == []
    assert found.missing == []


@pytest.mark.parametrize("name", [MANIFEST, NEXT_MANIFEST])
@pytest.mark.parametrize(
    "text", ["", "[]", '{"format": "vp-cache", "schema": 2}', '{"format": "vp-cache", "schema": 1}']
)
def test_beside_a_manifest_that_cannot_be_read_no_shard_is_superseded(whole, name, text):
    (whole.folder / "image-000000.0123456789abcdef.h5").write_bytes(b"x")
    (whole.folder / name).write_text(text)
    found = inspect(whole.folder)
    assert len(found.faults) == 1
    assert name in found.faults[0]
    assert found.of_role(Role.SUPERSEDED) == []


def test_a_folder_without_a_manifest_has_no_plan_and_keeps_its_shards(whole):
    (whole.folder / MANIFEST).unlink()
    found = inspect(whole.folder)
    assert (found.plan, found.ids(), found.statuses()) == (None, None, {})
    assert len(found.of_role(Role.SHARD)) == 6


def test_every_file_has_the_role_that_its_name_gives_it(whole, tmp_path):
    temporary = f".tmp-host-1-{'0' * 32}"
    mine = ["notes.txt", "image-000000.h5~", "#manifest.json#", ".tmp-mine", ".part-x.lock", "a.h5"]
    for name in [*mine, temporary, "timing.json", ".part-2-of-4.lock", ".part-2-of-4.holder.json"]:
        (whole.folder / name).write_text("x")
    (whole.folder / "image-000009.0123456789abcdef.h5").mkdir()
    (whole.folder / "image-000008.0123456789abcdef.h5").symlink_to(tmp_path)
    (whole.folder / QUARANTINE).mkdir()
    (whole.folder / QUARANTINE / "text-000000.0123456789abcdef.h5").write_bytes(b"x")
    (whole.folder / QUARANTINE / "kept.txt").write_text("x")
    found = roles(whole.folder)
    assert {name for name, role in found.items() if role is Role.STRAY} == {
        *mine, "kept.txt", "image-000009.0123456789abcdef.h5", "image-000008.0123456789abcdef.h5"
    }  # fmt: skip
    assert found[temporary] is Role.TEMPORARY
    assert found["timing.json"] is Role.TIMING
    assert found[".part-2-of-4.lock"] is found[".part-2-of-4.holder.json"] is Role.LOCK
    assert found["text-000000.0123456789abcdef.h5"] is Role.QUARANTINE


def test_a_writer_is_told_without_taking_its_lock(whole):
    lock = whole.folder / WHOLE.lock_name
    with writer_lock(lock):
        (writer,) = inspect(whole.folder).writers
        assert (writer.pid, writer.host, writer.certain) == (os.getpid(), socket.gethostname(), True)
    assert inspect(whole.folder).writers == []


def test_a_writer_that_died_holds_nothing(tmp_path):
    lock = tmp_path / WHOLE.lock_name
    code = (
        "import os, sys; from pathlib import Path; from features.lock import writer_lock\n"
        "with writer_lock(Path(sys.argv[1])): os._exit(9)"
    )
    subprocess.run([sys.executable, "-c", code, lock], check=False, env={**os.environ, "PYTHONPATH": str(SOURCE)})
    assert lock.with_suffix(".holder.json").exists()
    assert writer_of(lock) is None


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"pid": "x", "host": "h", "since": "s"}'])
def test_a_holder_file_that_tells_nothing_names_nobody(tmp_path, text):
    (tmp_path / ".part-1-of-1.holder.json").write_text(text)
    assert writer_of(tmp_path / WHOLE.lock_name) is None


def test_of_a_writer_on_another_machine_it_is_said_that_it_may_have_ended(tmp_path):
    holder = {"pid": GONE, "host": "elsewhere", "since": "2026-01-01"}
    (tmp_path / ".part-1-of-1.holder.json").write_text(json.dumps(holder))
    writer = writer_of(tmp_path / WHOLE.lock_name)
    assert str(writer) == f"process {GONE} on elsewhere since 2026-01-01 (another machine: it may have ended)"


def test_a_leftover_is_a_temporary_file_whose_process_is_gone(tmp_path):
    host = durable._HOST
    names = {f".tmp-{host}-{GONE}-{'0' * 32}": True, f".tmp-{host}-{os.getpid()}-{'0' * 32}": False}
    names |= {f".tmp-elsewhere-{GONE}-{'0' * 32}": False, ".tmp-mine": False}
    assert {name: durable.is_leftover(tmp_path / name) for name in names} == names
