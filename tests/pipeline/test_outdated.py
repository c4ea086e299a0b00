"""Vectors of what a video was before are used only with a word."""

import os
import shutil
from pathlib import Path

import pytest

from features.progress import Silent
from features.store import EmbeddingStore
from pipeline.config import TrainHeadsConfig
from pipeline.dataset import read_dataset
from pipeline.outdated import tell_outdated

COMMAND = "`vp extract --model tiny`"


class Told(Silent):
    def __init__(self):
        self.lines = []

    def warn(self, text):
        self.lines.append(f"warning: {text}")

    def note(self, text):
        self.lines.append(text)


@pytest.fixture
def told(cache_world, fake_encoder, tmp_path, monkeypatch):
    """What is told of a cache of the world after a change of it."""
    monkeypatch.chdir(tmp_path)
    cache_world.make(fake_encoder(), folder=Path("work/embeddings/tiny/train_val"))

    def after(change):
        change(cache_world)
        progress, config = Told(), TrainHeadsConfig()
        plans = {"tiny": EmbeddingStore.open(Path("work/embeddings/tiny/train_val")).plan}
        tell_outdated(config, plans, read_dataset(config, Silent()).train, progress)
        return progress.lines

    return after


def test_of_a_cache_of_the_dataset_as_it_is_nothing_is_told(told):
    assert told(lambda world: None) == []


def test_a_text_that_changed_is_a_warning(told):
    def change(world):
        world.rows[3][1] = "another title"
        world.write()

    (line,) = told(change)
    assert line == (
        "warning: tiny: 1 row of train_val.csv have another text now than their vectors were made from ('id-003'): "
        f"{COMMAND} encodes just those"
    )


def test_rows_that_moved_or_went_are_found_by_their_ids(told):
    def change(world):
        world.rows = world.rows[:4:-1]
        world.write()

    assert told(change) == []


def test_a_thumbnail_that_was_written_since_may_have_changed(told):
    def change(world):
        os.utime(world.data / "train_val" / "id-009.jpg", (0, 0))

    (line,) = told(change)
    assert line.startswith("tiny: thumbnails were written or copied since their vectors were made, in shards of 8 rows")
    assert line.endswith(f"{COMMAND} encodes those with another content")


def test_where_the_thumbnails_are_elsewhere_nothing_can_be_told_of_them(told):
    assert told(lambda world: shutil.rmtree(world.data / "train_val")) == []
