"""Low-rank additions: nothing changes at first, only they are trained, and a file gives the same without peft."""

import sys

import pytest
import torch

from features.encoders import resolve_encoder
from features.errors import UsageError
from features.families import load_encoder
from features.layers import linear_layers
from features.lora import add_lora, addition, kept_name, require_peft


@pytest.fixture
def tower(tmp_path):
    return loaded(tmp_path)


def loaded(folder):
    return load_encoder(resolve_encoder("tiny", folder), ["image"], "cpu", "fp32").towers["image"]


def vectors(tower):
    pixels = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    return tower(torch.nn.functional.interpolate(pixels, tower.config.image_size)).image_embeds


def draw(tower, seed=0):
    """Give every addition values that are not zero."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in tower.parameters():
        if parameter.requires_grad:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1


def test_additions_begin_at_nothing(tower):
    before = vectors(tower)
    add_lora(tower, 3, "all", 0)
    assert torch.equal(vectors(tower), before)


def test_nothing_but_the_additions_is_trained(tower):
    add_lora(tower, 3, "all", 0)
    trained = {name: parameter for name, parameter in tower.named_parameters() if parameter.requires_grad}
    assert trained
    assert all(kept_name(name) for name in trained)
    assert all(3 in parameter.shape for parameter in trained.values())


def test_the_last_blocks_can_have_them_alone(tower):
    layers = linear_layers(tower, "last:1")
    add_lora(tower, 3, "last:1", 0)
    trained = [name for name, parameter in tower.named_parameters() if parameter.requires_grad]
    assert len(layers) == 6  # query, key, value and output, and two behind them
    assert all(layer.startswith("vision_model.encoder.layers.1.") for layer in layers)
    assert {name.partition(".lora_")[0] for name in trained} == set(layers)


def test_one_seed_gives_one_beginning_and_leaves_other_random_numbers_alone(tmp_path):
    towers = [loaded(tmp_path / "a"), loaded(tmp_path / "b")]
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    for tower in towers:
        add_lora(tower, 3, "all", 5)
    assert torch.equal(torch.rand(3), expected)
    first, second = (dict(tower.named_parameters()) for tower in towers)
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_what_is_kept_gives_the_same_vectors_without_peft(tmp_path):
    tuned, plain = loaded(tmp_path / "a"), loaded(tmp_path / "b")
    add_lora(tuned, 3, "all", 0)
    draw(tuned)
    kept = {kept_name(name): value for name, value in tuned.named_parameters() if kept_name(name)}
    changed = vectors(tuned)
    assert (changed - vectors(plain)).abs().max() > 1e-2
    with torch.no_grad():
        for name, parameter in plain.named_parameters():
            if (added := addition(kept, name)) is not None:
                parameter.add_(added)
    torch.testing.assert_close(vectors(plain), changed, rtol=1e-4, atol=1e-5)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UsageError, match="--lora needs the package peft: install it"):
        require_peft()
