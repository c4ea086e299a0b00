"""A small world for the heads: views that image, text and age explain, and rows where some of them are absent."""

from dataclasses import dataclass

import numpy as np
import pytest

from heads.config import HeadsConfig
from heads.inputs import Block, Inputs

SMALL = HeadsConfig(epochs=12, lr=1e-2, hidden_dim=16, batch_size=32, dropout=0.1, seed=3)


@dataclass(frozen=True)
class World:
    inputs: Inputs
    log_views: np.ndarray


def draw_world(n_videos: int = 240, absent: float = 0.0, seed: int = 0) -> World:
    rng = np.random.default_rng(seed)
    image, text = rng.normal(size=(2, n_videos, 8))
    years = rng.uniform(0.0, 10.0, size=n_videos)
    here = rng.random((2, n_videos)) >= absent
    log_views = 8 + 3 * image[:, 0] * here[0] / np.linalg.norm(image, axis=1) + text[:, 1] * here[1] + 0.2 * years
    blocks = (
        Block.embedding("image", image.astype(np.float16), here[0]),
        Block.embedding("text", text.astype(np.float32), here[1]),
        Block.scalar("age", years),
    )
    return World(Inputs(blocks), log_views.clip(min=0))


@pytest.fixture(scope="session")
def world() -> World:
    return draw_world()


@pytest.fixture(scope="session")
def gappy_world() -> World:
    return draw_world(absent=0.2)


@pytest.fixture(scope="session")
def small_config() -> HeadsConfig:
    return SMALL
