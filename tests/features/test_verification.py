"""Every fault of a cache is reported, each with what repairs it, and a whole cache has none."""

import dataclasses
import json
import shutil

import h5py
import numpy as np
import pytest

from features.plan import MANIFEST, NEXT_MANIFEST, read_plan, write_plan
from features.progress import Silent
from features.shards import read_shard, write_shard
from features.verification import verify_cache

EXTRACT = "vp extract --model fake"


@pytest.fixture
def whole(cache_world, fake_encoder):
    cache_world.make(fake_encoder())
    return cache_world


def faults(world, *, table=True, sources=True):
    found = verify_cache(world.folder, world.table() if table else None, EXTRACT, Silent(), sources=sources)
    return {(fault.where.relative_to(world.folder).as_posix(), fault.what) for fault in found.faults}


def shard_path(world, kind="image", index=0):
    return next(world.folder.glob(f"{kind}-{index:06d}.*.h5"))


def republished(world, kind="image", index=0, **changes):
    """Put a changed shard, with a right digest, in the place of one, and name it in the manifest."""
    path = shard_path(world, kind, index)
    shard = dataclasses.replace(read_shard(path, max_bytes=10**7), **changes)
    path.unlink()
    name = write_shard(world.folder, shard)
    plan = read_plan(world.folder / MANIFEST)
    files = {(part.kind, part.index): part.file for part in plan.shards} | {(kind, index): name}
    write_plan(world.folder / MANIFEST, plan.with_files(files))
    return name


def test_a_whole_cache_has_no_fault(whole):
    found = verify_cache(whole.folder, whole.table(), EXTRACT, Silent())
    assert (found.faults, found.shards) == ([], 6)


def damage(path, how):
    raw = path.read_bytes()
    if how == "cut":
        path.write_bytes(raw[:-1])
    elif how == "flipped":
        path.write_bytes(bytes([*raw[:-50], raw[-50] ^ 1, *raw[-49:]]))
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "longer":
        path.write_bytes(raw + bytes(10**7))
    else:
        path.unlink()
        if how == "folder":
            path.mkdir()


@pytest.mark.parametrize(
    ("how", "what"),
    [
        ("cut", "is damaged (its bytes do not match its name)"),
        ("flipped", "is damaged (its bytes do not match its name)"),
        ("empty", "is damaged (its bytes do not match its name)"),
        ("longer", "where at most"),
        ("folder", "cannot be read (Is a directory)"),
        ("missing", "is missing"),
    ],
)
def test_a_damaged_shard_is_one_fault_that_extract_repairs(whole, how, what):
    path = shard_path(whole)
    damage(path, how)
    (fault,) = verify_cache(whole.folder, whole.table(), EXTRACT, Silent()).faults
    assert fault.where == path
    assert what in fault.what
    assert fault.repair == f"`{EXTRACT}`"


def test_every_fault_is_reported(whole):
    paths = sorted(whole.folder.glob("*.h5"))
    for path, how in zip(paths, ["cut", "flipped", "empty", "longer", "folder", "missing"], strict=True):
        damage(path, how)
    assert {where for where, _ in faults(whole)} == {path.name for path in paths}


def test_extract_repairs_what_it_is_said_to_repair(whole, fake_encoder):
    for path, how in zip(sorted(whole.folder.glob("*.h5")), ["cut", "empty", "folder", "missing"], strict=False):
        damage(path, how)
    whole.make(fake_encoder())
    assert faults(whole) == set()


def test_values_that_cannot_be_are_reported_though_the_digest_is_right(whole):
    embedding = np.ones((8, 3), np.float16)
    embedding[2, 1], embedding[3, 0] = np.nan, np.inf
    status = np.zeros(8, np.uint8)
    status[3], status[5] = 1, 200
    digests = np.ones((8, 16), np.uint8)
    digests[6] = 0
    name = republished(whole, embedding=embedding, status=status, source_digest=digests)
    assert faults(whole, sources=False) == {
        (name, "holds 1 row ('id-005') with an unknown status"),
        (name, "holds 1 row ('id-002') marked ok whose vector is not finite"),
        (name, "holds 1 row ('id-006') marked ok without the digest of a source"),
    }
    assert (".", "8 rows with another thumbnail now ('id-000', 'id-001', 'id-002', 'id-003', 'id-004', ...)") in faults(
        whole
    )


def test_a_shard_of_another_encoder_is_refused_whatever_the_manifest_says(whole):
    name = republished(whole, encoder="0" * 64)
    ((where, what),) = faults(whole)
    assert where == name
    assert what.startswith("is another shard than the manifest says: encoder 000000000000, not")


