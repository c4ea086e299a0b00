"""A finished cache gives every video its own vectors; one that is unfinished, mixed up or damaged gives none."""

import itertools
import json
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.decode import decode_bytes
from features.errors import CacheError
from features.plan import MANIFEST, CachePlan, PlannedShard, shard_ranges, write_plan
from features.preprocess import Thumbnail
from features.shards import Shard, read_shard, write_shard
from features.status import Status
from features.store import READ_THREADS, Embeddings, EmbeddingStore

N_ROWS, DIMS = 22, {"image": 3, "text": 4}
SHARD = EmbeddingStore.shard


def draw_cache(folder, rows_per_shard=8):
    """Shards of images and of texts, three of each, of 22 videos."""
    draw, shards, files = np.random.default_rng(0), [], {}
    for (index, start, stop), kind in itertools.product(shard_ranges(N_ROWS, rows_per_shard), DIMS):
        planned = PlannedShard(kind, index, start, stop, key=f"key of {kind} {index}")
        shard = Shard(
            kind=kind,
            index=index,
            encoder="an encoder",
            key=planned.key,
            ids=[f"id-{row}" for row in range(start, stop)],
            embedding=draw.normal(size=(stop - start, DIMS[kind])).astype(np.float16),
            status=draw.integers(0, 3, stop - start, np.uint8),
            source_digest=draw.integers(0, 256, (stop - start, 16), np.uint8),
            notes={},
        )
        shards.append(planned)
        files[kind, index] = write_shard(folder, shard)
    plan = CachePlan({"weights": "w"}, {}, "train_val", N_ROWS, rows_per_shard, 4, DIMS, tuple(shards))
    write_plan(folder / MANIFEST, plan.with_files(files))


@pytest.fixture(scope="module")
def drawn_cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("store") / "cache"
    draw_cache(folder)
    return folder


@pytest.fixture
def cache(drawn_cache, tmp_path):
    """A copy of the drawn cache, to spoil."""
    return shutil.copytree(drawn_cache, tmp_path / "cache")


def edited(cache, edit):
    """Change the manifest by hand."""
    path = cache / "manifest.json"
    document = json.loads(path.read_text())
    edit(document)
    path.write_text(json.dumps(document))


def refused(cache, kind="image", match=""):
    with pytest.raises(CacheError, match=match):
        EmbeddingStore.open(cache).read(kind)
    return True


def drawn_embeddings(rows):
    return Embeddings(
        [f"id-{row}" for row in range(rows)],
        np.arange(3 * rows, dtype=np.float16).reshape(rows, 3),
        (np.arange(rows) % 2).astype(np.uint8),
        np.arange(16 * rows).astype(np.uint8).reshape(rows, 16),
    )


def cut_nothing(data):
    rgb, status, digest = decode_bytes(data)
    return Thumbnail(np.ascontiguousarray(rgb.transpose(2, 0, 1)), status, digest)


def test_every_video_has_the_vectors_of_its_own_thumbnail_and_text(cache_world, fake_encoder):
    table, encoder = cache_world.table(), fake_encoder()
    cache_world.make(fake_encoder(), cut=cut_nothing)
    store = EmbeddingStore.open(cache_world.folder)
    images, texts = store.read("image"), store.read("text")
    assert images.ids == texts.ids == table.ids
    for row in range(len(table)):
        pixels = cut_nothing(table.thumbnail(row).read_bytes()).pixels
        tokens, _ = encoder.tokenize([table.texts(row, row + 1)[0].title])
        assert np.array_equal(images.vectors[row], encoder.encode_images(pixels[None])[0].astype(np.float16))
        assert np.array_equal(texts.vectors[row], encoder.encode_tokens(tokens, 24)[0].astype(np.float16))


@settings(deadline=None, derandomize=True, max_examples=50)
@given(st.integers(1, 30).flatmap(lambda rows: st.tuples(st.just(rows), st.lists(st.integers(0, rows - 1)))))
def test_rows_are_aligned_with_any_ids_in_any_order(case):
    rows, wanted = case
    every = drawn_embeddings(rows)
    every_row = zip(every.vectors.tolist(), every.status.tolist(), every.source_digest.tolist(), strict=True)
    by_id = dict(zip(every.ids, every_row, strict=True))
    ids = [f"id-{row}" for row in wanted]
    found = every.aligned(ids)
    assert found.ids == ids
    found_rows = zip(found.vectors.tolist(), found.status.tolist(), found.source_digest.tolist(), strict=True)
    assert list(found_rows) == [by_id[id_] for id_ in ids]


