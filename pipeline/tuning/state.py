"""How far the training of a fold is, on disk after every epoch, so that whoever continues it ends where it would have.

Tensors are published first, in files named by their epoch, then `state.json`, which names them; then older files go.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError

from features import durable
from features.errors import CacheError
from heads.members import EpochRecord

STATE = "state.json"

Tensors = dict[str, torch.Tensor]


@dataclass(eq=False)
class FoldState:
    """One fold after `epoch` epochs; tensors by parameter name.

    `values` are the parameters as they are trained, `average` their moving average, which is what validates and is
    kept; `first` and `second` are AdamW's moments. `errors` come last: moment -> sum of squared errors (z) for every
    factor of the interpolation.
    """

    epoch: int
    steps: int
    values: Tensors
    average: Tensors
    first: Tensors
    second: Tensors
    best: Tensors
    best_epoch: int
    records: list[EpochRecord] = field(default_factory=list)
    errors: dict[str, list[float]] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Publish everything."""
        durable.remove_leftovers(folder)
        files: dict[str, str] = {}
        published = (_facts(folder) or {"files": {}})["files"]
        for name in ("values", "average", "first", "second", "best"):
            epoch = self.best_epoch if name == "best" else self.epoch
            path = folder / f"{name}-epoch{epoch}.safetensors"
            if published.get(name) != path.name:  # else it is of a process that died, and may differ
                tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in getattr(self, name).items()}
                durable.publish(path, safetensors.torch.save(tensors))
            files[name] = path.name
        facts = {
            "epoch": self.epoch,
            "steps": self.steps,
            "best_epoch": self.best_epoch,
            "files": files,
            "records": [asdict(record) for record in self.records],
            "errors": self.errors,
        }
        durable.publish(folder / STATE, json.dumps(facts) + "\n")
        for path in folder.glob("*.safetensors"):
            if path.name not in files.values():
                durable.remove(path)

    @classmethod
    def read(cls, folder: Path) -> "FoldState | None":
        """What was published last, on the CPU; None if nothing was.

        Raises
        ------
        CacheError
            A file is damaged.
        """
        if (facts := _facts(folder)) is None:
            return None
        try:
            tensors = {
                name: safetensors.torch.load((folder / file).read_bytes()) for name, file in facts["files"].items()
            }
            return cls(
                epoch=facts["epoch"],
                steps=facts["steps"],
                best_epoch=facts["best_epoch"],
                records=[EpochRecord(**record) for record in facts["records"]],
                errors=facts["errors"],
                **tensors,
            )
        except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
            raise CacheError(
                f"{folder} cannot be continued ({error}): remove it and run `vp finetune` again"
            ) from error


def records_so_far(folder: Path) -> list[EpochRecord]:
    """The records of a fold that another process trains."""
    facts = _facts(folder)
    return [] if facts is None else [EpochRecord(**record) for record in facts["records"]]


def _facts(folder: Path) -> Mapping[str, Any] | None:
    try:
        return dict(json.loads((folder / STATE).read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        raise CacheError(
            f"{folder / STATE} is damaged ({error}): remove {folder} and run `vp finetune` again"
        ) from error
