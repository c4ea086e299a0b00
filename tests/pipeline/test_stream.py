"""A cache read shard by shard gives the heads what the same cache in memory gives them."""

import csv

import numpy as np
import pytest

from features.errors import CacheError
from features.store import EmbeddingStore
from heads import inputs as inputs_module
from heads.chunks import Chunks
from heads.errors import UnfitDataError
from pipeline import stream
from pipeline.inputs import choose_sources
from pipeline.stream import read_inputs
from pipeline.workspace import Workspace

NEWEST = np.datetime64("2024-05-11T12:00:00")
CHUNK_ROWS = 5  # shards have 8 rows, so that chunks begin and end inside them


@pytest.fixture
def world(cache_world, monkeypatch):
    """The small world with channels and a missing thumbnail; 22 videos."""
    monkeypatch.setattr(inputs_module, "CHUNK_ROWS", CHUNK_ROWS)
    monkeypatch.setattr(stream, "CHUNK_ROWS", CHUNK_ROWS)
    cache_world.rows = [
        [f"id-{row:03d}", f"number {row}", 10 * row, 2010 + row % 12, "ABC"[row % 3]] for row in range(22)
    ]
    write(cache_world)
    (cache_world.data / "train_val" / "id-011.jpg").unlink()
    return cache_world


@pytest.fixture
def workspace(world, tmp_path, fake_encoder):
    made = Workspace(tmp_path / "work")
    for tag, rows_per_shard in (("big", 8), ("small", 3)):
        folder = made.cache(tag, "train_val")
        folder.mkdir(parents=True)
        world.make(fake_encoder(), folder=folder, rows_per_shard=rows_per_shard)
    return made


def write(world):
    with (world.data / "train_val.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["id", "title", "views", "year", "channel"], *world.rows])


def read_both(workspace, videos, tags=("big",), modalities=("image", "text", "age", "channel")):
    sources = choose_sources(workspace, tags, modalities, videos)
    return [read_inputs(workspace, sources, videos, NEWEST, stream=streamed) for streamed in (False, True)]


def assert_equal(ours, theirs):
    assert ours.modalities == theirs.modalities
    for one, other in zip(ours.blocks, theirs.blocks, strict=True):
        fields = ("codes" if hasattr(one, "codes") else "values", "present")
        assert all(np.array_equal(getattr(one, name), getattr(other, name)) for name in fields)


@pytest.mark.parametrize("tags", [("big",), ("small",), ("big", "small")])
def test_its_chunks_are_those_of_the_inputs_in_memory(world, workspace, tags):
    whole, streamed = read_both(workspace, world.table(), tags)
    assert isinstance(streamed.inputs, Chunks)
    for (rows, ours), (expected, theirs) in zip(streamed.inputs, whole.inputs, strict=True):
        assert rows == expected
        assert_equal(ours, theirs)
    assert streamed.encoders == whole.encoders
    np.testing.assert_array_equal(streamed.thumbnail_digest, whole.thumbnail_digest)
    np.testing.assert_array_equal(streamed.inputs.outline.present, whole.inputs.present)
    assert not streamed.inputs.outline.block(whole.inputs.modalities[0]).present[11]


def test_it_can_be_read_as_often_as_asked_and_side_by_side(world, workspace):
    _, streamed = read_both(workspace, world.table())
    starts = [(one.start, other.start) for (one, _), (other, _) in zip(streamed.inputs, streamed.inputs, strict=True)]
    assert starts == [(row, row) for row in range(0, 22, CHUNK_ROWS)]


@pytest.mark.parametrize("rows", [slice(3, 9), np.array([21, 0, 7, 7]), np.arange(22), np.array([], dtype=np.int64)])
def test_some_rows_can_be_taken_into_memory(world, workspace, rows):
    whole, streamed = read_both(workspace, world.table())
    assert_equal(streamed.inputs.take(rows), whole.inputs.take(rows))


@pytest.mark.parametrize("change", ["order", "fewer", "more", "renamed"])
def test_rows_that_are_not_those_of_the_dataset_are_refused(world, workspace, change):
    videos = world.table()
    if change == "order":
        world.rows[3], world.rows[4] = world.rows[4], world.rows[3]
    elif change == "fewer":
        del world.rows[-1]
    elif change == "more":
        world.rows.append(["new", "x", 1, 2020, "A"])
    else:
        world.rows[7][0] = "other"
    write(world)
    sources = choose_sources(workspace, ["big"], ["text"], videos)
    with pytest.raises(CacheError, match=r"not those of the dataset, in its order.*run `vp extract --model .*` again"):
        read_inputs(workspace, sources, world.table(), NEWEST, stream=True)


def test_every_shard_is_checked_before_anything_is_done(world, workspace):
    store = EmbeddingStore.open(workspace.cache("big", "train_val"))
    path = store.folder / store.plan.of_kind("text")[-1].file
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(CacheError, match="damaged"):
        read_both(workspace, world.table(), modalities=("text",))[1]


def test_a_vector_that_is_not_finite_is_named_by_its_row_of_the_table(world, workspace, monkeypatch):
    _, streamed = read_both(workspace, world.table(), modalities=("image",))
    chunks = streamed.inputs.vectors["image"].chunks

    def spoiled(_self):
        for start, chunk in enumerate(chunks()):
            vectors = chunk.vectors.copy()
            if start == 2:
                vectors[3] = np.inf
            yield type(chunk)(chunk.ids, vectors, chunk.status, chunk.source_digest)

    monkeypatch.setattr(stream.Vectors, "chunks", spoiled)
    with pytest.raises(UnfitDataError, match="image embedding of row 13 is not finite"):
        list(streamed.inputs)
