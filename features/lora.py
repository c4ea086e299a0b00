"""Low-rank additions to the linear layers of a tower (LoRA, arXiv:2106.09685): trained through peft, read without it.

A layer with weight W computes W + B A, where A is (rank, inputs), B is (outputs, rank) and begins at zero; nothing but
A and B is trained. The additions have no factor of their own (peft's `lora_alpha` is the rank).
"""

import importlib.util
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float

from features.errors import UsageError
from features.layers import linear_layers

_A, _B = ".lora_A.default.weight", ".lora_B.default.weight"
"""How peft ends the names of its parameters, behind the name of a layer."""
_KEPT_A, _KEPT_B = ".weight.lora_a", ".weight.lora_b"
"""How a file ends them."""


def require_peft() -> None:
    """Raise UsageError unless peft is installed."""
    if importlib.util.find_spec("peft") is None:
        raise UsageError("--lora needs the package peft: install it with `pip install peft`, or leave out --lora")


def add_lora(tower: Any, rank: int, which: str, seed: int) -> None:
    """Add to the linear layers of the blocks that `all`, or `last:N`, means; the tower computes what it did before."""
    require_peft()
    from peft import LoraConfig, inject_adapter_in_model  # noqa: PLC0415 - optional, and takes seconds

    chosen = LoraConfig(r=rank, lora_alpha=rank, target_modules=linear_layers(tower, which))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(chosen, tower)
    tower.eval()


def is_a(name: str) -> bool:
    """Whether a parameter is the A of an addition.

    >>> is_a("layers.0.mlp.fc1.lora_A.default.weight"), is_a("layers.0.mlp.fc1.base_layer.weight")
    (True, False)
    """
    return name.endswith(_A)


def kept_name(name: str) -> str | None:
    """The name under which a file keeps a parameter of an addition: that of the weight it is added to, and which it is.

    >>> kept_name("layers.0.mlp.fc1.lora_A.default.weight")
    'layers.0.mlp.fc1.weight.lora_a'
    >>> kept_name("layers.0.mlp.fc1.bias")
    """
    for ending, kept in ((_A, _KEPT_A), (_B, _KEPT_B)):
        if name.endswith(ending):
            return name.removesuffix(ending) + kept
    return None


def addition(kept: Mapping[str, torch.Tensor], name: str) -> Float[torch.Tensor, "outputs inputs"] | None:
    """What a file adds to the weight of this name; None where it adds nothing."""
    layer = name.removesuffix(".weight")
    if (a := kept.get(layer + _KEPT_A)) is None:
        return None
    return kept[layer + _KEPT_B] @ a
