"""Which parameters of an encoder are trained, how fast, and the way from the frozen weights to the tuned ones."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from features.encoders import resolve_encoder
from features.families import load_encoder
from pipeline.config import FinetuneConfig
from pipeline.tuning.towers import TrainedTowers, copied, mixed


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


def towers_of(models, **options):
    encoder = load_encoder(resolve_encoder("tiny", models), ["image", "text"], "cpu", "fp32")
    return TrainedTowers(encoder, ["image", "text"], FinetuneConfig(**options))


def all_names(towers):
    return {f"{kind}.{name}" for kind, tower in towers.encoder.towers.items() for name, _ in tower.named_parameters()}


def test_everything_is_trained_unless_told_otherwise(models):
    towers = towers_of(models)
    assert towers.parameters.keys() == all_names(towers)
    assert towers_of(models, freeze_clip=True).parameters == {}


def test_gradients_are_wanted_of_what_is_trained_alone(models):
    towers = towers_of(models, unfreeze="last:1")
    wanted = {
        f"{kind}.{name}"
        for kind, tower in towers.encoder.towers.items()
        for name, parameter in tower.named_parameters()
        if parameter.requires_grad
    }
    assert wanted == towers.parameters.keys() < all_names(towers)
    assert not any("layers.0." in name or "embeddings" in name for name in wanted)


@pytest.mark.parametrize(("options", "lr"), [({}, 1e-5), ({"lora": 2}, 1e-4), ({"lora": 2, "lr": 0.5}, 0.5)])
def test_each_layer_learns_more_slowly_than_the_one_behind_it(models, options, lr):
    """The tiny encoder has two blocks between what is before and behind them."""
    groups = towers_of(models, layer_decay=0.5, **options).groups
    depths = (0, 1, 2, 3) if not options else (1, 2)
    found = sorted({group["lr"] for group in groups})
    assert found == pytest.approx([lr * 0.5 ** (3 - depth) for depth in depths])
    assert len(groups) <= 2 * len(depths)


def test_every_trained_parameter_is_in_one_group_and_vectors_do_not_decay(models):
    towers = towers_of(models)
    grouped = [parameter for group in towers.groups for parameter in group["params"]]
    assert sorted(map(id, grouped)) == sorted(map(id, towers.parameters.values()))
    assert all((group["weight_decay"] == 0) == (group["params"][0].ndim < 2) for group in towers.groups)


def test_towers_begin_anew_after_a_reset(models):
    towers = towers_of(models)
    with torch.no_grad():
        for parameter in towers.parameters.values():
            parameter.add_(1.0)
    towers.reset()
    assert all(torch.equal(value, towers.start[name]) for name, value in copied(towers.parameters).items())


@given(st.floats(0, 1))
def test_between_two_weights_lies_a_straight_way(factor):
    start, tuned = {"a": torch.tensor([1.0, 2.0])}, {"a": torch.tensor([3.0, -2.0])}
    torch.testing.assert_close(mixed(start, tuned, factor)["a"], start["a"] + factor * (tuned["a"] - start["a"]))


@given(st.floats(0, 1))
def test_a_sum_with_a_product_goes_the_same_straight_way(factor):
    """W + B A at a factor is W + factor (B A), as if W itself were trained."""
    a, b = "fc.lora_A.default.weight", "fc.lora_B.default.weight"
    generator = torch.Generator().manual_seed(0)
    start = {a: torch.randn(2, 5, generator=generator), b: torch.zeros(4, 2)}
    tuned = {a: torch.randn(2, 5, generator=generator), b: torch.randn(4, 2, generator=generator)}
    found = mixed(start, tuned, factor)
    torch.testing.assert_close(found[b] @ found[a], factor * (tuned[b] @ tuned[a]))


@pytest.fixture(params=["clip", "siglip", "dinov2", "bert"])
def encoder(request, models, siglip_folder, dino_folder, sentence_folder):
    """An encoder of each family, with random weights."""
    find = {"clip": lambda: "tiny", "siglip": lambda: siglip_folder, "bert": lambda: sentence_folder("bert")}
    return resolve_encoder(str(find.get(request.param, lambda: dino_folder("dinov2"))()), models)


def test_no_gradient_flows_back_through_frozen_blocks_with_checkpoints_either(encoder):
    kinds = [kind for kind in encoder.dim if kind == "text"] or ["image"]
    config = FinetuneConfig(unfreeze="last:1", gradient_checkpointing=True)
    towers = TrainedTowers(load_encoder(encoder, kinds, "cpu", "fp32"), kinds, config)
    (tower,) = towers.encoder.towers.values()
    blocks = max((each for each in tower.modules() if isinstance(each, torch.nn.ModuleList)), key=len)
    inputs = []
    for block in blocks:
        block.register_forward_pre_hook(lambda _, given: inputs.append(given[0].requires_grad))
    towers.training(on=True)
    if kinds == ["text"]:
        tokens, _ = towers.encoder.tokenize(["a cake"])
        towers.encoder.text_vectors(tokens, towers.encoder.text_layout.width(len(tokens[0]))).sum().backward()
    else:
        towers.encoder.image_vectors(torch.zeros(1, 3, *encoder.preprocess.output)).sum().backward()
    assert inputs[: len(blocks)] == [False] * len(blocks)
    assert all(parameter.grad is not None for name, parameter in towers.parameters.items() if "layers.1" in name)


@pytest.mark.parametrize("options", [{}, {"unfreeze": "last:1"}, {"lora": 2}, {"gradient_checkpointing": True}])
def test_gradients_reach_what_is_trained_in_every_family(encoder, options):
    """All but what no vector depends on, such as the mask token of DINOv2."""
    kinds = list(encoder.dim)
    towers = TrainedTowers(load_encoder(encoder, kinds, "cpu", "fp32"), kinds, FinetuneConfig(**options))
    towers.training(on=True)
    generator = torch.Generator().manual_seed(0)
    if "image" in kinds:
        pixels = torch.randint(0, 256, (2, 3, *encoder.preprocess.output), generator=generator).float()
        towers.encoder.image_vectors(pixels).square().sum().backward()
    if "text" in kinds:
        tokens, _ = towers.encoder.tokenize(["a cake", "two"])
        length = towers.encoder.text_layout.width(max(map(len, tokens)))
        towers.encoder.text_vectors(tokens, length).square().sum().backward()
    reached = [name for name, parameter in towers.parameters.items() if parameter.grad is not None]
    assert len(reached) >= 0.9 * len(towers.parameters)
    assert {name.partition(".")[0] for name in reached} == set(kinds)
    moved = [name for name in reached if towers.parameters[name].grad.abs().sum() > 0]
    assert len(moved) >= (0.4 if options.get("lora") else 0.8) * len(reached)  # A waits for B, which begins at zero