def test_aligning_takes_nothing_away_from_the_whole(cache):
    every = EmbeddingStore.open(cache).read("text")
    turned = every.aligned(every.ids[::-1])
    turned.vectors[:] = 0
    assert every.vectors.any(axis=1).all()
    assert np.array_equal(every.aligned(list(every.ids)).vectors, every.vectors)


def test_ids_without_an_embedding_are_counted_and_the_first_five_named():
    ids = ["id-0", *(f"new-{number}" for number in range(7)), "id-1"]
    with pytest.raises(CacheError) as caught:
        drawn_embeddings(3).aligned(ids)
    assert str(caught.value) == (
        "7 of 9 videos have no embedding (first: new-0, new-1, new-2, new-3, new-4): "
        "the dataset has changed since; run `vp extract` again"
    )


@pytest.mark.parametrize(
    ("tag", "model"), [("tiny", "tiny"), ("ViT-B-32", "ViT-B-32"), ("openai--clip-x", "openai/clip-x")]
)
def test_the_command_that_mends_a_cache_names_its_own_encoder(cache, tmp_path, tag, model):
    folder = tmp_path / tag / "train_val"
    with pytest.raises(CacheError, match=f": run `vp extract --model {model}`$"):
        EmbeddingStore.open(folder)
    edited(cache, lambda document: document["environment"].update(source=model))
    shutil.copytree(cache, folder)
    store = EmbeddingStore.open(folder)
    assert store.extract == f"vp extract --model {model}"
    with pytest.raises(CacheError, match=f"; run `vp extract --model {model}` again$"):
        store.read("text").aligned(["nobody"], store.extract)
    (folder / "manifest.json").rename(folder / "manifest.next.json")
    with pytest.raises(CacheError, match=f"6 of 6 shards.: run `vp extract --model {model}` again$"):
        EmbeddingStore.open(folder)


def test_a_row_is_present_only_if_its_status_is_ok():
    labels, status = [value.label for value in Status], np.array([value.value for value in Status], np.uint8)
    every = Embeddings(labels, np.zeros((len(status), 2), np.float16), status, np.zeros((len(status), 16), np.uint8))
    assert [id_ for id_, present in zip(every.ids, every.present, strict=True) if present] == ["ok"]


def test_a_cache_that_was_moved_is_the_same_cache(cache, tmp_path):
    before = EmbeddingStore.open(cache).read("image")
    shutil.move(cache, tmp_path / "elsewhere")
    after = EmbeddingStore.open(tmp_path / "elsewhere").read("image")
    assert after.ids == before.ids
    assert np.array_equal(after.vectors, before.vectors)


def test_reading_changes_nothing_in_the_folder(cache):
    def facts():
        return {path.name: (path.stat().st_mtime_ns, path.stat().st_size) for path in [cache, *cache.iterdir()]}

    before = facts()
    EmbeddingStore.open(cache).read("image")
    assert facts() == before


@pytest.mark.parametrize("exists", [False, True])
def test_without_a_cache_the_message_says_how_to_make_one(tmp_path, exists):
    folder = tmp_path / "tiny" / "train_val"
    if exists:
        folder.mkdir(parents=True)
    with pytest.raises(CacheError) as caught:
        EmbeddingStore.open(folder)
    assert str(caught.value) == f"no embeddings in {folder}: run `vp extract --model tiny`"


def test_an_unfinished_cache_counts_its_shards_once_each_and_nothing_else(cache):
    (cache / "manifest.json").rename(cache / "manifest.next.json")
    first, second, *_ = sorted(cache.glob("*.h5"))
    second.unlink()
    for stray in (f"{second.name}~", ".tmp-host-1-0", "notes.h5", second.name.replace(".", ".0123456789abcdef.", 1)):
        shutil.copy(first, cache / stray)
    for name in (first.name.split(".")[0], "image-000009"):  # an earlier version of the same rows; rows that are gone
        shutil.copy(first, cache / f"{name}.0123456789abcdef.h5")
    with pytest.raises(CacheError) as caught:
        EmbeddingStore.open(cache)
    assert str(caught.value).startswith(f"the cache in {cache} is incomplete (5 of 6 shards): run `vp extract --model ")


def test_a_manifest_without_the_names_of_its_files_is_not_finished(cache):
    edited(cache, lambda document: document["shards"][4].update(file=""))
    assert refused(cache, match="does not name all its shards: run `vp extract --model .*` again")


def test_a_manifest_that_was_cut_is_refused(cache):
    path = cache / "manifest.json"
    path.write_bytes(path.read_bytes()[:300])
    assert refused(cache, match="not readable as a manifest")


