"""The towers of an encoder as they are trained: which of their parameters, how fast each, and how to begin anew."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from features.families import TowerEncoder
from features.layers import block_count, layer_depths, learning_rate_scales, unfrozen
from features.lora import add_lora, is_a
from pipeline.config import FinetuneConfig

WEIGHT_DECAY = 0.05

Values = dict[str, torch.Tensor]
"""Trained parameters by name, on the CPU: `image.` and `text.` of the towers, `heads.` of the heads."""


class TrainedTowers:
    """Made once for an encoder, whichever folds are trained on it one after the other; `reset` begins the next.

    `names` say which of its towers, "image" and "text"; `parameters` are those that are trained, `groups` are for
    AdamW, `start` are their values before any training.
    """

    def __init__(self, encoder: TowerEncoder, names: Sequence[str], config: FinetuneConfig) -> None:
        self.encoder, self._config = encoder, config
        self.parameters: dict[str, torch.nn.Parameter] = {}
        self._group_of: dict[tuple[float, float], list[torch.nn.Parameter]] = {}
        trained = [] if config.freeze_clip else names
        self._towers = [encoder.towers[name] for name in trained]
        for name in trained:
            self._unfreeze(name, encoder.towers[name])
        self.start: Values = copied(self.parameters)

    @property
    def groups(self) -> list[dict[str, Any]]:
        """Parameters of one learning rate and weight decay each."""
        return [
            {"params": parameters, "lr": lr, "weight_decay": decay}
            for (lr, decay), parameters in self._group_of.items()
        ]

    def reset(self) -> None:
        """Make the parameters what they were before any training."""
        put(self.parameters, self.start)

    def training(self, *, on: bool) -> None:
        """Put towers that train into the mode of training (dropout, gradient checkpointing), or of use."""
        for tower in self._towers:
            tower.train(on)

    def _unfreeze(self, tower_name: str, tower: Any) -> None:
        config = self._config
        if config.lora:
            add_lora(tower, config.lora, config.unfreeze, config.seed)
        depths = layer_depths(tower)
        scales = learning_rate_scales(depths, config.layer_decay)
        chosen = set(unfrozen(depths, block_count(tower), config.unfreeze))
        for name, parameter in tower.named_parameters():
            is_trained = parameter.requires_grad if config.lora else name in chosen
            parameter.requires_grad_(requires_grad=is_trained)
            if is_trained:
                self.parameters[f"{tower_name}.{name}"] = parameter
                decay = WEIGHT_DECAY if parameter.ndim >= 2 else 0.0
                self._group_of.setdefault((config.tower_lr * scales[name], decay), []).append(parameter)
        if config.gradient_checkpointing:
            checkpoint_activations(tower)


def copied(parameters: Mapping[str, torch.Tensor]) -> Values:
    """Parameters as they are now, on the CPU: a device holds what every step needs."""
    return {name: parameter.detach().to("cpu", copy=True) for name, parameter in parameters.items()}


@torch.no_grad()
def put(parameters: Mapping[str, torch.Tensor], values: Mapping[str, torch.Tensor]) -> None:
    """Make parameters these values."""
    for name, parameter in parameters.items():
        parameter.copy_(values[name])


def mixed(start: Mapping[str, torch.Tensor], tuned: Mapping[str, torch.Tensor], factor: float) -> Values:
    """Values on the way from `start` (0) to `tuned` (1), towers and heads alike: WiSE-FT (arXiv:2109.01903).

    A weight with an addition B A goes the same way as one that is trained itself if B does and A is the tuned one.
    """
    if factor == 0:
        return dict(start)
    return {name: value if is_a(name) else torch.lerp(start[name], value, factor) for name, value in tuned.items()}


def checkpoint_activations(tower: Any) -> None:
    """Have a tower keep the inputs of its blocks alone while it trains, and compute the rest again.

    Under the name that transformers gives it today, or the older one.

    Either also makes the embeddings of tokens ask for gradients, which reentrant checkpoints need and ours do not: they
    would flow back through all the blocks that are frozen.
    """
    options = {"use_reentrant": False}
    if hasattr(tower, "activation_checkpointing_enable"):
        tower.activation_checkpointing_enable(activation_checkpointing_kwargs=options)
    else:
        tower.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)
    tower.disable_input_require_grads()
