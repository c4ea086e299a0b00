"""What a fine-tuning that has not finished keeps: a folder beside that of its run, with one for the state of each fold.

.<run>.tuning/begun.json            how it was begun, see `pipeline.tuning.begun`
.<run>.tuning/fold<n>/state.json    the last finished epoch, and the files of its tensors
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from features.errors import CacheError
from heads.members import EpochRecord
from pipeline.outcome import size_told

STATE = "state.json"
_SUFFIX = ".tuning"


def tuning_folder(run: Path) -> Path:
    """The folder of what is unfinished, beside the folder of a run."""
    return run.with_name(f".{run.name}{_SUFFIX}")


def fold_folder(tuning: Path, fold: int) -> Path:
    """The folder of the state of a fold."""
    return tuning / f"fold{fold}"


@dataclass(frozen=True)
class Unfinished:
    """A fine-tuning that was begun; `epochs` is how many are finished, by fold."""

    run: Path
    folder: Path
    epochs: Mapping[str, int]
    size_bytes: int

    @property
    def name(self) -> str:
        """Of the run that it makes."""
        return self.run.name

    @property
    def told(self) -> str:
        """How far it is."""
        done = ", ".join(f"{epoch} of {fold}" for fold, epoch in self.epochs.items()) or "none yet"
        return f"fine-tuning {self.name} is unfinished (epochs: {done}; {size_told(self.size_bytes)})"


def unfinished(runs: Path) -> list[Unfinished]:
    """Every fine-tuning that was begun and has not finished, by name; a state that is damaged has no finished epoch."""
    folders = [path for path in sorted(runs.glob(f".*{_SUFFIX}")) if path.is_dir() and not path.is_symlink()]
    return [_unfinished(folder) for folder in folders]


def state_facts(folder: Path) -> dict[str, Any] | None:
    """What the state of a fold says of itself; None before its first epoch.

    Raises
    ------
    CacheError
        It is damaged.
    """
    try:
        return dict(json.loads((folder / STATE).read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        raise CacheError(
            f"{folder / STATE} is damaged ({error}): remove {folder} and run `vp finetune` again"
        ) from error


def records_so_far(folder: Path) -> list[EpochRecord]:
    """The records of a fold that another process trains."""
    facts = state_facts(folder)
    return [] if facts is None else [EpochRecord(**record) for record in facts["records"]]


def _unfinished(folder: Path) -> Unfinished:
    run = folder.with_name(folder.name[1:].removesuffix(_SUFFIX))
    epochs = {fold.name: _epoch(fold) for fold in sorted(folder.glob("fold*"))}
    size_bytes = sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())
    return Unfinished(run, folder, epochs, size_bytes)


def _epoch(fold: Path) -> int:
    try:
        return int((state_facts(fold) or {"epoch": 0})["epoch"])
    except (CacheError, ValueError, KeyError, TypeError):
        return 0
