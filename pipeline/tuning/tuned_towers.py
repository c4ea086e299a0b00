"""Tuned towers on disk, and an encoder that wears those of one member after the other.

Towers are kept as their difference to the frozen weights, in float16: of each changed tensor, as vp loads it. Trained
by `--lora` they are kept as the matrices of `features.lora`.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open

from features import durable
from features.encoders import EncoderConfig
from features.errors import CacheError
from features.families import TowerEncoder
from features.lora import addition, kept_name
from pipeline.runs import Run

FORMAT = "vp-towers"
SCHEMA = 1
_KEY = "vp"


def towers_name(name: str, fold: int, moment: str) -> str:
    """Where a run keeps the towers of a member, inside its folder."""
    return f"checkpoints/{name}_fold{fold}_{moment}_towers.safetensors"


def changed_towers(
    start: Mapping[str, torch.Tensor], tuned: Mapping[str, torch.Tensor]
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """What a file keeps of towers, and their values as whoever loads it will have them; heads are kept elsewhere.

    Of a tensor that changed it keeps the difference, in float16; low-rank additions it keeps as they are.
    """
    kept, as_loaded = {}, {}
    for name, value in tuned.items():
        if name.startswith("heads."):
            continue
        if (of_addition := kept_name(name)) is not None:
            kept[of_addition] = as_loaded[name] = value
            continue
        difference = (value - start[name]).to(torch.float16)
        as_loaded[name] = start[name] + difference.to(value)
        if bool(difference.any()):
            kept[name] = difference
    return kept, as_loaded


def write_towers(path: Path, differences: Mapping[str, torch.Tensor], facts: Mapping[str, Any]) -> None:
    """Publish the towers of a member; `facts` are kept in the file."""
    document = json.dumps({"format": FORMAT, "schema": SCHEMA, **facts}, sort_keys=True)
    durable.publish(path, safetensors.torch.save(dict(differences), metadata={_KEY: document}))


class ChangingEncoder:
    """A frozen encoder in float32 that can be given the towers of one member after the other.

    In float32, as bf16 would round most of the differences away.
    """

    def __init__(self, encoder: TowerEncoder, config: EncoderConfig) -> None:
        self.encoder, self._config = encoder, config
        self._frozen: dict[str, torch.Tensor] = {}
        self._worn = ""

    def wear(self, run: Run, towers: str) -> None:
        """Have the towers that a file of a run holds.

        Raises
        ------
        CacheError
            The file is missing or damaged, or belongs to another encoder.
        """
        if towers == self._worn:
            return
        kept = _read_towers(run.verified(towers), self._config)
        for name, parameter in self._parameters():
            if name in self._frozen:
                parameter.copy_(self._frozen[name])
            if (change := _change(kept, name)) is not None:
                self._frozen.setdefault(name, parameter.to("cpu", copy=True))
                parameter.add_(change.to(parameter.device, parameter.dtype))
        self._worn = towers

    def _parameters(self) -> Iterator[tuple[str, torch.Tensor]]:
        """All of them by the names that a file uses, without gradients."""
        for kind, tower in self.encoder.towers.items():
            yield from ((f"{kind}.{name}", parameter.data) for name, parameter in tower.named_parameters())


def _change(kept: Mapping[str, torch.Tensor], name: str) -> torch.Tensor | None:
    difference = kept.get(name)
    return addition(kept, name) if difference is None else difference


def _read_towers(path: Path, encoder: EncoderConfig) -> dict[str, torch.Tensor]:
    try:
        with safe_open(path, "pt") as file:
            document = json.loads((file.metadata() or {})[_KEY])
        kept = safetensors.torch.load_file(path)
        written_by, weights = (document["format"], document["schema"]), str(document["weights_sha256"])
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise CacheError(f"{path} is missing or damaged ({error}): run `vp finetune` again") from error
    if written_by != (FORMAT, SCHEMA):
        raise CacheError(f"{path} has format {written_by}, this vp reads {FORMAT} {SCHEMA}: run `vp finetune` again")
    if weights != encoder.weights_sha256:
        raise CacheError(
            f"{path} changes the encoder with weights {weights[:12]}, however {encoder.tag} has "
            f"{encoder.weights_sha256[:12]}: give the encoder that the run was made with"
        )
    return kept
