import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel

from features.encoders import resolve_encoder
from features.errors import CacheError
from features.families import load_encoder
from features.sentences import PACKED, POOLINGS, SentenceEncoder
from features.text_layout import TextLayout

FAMILIES = ["bert", "mpnet", "roberta", "xlm-roberta", "modernbert"]
TEXTS = ["the best cake", "a cat and a dog", "the", "", "of a video", "The Cake ! ?", "best " * 40]


def encoder_in(folder: Path, precision: str = "fp32") -> SentenceEncoder:
    return load_encoder(resolve_encoder(str(folder), folder.parent), ["text"], "cpu", precision)


def plain_vectors(folder: Path, tokens: list[np.ndarray], pooling: str) -> np.ndarray:
    """One text at a time, without padding: what the model makes of it before any question of masks."""
    model = AutoModel.from_pretrained(folder).eval()
    rows = []
    for ids in tokens:
        with torch.inference_mode():
            hidden = model(torch.from_numpy(ids)[None]).last_hidden_state[0].numpy()
        rows.append({"mean": hidden.mean(0), "max": hidden.max(0), "cls": hidden[0], "last": hidden[-1]}[pooling])
    return np.stack(rows)


def assert_equal_vectors(ours: np.ndarray, expected: np.ndarray) -> None:
    cosine = (ours * expected).sum(1) / np.linalg.norm(ours, axis=1) / np.linalg.norm(expected, axis=1)
    assert cosine.min() > 0.9999
    assert np.abs(ours - expected).max() < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_vectors_equal_those_of_the_model_itself(sentence_folder: Callable[[str], Path], family: str):
    folder = sentence_folder(family)
    encoder = encoder_in(folder)
    tokens, _ = encoder.tokenize(TEXTS)
    expected = plain_vectors(folder, tokens, "mean")
    assert np.abs(expected[0] - expected[1]).max() > 0.05
    assert_equal_vectors(encoder.encode_tokens(tokens, encoder.text_layout.max_tokens), expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_trimmed_text_has_the_vector_of_a_padded_one(sentence_folder: Callable[[str], Path], family: str):
    encoder = encoder_in(sentence_folder(family))
    assert encoder.text_layout == TextLayout(encoder.config.max_tokens, step=1, packed=family in PACKED)
    tokens, _ = encoder.tokenize(TEXTS[:6])
    assert_equal_vectors(encoder.encode_tokens(tokens, 8), encoder.encode_tokens(tokens, 24))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_text_alone_has_the_vector_it_has_in_a_batch(sentence_folder: Callable[[str], Path], family: str):
    encoder = encoder_in(sentence_folder(family))
    tokens, _ = encoder.tokenize(TEXTS)
    alone = np.concatenate([encoder.encode_tokens([text], 24) for text in tokens])
    assert_equal_vectors(alone, encoder.encode_tokens(tokens, 24))


@pytest.mark.parametrize(
    ("key", "pooling"), [("cls_token", "cls"), ("mean_tokens", "mean"), ("max_tokens", "max"), ("lasttoken", "last")]
)
def test_every_pooling_equals_that_of_a_text_without_padding(sentence_folder, tmp_path: Path, key: str, pooling: str):
    folder = Path(shutil.copytree(sentence_folder("bert"), tmp_path / "copy"))
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({f"pooling_mode_{key}": True}))
    encoder = encoder_in(folder)
    assert encoder.config.text.pooling == pooling
    tokens, _ = encoder.tokenize(TEXTS)
    for pad_to in (24, None):
        assert_equal_vectors(encoder.encode_tokens(tokens, pad_to), plain_vectors(folder, tokens, pooling))


def test_poolings_by_hand():
    hidden = torch.tensor([[[1.0], [3.0], [-9.0]], [[-1.0], [-2.0], [-6.0]]])
    real = torch.tensor([[True, True, False], [True, True, True]])
    pooled = {name: pool(hidden, real).flatten().tolist() for name, pool in POOLINGS.items()}
    assert pooled == {"mean": [2, -3], "max": [3, -1], "cls": [1, -1], "last": [3, -6]}


def test_vectors_are_not_normalised_although_the_files_list_it(sentence_folder):
    encoder = encoder_in(sentence_folder("bert"))
    lengths = np.linalg.norm(encoder.encode_tokens(encoder.tokenize(TEXTS)[0], 24), axis=1)
    assert lengths.std() > 0.05


def test_a_long_text_is_cut_at_the_limit_of_the_files_and_keeps_its_end(sentence_folder):
    tokens, cut = encoder_in(sentence_folder("bert")).tokenize(["cake " * 22, "cake " * 23])
    assert [len(ids) for ids in tokens] == [24, 24]
    assert [ids[-1] for ids in tokens] == [2, 2]
    assert cut.tolist() == [False, True]


def test_a_prefix_stands_before_every_text(sentence_folder, tmp_path: Path):
    folder = Path(shutil.copytree(sentence_folder("bert"), tmp_path / "copy"))
    prompts = {"prompts": {"document": "the video of "}, "default_prompt_name": "document"}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    with_prefix, plain = encoder_in(folder), encoder_in(sentence_folder("bert"))
    assert with_prefix.tokenize(["a cake"])[0][0].tolist() == plain.tokenize(["the video of a cake"])[0][0].tolist()
    assert with_prefix.config.semantic() != plain.config.semantic()


def test_texts_are_all_it_reads(sentence_folder):
    encoder = encoder_in(sentence_folder("bert"))
    assert (list(encoder.config.dim), encoder.config.preprocess, encoder.config.image_size) == (["text"], None, None)
    with pytest.raises(ValueError, match="reads no pictures"):
        encoder.encode_images(np.zeros((1, 3, 2, 2), np.uint8))


def test_a_lower_precision_gives_nearly_the_same_direction(sentence_folder):
    full, low = (encoder_in(sentence_folder("bert"), precision) for precision in ("fp32", "bf16"))
    tokens, _ = full.tokenize(TEXTS)
    a, b = full.encode_tokens(tokens, 24), low.encode_tokens(tokens, 24)
    assert b.dtype == np.float32
    assert ((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).min() > 0.999


def test_weights_of_another_architecture_are_refused(sentence_folder, tmp_path: Path):
    folder = Path(shutil.copytree(sentence_folder("bert"), tmp_path / "copy"))
    shutil.copy(sentence_folder("modernbert") / "model.safetensors", folder)
    with pytest.raises(CacheError, match="not complete"):
        encoder_in(folder)
