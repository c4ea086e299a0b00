"""What a fine-tuning that has not finished keeps: a folder beside that of its run, with one for the state of each fold.

.<run>.tuning/begun.json            how it was begun, see `pipeline.tuning.begun`
.<run>.tuning/fold<n>/state.json    the last finished epoch, and the files of its tensors
"""

import contextlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from features import durable
from features.errors import CacheError
from heads.members import EpochRecord
from pipeline.outcome import size_told
from pipeline.workspace import is_run_name

BEGUN, STATE = "begun.json", "state.json"
_SUFFIX = ".tuning"
_OURS = re.compile(rf"{BEGUN}|fold\d+/({STATE}|\w+-epoch\d+\.safetensors)|(fold\d+/)?{durable.TEMPORARY.pattern}")


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

    @property
    def name(self) -> str:
        """Of the run that it makes."""
        return self.run.name

    @property
    def told(self) -> str:
        """How far it is."""
        done = ", ".join(f"{fold} {epoch}" for fold, epoch in self.epochs.items()) or "none yet"
        return f"fine-tuning {self.name} is unfinished (epochs: {done}; {size_told(self.size_bytes)})"

    @property
    def size_bytes(self) -> int:
        """Of its files, as they are now: somebody may be training."""
        return sum(map(_size_bytes, self._files()))

    @property
    def foreign(self) -> list[Path]:
        """Files in its folder that vp did not write."""
        return [path for path in self._files() if not _OURS.fullmatch(path.relative_to(self.folder).as_posix())]

    def _files(self) -> list[Path]:
        with contextlib.suppress(OSError):  # folders come and go
            return [path for path in sorted(self.folder.rglob("*")) if path.is_symlink() or not path.is_dir()]
        return []


def unfinished(runs: Path) -> list[Unfinished]:
    """Every fine-tuning that was begun and has not finished, by name; a state that is damaged has no finished epoch."""
    folders = [path for path in sorted(runs.glob(f".*{_SUFFIX}")) if (path / BEGUN).is_file() and not path.is_symlink()]
    return [_unfinished(folder) for folder in folders if is_run_name(_run_name(folder))]


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
    folds = sorted(folder.glob("fold*"), key=lambda fold: (len(fold.name), fold.name))
    return Unfinished(folder.with_name(_run_name(folder)), folder, {fold.name: _epoch(fold) for fold in folds})


def _run_name(folder: Path) -> str:
    return folder.name[1:].removesuffix(_SUFFIX)


def _size_bytes(path: Path) -> int:
    try:
        return path.lstat().st_size
    except OSError:
        return 0


def _epoch(fold: Path) -> int:
    try:
        return int((state_facts(fold) or {"epoch": 0})["epoch"])
    except (CacheError, ValueError, KeyError, TypeError):
        return 0
