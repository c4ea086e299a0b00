import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from transformers import CLIPModel, CLIPTokenizer
from transformers.utils import logging as transformers_logging

from features.clip import ClipEncoder, FoldedSiLU
from features.encoders import EncoderConfig, resolve_encoder
from features.errors import CacheError, UsageError
from features.preprocess import normalise
from features.tiny import build_tiny

TEXTS = ["Minecraft but I can't stop 😱 | part 2", "", "the best of", "日本 " * 60, "the " * 75, "the " * 76]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip") / "tiny"
    build_tiny(folder)
    return folder


@pytest.fixture(scope="module")
def config(checkpoint: Path) -> EncoderConfig:
    return resolve_encoder(str(checkpoint), checkpoint.parent)


@pytest.fixture(scope="module")
def encoder(config: EncoderConfig) -> ClipEncoder:
    return ClipEncoder(config, ["image", "text"], "cpu", "fp32")


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (5, 3, 64, 64), np.uint8)


def copy_of(checkpoint: Path, folder: Path, edit=None) -> Path:
    shutil.copytree(checkpoint, folder)
    if edit is not None:
        content = json.loads((folder / "config.json").read_text())
        edit(content)
        (folder / "config.json").write_text(json.dumps(content))
    return folder


def encoder_in(folder: Path) -> ClipEncoder:
    config = resolve_encoder(str(folder), folder.parent, allow_bin_weights=True)
    return ClipEncoder(config, ["image", "text"], "cpu", "fp32")


def reference_text_vectors(folder: Path, texts: list[str]) -> np.ndarray:
    tokens = CLIPTokenizer.from_pretrained(folder)(
        texts, padding="max_length", truncation=True, max_length=77, return_tensors="pt"
    )
    with torch.inference_mode():
        return CLIPModel.from_pretrained(folder).get_text_features(**tokens).pooler_output.numpy()


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_image_vectors_equal_those_of_the_whole_model(checkpoint: Path, tmp_path: Path, pixels, activation: str):
    folder = copy_of(checkpoint, tmp_path / "a", lambda c: c["vision_config"].update(hidden_act=activation))
    encoder = encoder_in(folder)
    model = CLIPModel.from_pretrained(folder)
    assert model.config.vision_config.hidden_act == activation
    with torch.inference_mode():
        inputs = normalise(torch.from_numpy(pixels), encoder.config.preprocess, torch.float32)
        expected = model.get_image_features(inputs).pooler_output.numpy()
    assert np.abs(expected).max() > 0.1
    assert np.allclose(encoder.encode_images(pixels), expected, atol=1e-5)


@pytest.mark.parametrize("eos_token_id", ["legacy", "real"])
def test_text_vectors_equal_those_of_the_whole_model(checkpoint: Path, tmp_path: Path, eos_token_id: str):
    edit = (lambda c: c["text_config"].update(eos_token_id=2)) if eos_token_id == "legacy" else None
    folder = copy_of(checkpoint, tmp_path / "a", edit)
    encoder = encoder_in(folder)
    expected = reference_text_vectors(folder, TEXTS)
    assert np.allclose(encoder.encode_tokens(encoder.tokenize(TEXTS)[0], 77), expected, atol=1e-5)


def test_a_trimmed_text_has_the_vector_of_a_padded_one(encoder: ClipEncoder):
    tokens = [ids for ids in encoder.tokenize(TEXTS)[0] if len(ids) <= 24]
    assert len(tokens) >= 3
    assert np.allclose(encoder.encode_tokens(tokens, 24), encoder.encode_tokens(tokens, 77), atol=1e-5)


def test_a_cut_text_keeps_its_end_token_and_is_counted(encoder: ClipEncoder, checkpoint: Path):
    tokens, truncated = encoder.tokenize(TEXTS)
    expected = CLIPTokenizer.from_pretrained(checkpoint)(TEXTS, truncation=True, max_length=77)["input_ids"]
    assert [ids.tolist() for ids in tokens] == expected
    assert truncated.tolist() == [False, False, False, True, False, True]
    assert {ids[-1] for ids in tokens} == {tokens[1][1]}


def test_a_length_that_does_not_fit_is_refused(encoder: ClipEncoder):
    tokens = encoder.tokenize(["the best of"])[0]
    for pad_to in (2, 78):
        with pytest.raises(ValueError, match="pad_to"):
            encoder.encode_tokens(tokens, pad_to)