@pytest.mark.parametrize("kind", ["image", "text"])
def test_ids_that_are_not_those_of_the_plan_are_found_without_the_dataset(whole, kind):
    ids = [f"id-{row:03d}" for row in (1, 0, 2, 3, 4, 5, 6, 7)]
    name = republished(whole, kind, ids=ids)
    assert faults(whole, table=False) == {(name, "holds other ids or texts than the plan")}


def test_text_digests_that_are_not_those_of_the_plan_are_found(whole):
    name = republished(whole, "text", source_digest=np.ones((8, 16), np.uint8))
    assert faults(whole, table=False) == {(name, "holds other ids or texts than the plan")}


def test_a_shard_of_another_size_is_found(whole):
    shard = read_shard(shard_path(whole), max_bytes=10**7)
    name = republished(whole, embedding=shard.embedding[:, :2])
    assert faults(whole) == {(name, "is another shard than the manifest says: dim 2, not 3")}


@pytest.mark.parametrize(
    ("text", "what", "repair"),
    [
        ("", "is not readable as a manifest", "move"),
        ('{"format": "vp-cache", "sch', "is not readable as a manifest", "move"),
        ('{"format": "vp-cache", "schema": 2}', "has schema 2, this vp reads schema 1", "upgrade vp"),
        ('{"format": "vp-cache", "schema": 0}', "has schema 0, this vp reads schema 1", "move"),
        ('{"format": "vp-cache", "schema": 1, "rows": "x"}', "is not a whole manifest", "move"),
        ("[1]", "is not a manifest of vp", "move"),
    ],
)
def test_a_manifest_that_cannot_be_read_is_a_fault_and_says_what_to_do(whole, text, what, repair):
    (whole.folder / MANIFEST).write_text(text)
    (fault,) = verify_cache(whole.folder, whole.table(), EXTRACT, Silent()).faults
    assert what in fault.what
    assert fault.repair.startswith(repair)


def test_a_manifest_that_is_missing_is_a_fault(whole):
    (whole.folder / MANIFEST).unlink()
    assert faults(whole) == {(".", "holds no manifest")}


def test_a_plan_that_is_not_finished_is_a_fault(whole):
    shutil.copy(whole.folder / MANIFEST, whole.folder / NEXT_MANIFEST)
    shard_path(whole, "text", 2).unlink()
    assert (".", "is not finished: 5 of 6 planned shards are there") in faults(whole)


def test_a_manifest_that_names_no_file_is_a_fault(whole):
    document = json.loads((whole.folder / MANIFEST).read_text())
    document["shards"][0]["file"] = ""
    (whole.folder / MANIFEST).write_text(json.dumps(document))
    assert faults(whole) == {(".", "its manifest does not name all its shards")}


def test_rows_that_the_dataset_has_otherwise_are_faults(whole):
    whole.rows[0][1] = "another title"
    del whole.rows[21]
    whole.rows.append(["id-new", "a new one", 5, 2020])
    whole.write()
    whole.paint("id-004", 99)
    assert {what for _, what in faults(whole)} == {
        "1 row of the dataset not in the cache ('id-new')",
        "1 row no longer in the dataset ('id-021')",
        "1 row with another text now ('id-000')",
        "1 row with another thumbnail now ('id-004')",
    }


def test_without_sources_no_thumbnail_is_compared(whole):
    whole.paint("id-004", 99)
    assert faults(whole, sources=False) == set()


def test_stray_files_are_no_fault_and_a_copy_elsewhere_verifies(whole, tmp_path):
    (whole.folder / "manifest.json~").write_text("x")
    (whole.folder / f".tmp-host-1-{'0' * 32}").write_text("x")
    (whole.folder / "image-000000.0123456789abcdef.h5").write_text("x")
    shutil.copytree(whole.folder, tmp_path / "ä b" / "cache")
    whole.folder = tmp_path / "ä b" / "cache"
    assert faults(whole) == set()


def test_a_shard_with_a_link_is_refused_before_it_is_followed(whole, tmp_path):
    path = shard_path(whole)
    with h5py.File(path, "a") as file:
        del file["embedding"]
        file["embedding"] = h5py.ExternalLink(str(tmp_path / "elsewhere.h5"), "/x")
    assert faults(whole) == {(path.name, "is damaged (its bytes do not match its name)")}


def test_progress_counts_every_shard_and_every_fault(whole):
    class Counting(Silent):
        told: list[tuple[str, int]] = []  # noqa: RUF012 - one test, one list
        bad = 0

        def begin(self, label, total, unit):
            self.told.append((unit, total))

        def advance(self, units, *, bad=0, bottleneck=""):
            Counting.bad += bad

    damage(shard_path(whole), "cut")
    verify_cache(whole.folder, whole.table(), EXTRACT, Counting())
    assert Counting.told == [("shards", 6), ("files", 22)]
    assert Counting.bad == 1
