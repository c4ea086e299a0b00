import filecmp
from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import RidgeCV
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from features.clip import ClipEncoder
from features.encoders import resolve_encoder
from features.errors import StorageError
from features.resize import resize_and_crop
from features.tiny import IMAGE_SIZE, WORDS, build_tiny


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> ClipEncoder:
    config = resolve_encoder("tiny", tmp_path_factory.mktemp("models"))
    return ClipEncoder(config, ["image", "text"], "cpu", "fp32")


def probe():
    return make_pipeline(StandardScaler(), RidgeCV(np.logspace(-4, 3, 15)))


def coloured_thumbnail(draw: np.random.Generator) -> np.ndarray:
    picture = draw.integers(0, 256, 3) + draw.normal(0, 40, (90, 160, 3))
    for _ in range(3):
        y, x = draw.integers(0, 60), draw.integers(0, 120)
        picture[y : y + 30, x : x + 40] = draw.integers(0, 256, 3)
    full = (IMAGE_SIZE, IMAGE_SIZE * 160 // 90)
    return resize_and_crop(picture.clip(0, 255).astype(np.uint8), full, (IMAGE_SIZE, IMAGE_SIZE), "bicubic")


def test_two_builds_are_equal_byte_by_byte(tmp_path: Path):
    build_tiny(tmp_path / "a")
    build_tiny(tmp_path / "b")
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert "model.safetensors" in names
    assert filecmp.cmpfiles(tmp_path / "a", tmp_path / "b", names, shallow=False) == (names, [], [])


def test_building_leaves_nothing_else_behind_and_does_not_touch_a_finished_one(tmp_path: Path):
    build_tiny(tmp_path / "tiny")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "tiny").iterdir()}
    build_tiny(tmp_path / "tiny")
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "tiny").iterdir()} == before


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="file"):
        build_tiny(tmp_path / "file" / "tiny")


def test_building_leaves_the_random_numbers_of_others_alone(tmp_path: Path):
    import torch

    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    build_tiny(tmp_path / "tiny")
    assert torch.rand(1) == expected


def test_every_known_word_is_one_token(encoder: ClipEncoder):
    tokens, _ = encoder.tokenize(WORDS.split())
    assert {len(ids) for ids in tokens} == {3}


def test_any_text_can_be_tokenised_without_unknown_pieces(encoder: ClipEncoder):
    tokens, _ = encoder.tokenize(["日本 😱 Привет naïve <|x|> 12!"])
    end = encoder.tokenize([""])[0][0][-1]
    assert end not in tokens[0][:-1]


def test_the_mean_colour_of_a_thumbnail_can_be_read_from_its_vector(encoder: ClipEncoder):
    draw = np.random.default_rng(0)
    pixels = np.stack([coloured_thumbnail(draw) for _ in range(300)])
    vectors, colours = encoder.encode_images(pixels), pixels.mean((2, 3))
    assert probe().fit(vectors[:200], colours[:200]).score(vectors[200:], colours[200:]) > 0.8


def test_the_presence_of_a_word_can_be_read_from_the_vector_of_a_text(encoder: ClipEncoder):
    draw = np.random.default_rng(0)
    titles = [draw.choice(WORDS.split(), 8) for _ in range(900)]
    for title in titles[::2]:
        title[draw.integers(8)] = "minecraft"
    present = np.array(["minecraft" in title for title in titles], float)
    vectors = encoder.encode_tokens(encoder.tokenize([" ".join(title) for title in titles])[0], 16)
    model = probe().fit(vectors[:600], present[:600])
    assert roc_auc_score(present[600:], model.predict(vectors[600:])) > 0.9
