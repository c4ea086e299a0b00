from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel

from features.encoders import resolve_encoder
from features.families import load_encoder
from features.preprocess import normalise

FAMILIES = ["dinov2", "dinov2_with_registers", "dinov3_vit"]


@pytest.mark.parametrize("family", FAMILIES)
def test_vectors_equal_those_of_the_model_itself(dino_folder: Callable[[str], Path], family: str):
    folder = dino_folder(family)
    config = resolve_encoder(str(folder), folder.parent)
    encoder = load_encoder(config, ["image"], "cpu", "fp32")
    pixels = np.random.default_rng(0).integers(0, 256, (7, 3, *config.preprocess.output), np.uint8)
    with torch.inference_mode():
        inputs = normalise(torch.from_numpy(pixels), config.preprocess, torch.float32)
        expected = AutoModel.from_pretrained(folder).eval()(inputs).pooler_output.numpy()
    ours = encoder.encode_images(pixels)
    cosine = (ours * expected).sum(1) / np.linalg.norm(ours, axis=1) / np.linalg.norm(expected, axis=1)
    assert cosine.min() > 0.9999
    assert np.abs(ours - expected).max() < 1e-5
    assert np.abs(expected[0] - expected[1]).max() > 0.01
    alone = np.concatenate([encoder.encode_images(picture[None]) for picture in pixels])
    assert np.allclose(alone, ours, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_pictures_are_all_it_reads(dino_folder: Callable[[str], Path], family: str):
    folder = dino_folder(family)
    config = resolve_encoder(str(folder), folder.parent)
    assert (list(config.dim), config.text, config.tokenizer_sha256) == (["image"], None, None)
    assert {"text", "tokenizer_sha256"}.isdisjoint(config.semantic())
    encoder = load_encoder(config, ["image"], "cpu", "fp32")
    with pytest.raises(ValueError, match="reads no texts"):
        encoder.tokenize(["a"])
    with pytest.raises(ValueError, match="reads no texts"):
        encoder.encode_tokens([np.arange(2)], 8)


def test_the_size_of_the_pictures_is_that_of_the_preprocessing_not_of_the_training(dino_folder):
    folder = dino_folder("dinov2")
    config = resolve_encoder(str(folder), folder.parent)
    assert config.image_size == 28  # config.json says 56, at which its positions were trained