def test_equal_batch_shapes_give_equal_bits_whatever_else_is_in_the_batch(encoder: ClipEncoder, pixels):
    mirrored = np.concatenate([pixels[:1], pixels[1:][::-1]])
    assert np.array_equal(encoder.encode_images(pixels)[0], encoder.encode_images(mirrored)[0])


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
def test_the_folded_activation_gives_equal_bits_wherever_a_row_lies_and_however_many_threads_compute(threads: int):
    rows = torch.randn(539, 2048, generator=torch.Generator().manual_seed(0))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.inference_mode():
            together = FoldedSiLU()(rows)
            parts = torch.cat([FoldedSiLU()(rows[start : start + 7].clone()) for start in range(0, 539, 7)])
    finally:
        torch.set_num_threads(before)
    assert torch.equal(together, parts)
    assert torch.allclose(together, torch.nn.functional.silu(rows), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_lower_precision_gives_nearly_the_same_direction(config, encoder: ClipEncoder, pixels, precision: str):
    low = ClipEncoder(config, ["image"], "cpu", precision).encode_images(pixels)
    full = encoder.encode_images(pixels)
    cosine = (low * full).sum(1) / np.linalg.norm(low, axis=1) / np.linalg.norm(full, axis=1)
    assert low.dtype == np.float32
    assert not np.array_equal(low, full)
    assert cosine.min() > 0.999


def test_one_modality_loads_one_tower(config: EncoderConfig, encoder: ClipEncoder, pixels):
    alone = ClipEncoder(config, ["image"], "cpu", "fp32")
    assert np.array_equal(alone.encode_images(pixels), encoder.encode_images(pixels))
    assert list(alone.towers) == ["image"]


def test_loading_prints_nothing_and_leaves_the_settings_of_transformers_alone(config: EncoderConfig, capfd):
    settings = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    ClipEncoder(config, ["image", "text"], "cpu", "fp32")
    assert capfd.readouterr() == ("", "")
    assert (transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()) == settings
    assert logging.getLogger("transformers").level == settings[0]


def test_towers_that_state_another_width_follow_the_whole_model(checkpoint: Path, tmp_path: Path, pixels):
    def as_in_some_published_files(content: dict) -> None:
        content["text_config"]["projection_dim"] = content["vision_config"]["projection_dim"] = 512

    folder = copy_of(checkpoint, tmp_path / "a", as_in_some_published_files)
    assert encoder_in(folder).encode_images(pixels).shape == (5, 64)


def test_weights_that_are_not_complete_are_refused(checkpoint: Path, tmp_path: Path):
    folder = copy_of(checkpoint, tmp_path / "a")
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    del weights["visual_projection.weight"]
    safetensors.torch.save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(CacheError, match=r"visual_projection\.weight"):
        encoder_in(folder)


def test_damaged_weights_are_refused(checkpoint: Path, tmp_path: Path):
    folder = copy_of(checkpoint, tmp_path / "a")
    (folder / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(CacheError, match="cannot be loaded"):
        encoder_in(folder)


def test_a_tokenizer_with_another_end_token_is_refused(checkpoint: Path, tmp_path: Path):
    folder = copy_of(checkpoint, tmp_path / "a", lambda c: c["text_config"].update(eos_token_id=7))
    with pytest.raises(UsageError, match="token 7"):
        encoder_in(folder)


def test_pickled_weights_load_without_running_code(checkpoint: Path, tmp_path: Path, pixels, encoder: ClipEncoder):
    folder = copy_of(checkpoint, tmp_path / "a")
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    assert np.array_equal(encoder_in(folder).encode_images(pixels), encoder.encode_images(pixels))


class Payload:
    """Pickles into a call that creates a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


def test_a_hostile_pickle_is_not_run(checkpoint: Path, tmp_path: Path):
    folder = copy_of(checkpoint, tmp_path / "a")
    (folder / "model.safetensors").unlink()
    torch.save({"weight": Payload(tmp_path / "ran")}, folder / "pytorch_model.bin")
    with pytest.raises(CacheError, match="cannot be loaded"):
        encoder_in(folder)
    assert not (tmp_path / "ran").exists()


def test_sharded_weights_load_as_one(checkpoint: Path, tmp_path: Path, pixels, encoder: ClipEncoder):
    folder = copy_of(checkpoint, tmp_path / "a")
    (folder / "model.safetensors").unlink()
    CLIPModel.from_pretrained(checkpoint).save_pretrained(folder, max_shard_size="1MB")
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    assert np.array_equal(encoder_in(folder).encode_images(pixels), encoder.encode_images(pixels))
