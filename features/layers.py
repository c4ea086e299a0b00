"""The layers of a tower in order, so that those near the pixels can learn more slowly than those near the vector."""

from collections.abc import Mapping
from typing import Any

import torch

from features.errors import UsageError


def layer_depths(tower: Any) -> dict[str, int]:
    """Depth of each parameter by name: 0 before the first block, 1, 2, ... in the blocks, one more behind the last.

    The blocks are the longest list of modules of the tower; what comes before and behind follows from the order in
    which its parameters are registered.
    """
    prefix, n_blocks = _blocks(tower)
    depths, passed = {}, False
    for name, _ in tower.named_parameters():
        inside = name.startswith(prefix)
        passed = passed or inside
        depths[name] = 1 + int(name.removeprefix(prefix).partition(".")[0]) if inside else (n_blocks + 1) * passed
    return depths


def learning_rate_scales(depths: Mapping[str, int], decay: float) -> dict[str, float]:
    """Factor on the learning rate of each parameter: 1 at the greatest depth, `decay` less for every layer before it.

    As in BEiT (arXiv:2106.08254) and FT-CLIP (arXiv:2212.06138).

    >>> learning_rate_scales({"embed": 0, "block": 1, "head": 2}, 0.5)
    {'embed': 0.25, 'block': 0.5, 'head': 1.0}
    """
    deepest = max(depths.values())
    return {name: decay ** (deepest - depth) for name, depth in depths.items()}


def unfrozen(depths: Mapping[str, int], blocks: int, which: str) -> list[str]:
    """Names of the parameters that `all`, or `last:N` of so many blocks and what is behind them, means.

    >>> unfrozen({"embed": 0, "first": 1, "second": 2, "head": 3}, 2, "last:1")
    ['second', 'head']
    """
    least = 0 if which == "all" else max(blocks - last_blocks(which) + 1, 1)
    return [name for name, depth in depths.items() if depth >= least]


def block_count(tower: Any) -> int:
    """How many blocks a tower has."""
    return _blocks(tower)[1]


def linear_layers(tower: Any, which: str) -> list[str]:
    """Names of the linear layers in the blocks that `all`, or `last:N`, means."""
    prefix, n_blocks = _blocks(tower)
    least = 0 if which == "all" else n_blocks - last_blocks(which)
    linear = [name for name, module in tower.named_modules() if isinstance(module, torch.nn.Linear)]
    inside = [name for name in linear if name.startswith(prefix)]
    return [name for name in inside if int(name.removeprefix(prefix).partition(".")[0]) >= least]


def last_blocks(which: str) -> int:
    """The N of `last:N`.

    Raises
    ------
    UsageError
        It is neither that nor `all`.
    """
    word, _, number = which.partition(":")
    if word != "last" or not number.isdecimal() or int(number) < 1:
        raise UsageError(f"--unfreeze takes all, or last:N with N at least 1, not {which}")
    return int(number)


def _blocks(tower: Any) -> tuple[str, int]:
    lists = [(name, module) for name, module in tower.named_modules() if isinstance(module, torch.nn.ModuleList)]
    if not lists:
        raise UsageError(f"{type(tower).__name__} has no list of blocks, so its layers cannot be told apart")
    name, module = max(lists, key=lambda found: len(found[1]))
    return f"{name}.", len(module)
