"""Layers of a tower, and how fast each learns: counted by hand."""

import pytest
import torch

from features.encoders import resolve_encoder
from features.errors import UsageError
from features.families import load_encoder
from features.layers import last_blocks, layer_depths, learning_rate_scales, unfrozen


@pytest.fixture(scope="module")
def towers(tmp_path_factory):
    encoder = resolve_encoder("tiny", tmp_path_factory.mktemp("models"))
    return load_encoder(encoder, ["image", "text"], "cpu", "fp32").towers


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (
            "image",
            {
                "embeddings.patch_embedding.weight": 0.125,
                "pre_layrnorm.weight": 0.125,
                "layers.0.self_attn.q_proj.weight": 0.25,
                "layers.1.mlp.fc1.bias": 0.5,
                "post_layernorm.bias": 1.0,
                "visual_projection.weight": 1.0,
            },
        ),
        (
            "text",
            {
                "embeddings.token_embedding.weight": 0.125,
                "layers.0.layer_norm1.weight": 0.25,
                "layers.1.self_attn.v_proj.weight": 0.5,
                "final_layer_norm.weight": 1.0,
                "text_projection.weight": 1.0,
            },
        ),
    ],
)
def test_a_tower_of_two_blocks_has_four_learning_rates(towers, kind, expected):
    scales = learning_rate_scales(layer_depths(towers[kind]), 0.5)
    found = {end: {scale for name, scale in scales.items() if name.endswith(end)} for end in expected}
    assert found == {end: {scale} for end, scale in expected.items()}


def test_the_last_block_and_what_is_behind_it_can_be_unfrozen_alone(towers):
    names = unfrozen(layer_depths(towers["text"]), 2, "last:1")
    assert any("layers.1." in name for name in names)
    assert "text_projection.weight" in names
    assert not any("layers.0." in name or "embeddings" in name for name in names)


def test_where_nothing_is_behind_the_last_block_it_is_that_block_alone():
    assert unfrozen({"embed": 0, "first": 1, "second": 2}, 2, "last:1") == ["second"]


def test_more_blocks_than_there_are_means_all_blocks_but_not_what_is_before_them(towers):
    depths = layer_depths(towers["text"])
    assert unfrozen(depths, 2, "all") == list(depths)
    assert unfrozen(depths, 2, "last:9") == unfrozen(depths, 2, "last:2") == [name for name in depths if depths[name]]


@pytest.mark.parametrize("which", ["last", "last:0", "last:x", "first:2", ""])
def test_anything_else_is_refused(which):
    with pytest.raises(UsageError, match="all, or last:N"):
        last_blocks(which)


def test_a_tower_without_blocks_is_refused():
    with pytest.raises(UsageError, match="no list of blocks"):
        layer_depths(torch.nn.Linear(2, 2))
