"""One member on disk: a safetensors file with its heads, and everything that is needed to use them as JSON in it.

No pickle is written or read: unpickling a file runs whatever code is in it.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from features import durable
from features.errors import CacheError
from heads.fitted import FittedHeads
from heads.members import FittedModel
from pipeline.json_shape import Every, Maybe, Whole, fault_in

FORMAT = "vp-heads"
SCHEMA = 1
_KEY = "vp"
_FACTS = {
    "heads": dict,
    "run": str,
    "fold": Whole(),
    "moment": str,
    "encoders": Every(str),
    "reference_date": str,
    "seed": Maybe(Whole()),
}
_HEADER_BYTES = 8


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """The heads of one member at one moment, and the facts of its run; no seed means that nothing is random."""

    heads: FittedModel
    run: str
    fold: int
    moment: str
    encoders: Mapping[str, str]
    reference_date: str
    seed: int | None = None


def write_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Publish a checkpoint; equal checkpoints give equal bytes."""
    document = {"format": FORMAT, "schema": SCHEMA, "heads": checkpoint.heads.to_metadata()}
    document |= {name: value for name, value in vars(checkpoint).items() if name != "heads"}
    metadata = {_KEY: json.dumps(document, sort_keys=True, ensure_ascii=True)}
    durable.publish(path, save(checkpoint.heads.to_arrays(), metadata=metadata))


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint.

    Raises
    ------
    CacheError
        The file is missing, cut, of another format (a pickle is refused unread), or does not fit this version of vp.
    """
    if path.suffix != ".safetensors":
        raise CacheError(f"{path} is not a .safetensors file: vp reads no other checkpoints, and unpickles none")
    try:
        raw = path.read_bytes()
        document = _metadata(raw)
        fields = {name: document[name] for name in ("run", "fold", "moment", "encoders", "reference_date")}
        return Checkpoint(heads=_model(load(raw), document["heads"]), seed=document.get("seed"), **fields)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, RecursionError, OverflowError) as error:
        raise CacheError(f"checkpoint {path} is missing or damaged ({error}): run `vp train-heads` again") from error


def _model(arrays: Mapping[str, np.ndarray], metadata: Mapping[str, Any]) -> FittedModel:
    if metadata["kind"] == "trees":
        from heads.tree_head import TreeModel  # noqa: PLC0415 - scipy, which additive heads do not need

        return TreeModel.from_arrays(arrays, metadata)
    return FittedHeads.from_arrays(arrays, metadata)


def _metadata(raw: bytes) -> dict[str, Any]:
    """The JSON that `write_checkpoint` put into the header of the file."""
    length = int.from_bytes(raw[:_HEADER_BYTES], "little")
    header = json.loads(raw[_HEADER_BYTES : _HEADER_BYTES + length])
    document = json.loads(header["__metadata__"][_KEY])
    if not isinstance(document, dict):
        raise TypeError("its metadata is no JSON object")
    if document["format"] != FORMAT or document["schema"] != SCHEMA:
        raise ValueError(f"format {document['format']!r} {document['schema']!r}, not {FORMAT!r} {SCHEMA}")
    there = {name: shape for name, shape in _FACTS.items() if name in document}
    if fault := fault_in(document, there):
        raise ValueError(fault)
    return document
