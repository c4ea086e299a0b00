"""From caches and tables to blocks: which modalities there are, and that every number lands on its own video."""

import csv
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest

from features.config import DatasetConfig
from features.dates import calendar_columns
from features.errors import CacheError, UsageError
from features.store import EmbeddingStore
from features.videos import VideoTable, read_videos
from features.words import hashed_words
from pipeline.inputs import Source, choose_sources, gather
from pipeline.workspace import Workspace

HEADER = ["id", "title", "description", "channel", "date", "year", "views"]
NEWEST = np.datetime64("2024-05-11T12:00:00")


@pytest.fixture
def world(cache_world):
    """The small world, with channels and dates as well."""
    cache_world.rows = [
        [f"id-{row:03d}", f"title number {row}", "", "ABC"[row % 3], f"2024-05-{1 + row % 11:02d} 12:00:00", "", row]
        for row in range(22)
    ]
    write(cache_world.data / "train_val.csv", cache_world.rows)
    return cache_world


@pytest.fixture
def workspace(tmp_path):
    return Workspace(tmp_path / "work")


@pytest.fixture
def embed(world, workspace, fake_encoder):
    """Makes the cache of one encoder over the training videos."""

    def embed(tag: str, **changes) -> None:
        folder = workspace.cache(tag, "train_val")
        folder.mkdir(parents=True)
        world.make(fake_encoder(), folder=folder, **changes)

    return embed


def write(path: Path, rows: list[list]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([HEADER, *rows])


def read(folder: Path, *rows: list, split: str = "test") -> VideoTable:
    """A table of rows of title, description, channel, date and year."""
    folder.mkdir(exist_ok=True)
    write(folder / f"{split}.csv", [[f"id-{row}", *cells, "1"] for row, cells in enumerate(rows)])
    return read_videos(DatasetConfig(data=folder), split)


def block_of(workspace: Workspace, videos: VideoTable, kind: str):
    return gather(workspace, [Source(kind, kind)], videos, NEWEST).inputs.block(kind)


# Which modalities


def test_by_default_channels_and_words_are_left_out_although_they_are_there(world, workspace, embed):
    embed("tiny")
    expected = (Source("image", "image", "tiny"), Source("text", "text", "tiny"), Source("age", "age"))
    assert choose_sources(workspace, [], [], world.table()) == expected
    assert choose_sources(workspace, ["tiny"], [], world.table()) == expected


def test_the_order_in_which_modalities_are_asked_for_changes_nothing(world, workspace, embed):
    embed("tiny")
    asked = ["text", "age", "channel", "words"]
    found = {choose_sources(workspace, [], order, world.table()) for order in permutations(asked)}
    assert [[source.modality for source in sources] for sources in found] == [asked]


def test_a_modality_that_is_not_known_is_told_with_those_there_are(world, workspace, embed):
    embed("tiny")
    with pytest.raises(UsageError) as refused:
        choose_sources(workspace, [], ["text", "smell", "sound"], world.table())
    assert str(refused.value) == (
        "--modalities names smell, sound, but there are only image, text, age, channel, words"
    )


def test_with_several_encoders_their_modalities_carry_their_names(world, workspace, embed):
    for tag in ("big", "small"):
        embed(tag)
    vectors = [Source(f"{kind}@{tag}", kind, tag) for tag in ("small", "big") for kind in ("image", "text")]
    assert choose_sources(workspace, ["small", "big"], [], world.table()) == (*vectors, Source("age", "age"))


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        (["image"], ["image@small", "image@big"]),
        (["image@big"], ["image@big"]),
        (["age", "text@small", "image"], ["image@small", "text@small", "image@big", "age"]),
    ],
)
def test_a_modality_of_one_or_of_all_encoders_can_be_asked_for(world, workspace, embed, asked, found):
    for tag in ("big", "small"):
        embed(tag)
    sources = choose_sources(workspace, ["small", "big"], asked, world.table())
    assert [source.modality for source in sources] == found


def test_what_the_table_gives_needs_no_cache(world, workspace):
    sources = choose_sources(workspace, ["never-made"], ["words", "channel", "age"], world.table())
    assert sources == (Source("age", "age"), Source("channel", "channel"), Source("words", "words"))
    gathered = gather(workspace, sources, world.table(), NEWEST)
    assert (gathered.inputs.modalities, gathered.encoders) == (("age", "channel", "words"), {})
    assert gathered.thumbnail_digest is None


@pytest.mark.parametrize("asked", [[], ["image"], ["age", "text"]])
def test_everything_else_needs_one(world, workspace, asked):
    with pytest.raises(CacheError, match="run `vp extract`"):
        choose_sources(workspace, [], asked, world.table())


def test_one_of_several_caches_must_be_chosen_unless_none_is_read(world, workspace, embed):
    for tag in ("big", "small"):
        embed(tag)
    assert choose_sources(workspace, [], ["age"], world.table()) == (Source("age", "age"),)
    with pytest.raises(UsageError, match="--model, one of big, small"):
        choose_sources(workspace, [], ["age", "image"], world.table())


def test_a_table_without_dates_channels_and_texts_offers_none_of_them(workspace, tmp_path):
    videos = read(tmp_path / "bare", ["", " ", " ", "", ""])
    for name in ("age", "channel", "words"):
        with pytest.raises(UsageError, match=f"names {name}"):
            choose_sources(workspace, [], [name], videos)


# What the heads see