@pytest.mark.parametrize(("one", "other"), [(0, 2), (0, 1), (4, 0)], ids=["rows", "kinds", "lengths"])
def test_files_that_the_manifest_mixes_up_are_refused(cache, one, other):
    def swap(document):
        shards = document["shards"]
        shards[one]["file"], shards[other]["file"] = shards[other]["file"], shards[one]["file"]

    kind = json.loads((cache / "manifest.json").read_text())["shards"][one]["kind"]
    edited(cache, swap)
    assert refused(cache, kind, "the manifest says")


@pytest.mark.parametrize("dim", [2, 4])
def test_another_dimension_than_the_manifest_says_is_refused(cache, dim):
    edited(cache, lambda document: document["dims"].update(image=dim))
    assert refused(cache, match="the manifest says")


@pytest.mark.parametrize("change", [{"key": "another"}, {"index": 1}, {"kind": "text"}], ids=str)
def test_a_shard_of_another_cache_is_refused_although_it_is_whole_and_of_the_right_size(cache, change):
    shard = read_shard(cache / EmbeddingStore.open(cache).plan.shards[0].file, max_bytes=10**7)
    foreign = write_shard(cache, Shard(**vars(shard) | change))
    edited(cache, lambda document: document["shards"][0].update(file=foreign))
    assert refused(cache, match="the manifest says")


@pytest.mark.parametrize("damage", ["missing", "a folder", "cut", "longer", "flipped", "another shard", "huge"])
def test_one_damaged_shard_is_enough_to_refuse_its_kind_and_spares_the_other(cache, damage):
    store = EmbeddingStore.open(cache)
    path = cache / store.plan.of_kind("image")[1].file
    raw = path.read_bytes()
    path.unlink()
    if damage == "a folder":
        path.mkdir()
    elif damage != "missing":
        flipped = raw[:-1] + bytes([raw[-1] ^ 1])
        another = (cache / store.plan.of_kind("image")[2].file).read_bytes()
        changed = {"cut": raw[:-1], "longer": raw + b"\0", "flipped": flipped, "another shard": another}
        path.write_bytes(changed.get(damage, raw + bytes(2_000_000)))
    assert refused(cache, "image", path.name)
    assert len(EmbeddingStore.open(cache).read("text").ids) == N_ROWS


def test_vectors_keep_every_bit_of_the_shards(cache):
    store = EmbeddingStore.open(cache)
    for kind in ("image", "text"):
        parts = [store.shard(planned) for planned in store.plan.of_kind(kind)]
        read = store.read(kind)
        assert read.vectors.tobytes() == b"".join(part.embedding.tobytes() for part in parts)
        assert read.status.tobytes() == b"".join(part.status.tobytes() for part in parts)
        assert read.source_digest.tobytes() == b"".join(part.source_digest.tobytes() for part in parts)
        assert read.ids == [id_ for part in parts for id_ in part.ids]


@settings(deadline=None, derandomize=True)
@given(rows=st.integers(1, 2 * N_ROWS))
def test_ranges_of_any_length_are_the_whole_cut_into_pieces(drawn_cache, rows):
    store = EmbeddingStore.open(drawn_cache)
    for kind in DIMS:
        whole, ranges = store.read(kind), list(store.ranges(kind, rows))
        lengths = [len(found.ids) for found in ranges]
        assert set(lengths[:-1]) <= {rows}
        assert 0 < lengths[-1] <= rows
        assert [id_ for found in ranges for id_ in found.ids] == whole.ids
        for name in ("vectors", "status", "source_digest"):
            np.testing.assert_array_equal(np.concatenate([getattr(r, name) for r in ranges]), getattr(whole, name))


def test_no_more_shards_are_read_ahead_than_a_range_needs(tmp_path, monkeypatch):
    draw_cache(tmp_path, rows_per_shard=1)
    read = []
    monkeypatch.setattr(EmbeddingStore, "shard", lambda self, planned: read.append(planned) or SHARD(self, planned))
    ranges = EmbeddingStore.open(tmp_path).ranges("image", 2)
    next(ranges)
    assert len(read) <= 2 + 2 + READ_THREADS
    ranges.close()
    assert len(read) <= 2 + 2 + READ_THREADS


def test_a_damaged_shard_ends_the_ranges_where_it_stands(cache):
    spoiled = EmbeddingStore.open(cache).plan.of_kind("text")[1]
    path = cache / spoiled.file
    path.write_bytes(path.read_bytes()[:-1])
    ranges = EmbeddingStore.open(cache).ranges("text", 8)
    assert len(next(ranges).ids) == 8
    with pytest.raises(CacheError, match="damaged"):
        next(ranges)
