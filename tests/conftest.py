"""A tiny world for every test: drawn thumbnails, a few titles, and an encoder of fifteen lines."""

import csv
import sys
from collections.abc import Callable
from functools import cache, partial
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from features.cache import CacheSummary, Recipe, make_cache
from features.config import DatasetConfig
from features.lock import WHOLE
from features.preprocess import ImagePreprocess, cut_thumbnail
from features.progress import Silent
from features.shard_worker import ShardSetup
from features.text_layout import TextLayout
from features.texts import joined
from features.videos import VideoTable, read_videos
from tests.undrawn import leave_charts_out
from tests.workers_here import SupervisorHere, workers_here

if any(type(finder).__module__.startswith("jaxtyping") for finder in sys.meta_path):
    # Under the hook of `make test-slow` that checks shapes, what one of our modules is the first to import is compiled
    # from its source once more, in every process, for 15 seconds.
    for library in ("pandas", "torch", "transformers.image_processing_utils"):
        import_module(library)

PREPROCESS = ImagePreprocess(
    mode="shortest",
    size=(8, 8),
    crop=(8, 8),
    resample="bicubic",
    rescale_factor=1 / 255,
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
)


class FakeEncoder:
    """Vectors that depend on the content alone; counts what it was asked to encode."""

    max_tokens = 20
    text_layout = TextLayout(20, step=8)

    def __init__(self, before_batch: Callable[[], None] = lambda: None) -> None:
        self.images, self.texts, self.pads = 0, 0, []
        self._before_batch = before_batch

    def encode_images(self, pixels):
        self._before_batch()
        self.images += int((pixels.reshape(len(pixels), -1).max(axis=1) > 0).sum())
        return pixels.reshape(len(pixels), 3, -1).mean(axis=2).astype(np.float32)

    def tokenize(self, texts):
        full = [np.frombuffer(f"<{text}>".encode(), np.uint8).astype(np.int64) for text in texts]
        return [ids[: self.max_tokens] for ids in full], np.array([len(ids) > self.max_tokens for ids in full])

    def encode_tokens(self, tokens, pad_to):
        self._before_batch()
        self.texts += len({ids.tobytes() for ids in tokens})
        self.pads.append(pad_to)
        return np.array([[ids.sum(), len(ids), ids[-2:][0], ids[:2][-1]] for ids in tokens], np.float32)


class World:
    """A dataset folder that a test can change, and a cache folder beside it."""

    def __init__(self, root: Path) -> None:
        self.data, self.folder = root / "dataset", root / "cache"
        (self.data / "train_val").mkdir(parents=True)
        self.rows = [[f"id-{row:03d}", f"title number {row} of many", 10 * row, 2010 + row % 12] for row in range(22)]
        for row, (id_, *_) in enumerate(self.rows):
            self.paint(id_, row)
        self.write()

    def paint(self, id_: str, shade: int) -> None:
        pixels = np.full((9, 12, 3), (10 + 7 * shade) % 256, np.uint8)
        Image.fromarray(pixels).save(self.data / "train_val" / f"{id_}.jpg", "PNG")

    def write(self) -> None:
        with (self.data / "train_val.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([["id", "title", "views", "year"], *self.rows])

    def table(self) -> VideoTable:
        return read_videos(DatasetConfig(data=self.data), "train_val")

    def recipe(self, **changes) -> Recipe:
        fields = {
            "semantic": {"weights": "w", "precision": "fp32"},
            "environment": {"device": "test"},
            "dims": {"image": 3, "text": 4},
            "batch_size": 4,
            "rows_per_shard": 8,
        }
        return Recipe(**fields | changes)

    def make(
        self, encoder: FakeEncoder | None, *, folder=None, table=None, cut=None, progress=None, part=WHOLE, **changes
    ) -> CacheSummary:
        """Make the cache in this process; without an encoder none may be asked for."""
        recipe = self.recipe(**changes)
        workers = WorkersHere(encoder, recipe.batch_size, cut)
        table = self.table() if table is None else table
        return make_cache(folder or self.folder, table, recipe, workers, progress or Silent(), part=part)


class WorkersHere(SupervisorHere):
    """One worker that is no process, with an encoder of its own: what it does can be counted."""

    def __init__(self, encoder: FakeEncoder | None, batch_size: int, cut=None) -> None:
        def load(_tower, _device):
            assert encoder is not None, "the encoder was loaded although nothing is missing"
            return encoder

        cut = cut or partial(cut_thumbnail, preprocess=PREPROCESS)
        super().__init__(ShardSetup(load_encoder=load, cut=cut, read_prompt=joined, batch_size=batch_size), ["here"])


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports have no charts."""
    leave_charts_out(monkeypatch)


@pytest.fixture
def in_this_process():
    """Extractions start no processes."""
    with workers_here():
        yield


@pytest.fixture
def cache_world(tmp_path: Path) -> World:
    return World(tmp_path)


@pytest.fixture(scope="session")
def fake_encoder() -> type[FakeEncoder]:
    return FakeEncoder


@pytest.fixture(scope="session")
def make_world() -> type[World]:
    return World


@pytest.fixture(scope="session")
def siglip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SigLIP of random weights."""
    return _built(tmp_path_factory, "build_siglip")("siglip")


@pytest.fixture(scope="session")
def dino_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A DINO of random weights, by its family."""
    return _built(tmp_path_factory, "build_dino")


@pytest.fixture(scope="session")
def sentence_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A sentence encoder of random weights, by its family."""
    return _built(tmp_path_factory, "build_sentence")


def _built(tmp_path_factory: pytest.TempPathFactory, build: str) -> Callable[[str], Path]:
    """Build a checkpoint when it is first asked for; torch and transformers are imported then."""
    root = tmp_path_factory.mktemp(build)

    @cache
    def folder(family: str) -> Path:
        from tests import checkpoints

        return getattr(checkpoints, build)(root / family, family)

    return folder
