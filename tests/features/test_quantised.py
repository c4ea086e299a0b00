import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from features.encoders import resolve_encoder
from features.errors import UsageError
from features.families import load_encoder
from features.quantised import (
    BLOCK_ROWS,
    Agreement,
    Int8Linear,
    agreement,
    measured_agreement,
    quantise,
    require_agreement,
)

TEXTS = ["the best cake", "a cat and a dog", "the", "of a video", "The Cake ! ?"]


def loaded(folder: Path, precision: str = "fp32"):
    config = resolve_encoder(str(folder), folder.parent)
    return load_encoder(config, list(config.dim), "cpu", precision)


def linear(inputs: int, outputs: int, bias: bool = True) -> torch.nn.Linear:
    torch.manual_seed(0)
    return torch.nn.Linear(inputs, outputs, bias=bias)


def slow_product(rows: np.ndarray, layer: torch.nn.Linear) -> np.ndarray:
    """Steps of both factors, multiplied as whole numbers, one row at a time."""
    weight = layer.weight.detach().numpy()
    weight_scale = np.abs(weight).max(axis=1) / np.float32(127)
    weight_steps = np.rint(weight / weight_scale[:, None]).astype(np.int64)
    results = []
    for row in rows:
        scale = np.abs(row).max() / np.float32(127)
        steps = np.rint(row / scale).astype(np.int64)
        results.append((weight_steps @ steps) * scale * weight_scale)
    return np.stack(results) + (0 if layer.bias is None else layer.bias.detach().numpy())


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [1, 7, BLOCK_ROWS + 3])
def test_a_layer_equals_a_slow_product_of_whole_numbers(rows: int, bias: bool):
    layer, inputs = linear(24, 10, bias), np.random.default_rng(0).normal(size=(rows, 24)).astype(np.float32)
    with torch.inference_mode():
        ours = Int8Linear(layer)(torch.from_numpy(inputs)).numpy()
    assert np.allclose(ours, slow_product(inputs, layer), atol=1e-5)


def test_a_layer_is_near_the_one_in_float32():
    layer, inputs = linear(256, 64), torch.randn(3, 50, 256, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        exact, ours = layer(inputs), Int8Linear(layer)(inputs)
    assert ours.shape == exact.shape
    assert 0 < (ours - exact).norm() < 0.02 * exact.norm()


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.floats(1e-6, 1e6))
def test_a_row_does_not_depend_on_its_companions(others: int, size: float):
    layer, draw = Int8Linear(linear(16, 8)), torch.Generator().manual_seed(others)
    row, companions = torch.randn(1, 16, generator=draw), size * torch.randn(others, 16, generator=draw)
    with torch.inference_mode():
        assert torch.equal(layer(torch.cat([row, companions]))[:1], layer(row))


def test_a_row_of_zeros_gives_the_bias():
    layer = linear(16, 8)
    with torch.inference_mode():
        assert torch.equal(Int8Linear(layer)(torch.zeros(2, 16)), layer.bias.expand(2, 8))


def test_quantising_shares_what_it_leaves_alone_and_changes_nothing_of_the_original(sentence_folder):
    exact = loaded(sentence_folder("bert"))
    tokens, _ = exact.tokenize(TEXTS)
    before = exact.encode_tokens(tokens, 24)
    quantised = quantise(exact)
    assert np.array_equal(exact.encode_tokens(tokens, 24), before)
    layers = list(quantised.towers["text"].modules())
    assert sum(isinstance(layer, Int8Linear) for layer in layers) == 2 * 6  # of 2 layers: query, key, value and 3 more
    assert not any(type(layer) is torch.nn.Linear for layer in layers)
    shared = {weight.data_ptr() for weight in exact.towers["text"].parameters()}
    assert {weight.data_ptr() for weight in quantised.towers["text"].parameters()} <= shared


@pytest.mark.parametrize("family", ["siglip", "dinov2", "dinov3_vit", "bert", "mpnet", "modernbert"])
def test_every_family_works_in_8_bits_and_agrees_with_itself(siglip_folder, dino_folder, sentence_folder, family: str):
    made = dino_folder if family.startswith("dino") else sentence_folder
    folder = siglip_folder if family == "siglip" else made(family)
    exact, quantised = loaded(folder), loaded(folder, "int8")
    preprocess, texts = exact.config.preprocess, TEXTS if exact.config.text else []
    pixels = np.random.default_rng(0).integers(0, 256, (5, 3, *preprocess.output), np.uint8) if preprocess else None
    found = measured_agreement(exact, quantised, pixels=pixels, texts=texts, batch_size=2)
    assert set(found) == set(exact.config.dim)
    assert all(0.97 < kind.centred_mean < 1 and kind.inputs == 5 for kind in found.values())


def test_8_bits_are_refused_on_a_gpu(sentence_folder):
    config = resolve_encoder(str(sentence_folder("bert")), sentence_folder("bert").parent)
    with pytest.raises(UsageError, match="for CPUs, however the device is cuda:0"):
        load_encoder(config, ["text"], "cuda:0", "int8")


def test_agreement_by_hand():
    exact = np.array([[10, 1], [10, -1]], np.float32)
    other = np.array([[10, 1], [10, 1]], np.float32)
    found = agreement(exact, other)
    assert found.centred_mean == 0  # centred: (0, 1) and (0, -1) against (0, 1) and (0, 1)
    assert found.centred_smallest == -1
    assert found.smallest == pytest.approx(99 / 101)
    assert found.mean == pytest.approx((1 + 99 / 101) / 2)


def test_vectors_that_8_bits_change_too_much_are_refused_with_the_numbers():
    good = Agreement(inputs=64, mean=1.0, smallest=1.0, centred_mean=0.998, centred_smallest=0.985)
    bad = Agreement(inputs=64, mean=0.999, smallest=0.998, centred_mean=0.9712, centred_smallest=0.96)
    require_agreement({"image": good}, "a")
    with pytest.raises(UsageError, match=r"text vectors of a .* 0\.9712 .* 0\.9600 .* 64 inputs.* --precision fp32"):
        require_agreement({"image": good, "text": bad}, "a")


def test_an_agreement_is_ready_for_json():
    found = Agreement(inputs=64, mean=0.99999999, smallest=0.998, centred_mean=0.97, centred_smallest=0.9)
    written = '{"inputs": 64, "mean": 1.0, "smallest": 0.998, "centred_mean": 0.97, "centred_smallest": 0.9}'
    assert json.dumps(found.to_dict()) == written
