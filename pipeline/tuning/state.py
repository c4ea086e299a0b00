"""How far the training of a fold is, on disk after every epoch, so that whoever continues it ends where it would have.

Tensors are published first, in files named by their epoch, then `state.json`, which names them; then older files go.
A fold that is trained to its end keeps only what members are made of.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError

from features import durable
from features.errors import CacheError
from heads.members import EpochRecord
from pipeline.tuning.unfinished import STATE, state_facts

Tensors = dict[str, torch.Tensor]

_TO_TRAIN_ON = ("values", "average", "first", "second")
_TRAINED = ("average",)


@dataclass(eq=False)
class FoldState:
    """One fold after `epoch` epochs; tensors by parameter name.

    `values` are the parameters as they are trained, `average` their moving average, which is what validates and is
    kept, `best` as it was after `best_epoch`; `first` and `second` are AdamW's moments. `errors` come last: moment ->
    sum of squared errors (z) for every factor of the interpolation. Once they are there, only `average` and `best` are.
    """

    epoch: int
    steps: int
    average: Tensors
    best: Tensors
    best_epoch: int
    values: Tensors = field(default_factory=dict)
    first: Tensors = field(default_factory=dict)
    second: Tensors = field(default_factory=dict)
    records: list[EpochRecord] = field(default_factory=list)
    errors: dict[str, list[float]] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Publish everything."""
        durable.remove_leftovers(folder)
        published = set((state_facts(folder) or {"files": {}})["files"].values())
        files = {name: _file(name, self.epoch) for name in (_TRAINED if self.errors else _TO_TRAIN_ON)}
        files["best"] = _file("average", self.best_epoch)  # which it was then
        for name, file in files.items():
            if file not in published:  # else it may be of a process that died, and differ
                tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in getattr(self, name).items()}
                durable.publish(folder / file, safetensors.torch.save(tensors))
                published.add(file)
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
        if (facts := state_facts(folder)) is None:
            return None
        try:
            files = facts["files"]
            loaded = {file: safetensors.torch.load((folder / file).read_bytes()) for file in set(files.values())}
            return cls(
                epoch=facts["epoch"],
                steps=facts["steps"],
                best_epoch=facts["best_epoch"],
                records=[EpochRecord(**record) for record in facts["records"]],
                errors=facts["errors"],
                **{name: loaded[file] for name, file in files.items()},
            )
        except (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CacheError(
                f"{folder} cannot be continued ({error}): remove it and run `vp finetune` again"
            ) from error


def _file(name: str, epoch: int) -> str:
    return f"{name}-epoch{epoch}.safetensors"