def test_vectors_go_with_the_ids_of_the_table_and_not_with_its_order(world, workspace, embed):
    embed("tiny")
    sources = choose_sources(workspace, [], [], world.table())
    before = gather(workspace, sources, world.table(), NEWEST)
    order = np.random.default_rng(0).permutation(22)[:17]
    write(world.data / "train_val.csv", [world.rows[row] for row in order])
    after = gather(workspace, sources, world.table(), NEWEST)
    for ours, theirs in zip(after.inputs.blocks, before.inputs.take(order).blocks, strict=True):
        np.testing.assert_array_equal(ours.values, theirs.values)
    np.testing.assert_array_equal(after.thumbnail_digest, before.thumbnail_digest[order])
    assert len(np.unique(before.inputs.block("text").values, axis=0)) == 22


def test_vectors_of_two_encoders_stand_under_their_own_names(world, workspace, embed):
    embed("big", semantic={"weights": "other"})
    (world.data / "train_val" / "id-003.jpg").unlink()
    embed("small")
    sources = [Source("image@big", "image", "big"), Source("image@small", "image", "small")]
    gathered = gather(workspace, sources, world.table(), NEWEST)
    absent = [np.flatnonzero(~block.present).tolist() for block in gathered.inputs.blocks]
    assert absent == [[], [3]]
    plans = {tag: EmbeddingStore.open(workspace.cache(tag, "train_val")).plan for tag in ("big", "small")}
    assert gathered.encoders == {tag: plan.encoder for tag, plan in plans.items()}
    assert gathered.encoders["big"] != gathered.encoders["small"]


def test_equal_thumbnails_have_equal_digests_and_absent_ones_zeros(world, workspace, embed):
    world.paint("id-007", shade=2)  # as that of id-002
    (world.data / "train_val" / "id-003.jpg").unlink()
    embed("tiny")
    digests = gather(workspace, [Source("image", "image", "tiny")], world.table(), NEWEST).thumbnail_digest
    assert digests[2].tobytes() == digests[7].tobytes() != digests[4].tobytes()
    assert np.flatnonzero(~digests.any(axis=1)).tolist() == [3]


def test_a_kind_of_vector_that_the_cache_lacks_is_told_with_what_to_run(world, workspace, embed):
    embed("tiny", dims={"text": 4})
    with pytest.raises(CacheError, match="has no image: run `vp extract --model tiny`"):
        gather(workspace, [Source("image", "image", "tiny")], world.table(), NEWEST)


def test_a_model_of_the_hub_is_named_by_its_id_and_not_by_its_folder(world, workspace, embed):
    embed("openai--clip-x", dims={"text": 4}, environment={"device": "test", "source": "openai/clip-x"})
    with pytest.raises(CacheError, match="has no image: run `vp extract --model openai/clip-x`"):
        gather(workspace, [Source("image", "image", "openai--clip-x")], world.table(), NEWEST)
    world.rows.append(["brand-new", *world.rows[0][1:]])
    write(world.data / "train_val.csv", world.rows)
    with pytest.raises(CacheError, match="; run `vp extract --model openai/clip-x --modalities text` again"):
        gather(workspace, [Source("text", "text", "openai--clip-x")], world.table(), NEWEST)


def test_a_video_that_the_cache_lacks_is_named(world, workspace, embed):
    embed("tiny")
    world.rows.append(["brand-new", *world.rows[0][1:]])
    write(world.data / "train_val.csv", world.rows)
    with pytest.raises(CacheError, match="brand-new"):
        gather(workspace, [Source("text", "text", "tiny")], world.table(), NEWEST)


def test_an_age_counts_from_the_reference_and_has_the_calendar_beside_it(workspace, tmp_path):
    rows = [["t", "", "", date, year] for date, year in (("2023-05-12 06:00:00", ""), ("", "2021"), ("", ""))]
    videos = read(tmp_path / "data", *rows)
    block = block_of(workspace, videos, "age")
    assert block.knotted
    assert block.present.tolist() == [True, True, False]
    np.testing.assert_allclose(block.values[:, 0], [365.25 / 365.2425, 3, 0], rtol=1e-6)
    np.testing.assert_allclose(block.values[0, 1:], calendar_columns(videos.published)[0], rtol=1e-6)
    assert not block.values[1:, 1:].any()  # only the year is known, or nothing: no season, no weekday


def test_a_channel_has_one_code_in_every_table_and_on_every_machine(workspace, tmp_path):
    tables = [["CBS", "", "Käse", "cbs"], ["other", "Käse", "CBS"]]
    train, test = (
        block_of(workspace, read(tmp_path / split, *[["t", "", name, "", "2020"] for name in names]), "channel")
        for split, names in zip(("one", "two"), tables, strict=True)
    )
    assert (train.codes[0], train.codes[2]) == (-2464890910887990720, -5747874396648977206)
    assert (test.codes[2], test.codes[1]) == (train.codes[0], train.codes[2])
    assert len({*train.codes.tolist(), *test.codes.tolist()}) == 5
    assert train.present.tolist() == [True, False, True, True]
    assert test.present.all()


def test_words_are_present_where_there_are_any(workspace, tmp_path):
    texts = [["Cake", ""], ["", "cream"], ["", ""], [" ", "\n"], ["a b", ""]]
    videos = read(tmp_path / "data", *[[*text, "", "", "2020"] for text in texts])
    block = block_of(workspace, videos, "words")
    assert block.present.tolist() == [True, True, False, False, False]
    assert (block.counts != hashed_words(videos)).nnz == 0
