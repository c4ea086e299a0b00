import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import SiglipModel

from features.encoders import resolve_encoder
from features.errors import CacheError, UsageError
from features.families import load_encoder
from features.preprocess import normalise
from features.siglip import SiglipEncoder
from features.text_layout import TextLayout

TEXTS = ["The best cake!", "a cat and a dog?", "the", "", "of " * 40, "video video", "dog"]
THE, BEST, CAKE, END, PAD = 4, 5, 8, 2, 0


def encoder_in(folder: Path, kinds: tuple[str, ...] = ("image", "text")) -> SiglipEncoder:
    return load_encoder(resolve_encoder(str(folder), folder.parent), kinds, "cpu", "fp32")


@pytest.fixture(scope="module")
def encoder(siglip_folder: Path) -> SiglipEncoder:
    return encoder_in(siglip_folder)


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (7, 3, 32, 32), np.uint8)


@pytest.fixture
def copied(siglip_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(siglip_folder, tmp_path / "copy"))


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def assert_equal_vectors(ours: np.ndarray, expected: np.ndarray) -> None:
    cosine = (ours * expected).sum(1) / np.linalg.norm(ours, axis=1) / np.linalg.norm(expected, axis=1)
    assert ours.dtype == np.float32
    assert ours.shape == expected.shape
    assert cosine.min() > 0.9999
    assert np.abs(ours - expected).max() < 1e-5
    assert np.abs(expected[0] - expected[1]).max() > 0.01


def test_image_vectors_equal_those_of_the_whole_model(siglip_folder: Path, encoder: SiglipEncoder, pixels):
    with torch.inference_mode():
        inputs = normalise(torch.from_numpy(pixels), encoder.config.preprocess, torch.float32)
        expected = SiglipModel.from_pretrained(siglip_folder).get_image_features(inputs).pooler_output.numpy()
    assert_equal_vectors(encoder.encode_images(pixels), expected)


def test_text_vectors_equal_those_of_the_whole_model_on_padded_texts(siglip_folder: Path, encoder: SiglipEncoder):
    tokens, _ = encoder.tokenize(TEXTS)
    ids = torch.tensor([[*row.tolist(), *[PAD] * (16 - len(row))] for row in tokens])
    with torch.inference_mode():
        expected = SiglipModel.from_pretrained(siglip_folder).get_text_features(ids).pooler_output.numpy()
    assert_equal_vectors(encoder.encode_tokens(tokens, 16), expected)


def test_towers_may_be_of_different_widths(encoder: SiglipEncoder):
    assert encoder.config.dim == {"image": 48, "text": 48}
    assert encoder.towers["text"].config.hidden_size == 32


def test_a_text_alone_has_the_vector_it_has_in_a_batch(encoder: SiglipEncoder):
    tokens, _ = encoder.tokenize(TEXTS)
    alone = np.concatenate([encoder.encode_tokens([text], 16) for text in tokens])
    assert np.allclose(alone, encoder.encode_tokens(tokens, 16), atol=1e-5)


def test_a_picture_alone_has_the_vector_it_has_in_a_batch(encoder: SiglipEncoder, pixels):
    alone = np.concatenate([encoder.encode_images(picture[None]) for picture in pixels])
    assert np.allclose(alone, encoder.encode_images(pixels), atol=1e-5)


def test_padding_is_part_of_the_text_and_may_not_be_trimmed(encoder: SiglipEncoder):
    assert encoder.text_layout == TextLayout.whole(16)
    with pytest.raises(ValueError, match="padded to 16"):
        encoder.encode_tokens(encoder.tokenize(["the"])[0], 8)


def test_the_first_siglip_sees_neither_capitals_nor_punctuation(encoder: SiglipEncoder):
    tokens, _ = encoder.tokenize(["The... BEST,  cake?!", "the best cake"])
    assert [ids.tolist() for ids in tokens] == [[THE, BEST, CAKE, END]] * 2


@pytest.mark.parametrize("tokenizer", ["GemmaTokenizer", "GemmaTokenizerFast", "Siglip2Tokenizer"])
def test_the_second_siglip_sees_punctuation_but_no_capitals(copied: Path, tokenizer: str):
    edit(copied / "tokenizer_config.json", tokenizer_class=tokenizer)
    tokens, _ = encoder_in(copied, ("text",)).tokenize(["The Cake!", "the cake"])
    assert tokens[0].tolist() == [THE, CAKE, 15, END]
    assert tokens[1].tolist() == [THE, CAKE, END]


def test_lower_case_follows_the_files_where_they_say_otherwise(copied: Path):
    edit(copied / "tokenizer_config.json", do_lower_case=False)
    assert encoder_in(copied, ("text",)).tokenize(["The Cake!"])[0][0].tolist() == [13, 14, 15, END]


@pytest.mark.parametrize(("options", "last"), [({"padding_side": "right"}, PAD), ({}, END)])
def test_padding_stands_on_the_side_that_the_tokenizer_says(copied: Path, options: dict, last: int, monkeypatch):
    edit(copied / "tokenizer_config.json", tokenizer_class="Siglip2Tokenizer", **options)
    encoder = encoder_in(copied, ("text",))
    seen = []
    encoder.towers["text"].register_forward_pre_hook(
        lambda _, __, inputs: seen.append(inputs["input_ids"]), with_kwargs=True
    )
    encoder.encode_tokens(encoder.tokenize(["the cake"])[0], 16)
    assert seen[0][0, -1] == last


def test_a_long_text_keeps_its_end_and_is_counted(encoder: SiglipEncoder):
    tokens, cut = encoder.tokenize(["cake " * 15, "cake " * 16])
    assert [len(ids) for ids in tokens] == [16, 16]
    assert [ids[-1] for ids in tokens] == [END, END]
    assert cut.tolist() == [False, True]


def test_one_kind_loads_one_tower(siglip_folder: Path, encoder: SiglipEncoder, pixels):
    alone = encoder_in(siglip_folder, ("image",))
    assert list(alone.towers) == ["image"]
    assert np.array_equal(alone.encode_images(pixels), encoder.encode_images(pixels))


def test_a_tokenizer_without_padding_is_refused(copied: Path):
    edit(copied / "tokenizer_config.json", pad_token="<nothing>")
    with pytest.raises(UsageError, match="pad_token"):
        encoder_in(copied)


def test_damaged_weights_are_refused(copied: Path):
    (copied / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(CacheError, match="cannot be loaded"):
        encoder_in(copied)
