"""Where `--out` may lead: never over the dataset, the command's own input or what vp keeps in the work folder."""

import json
import os
import stat
from collections.abc import Iterable
from pathlib import Path

from features.config import DatasetConfig
from features.errors import UsageError
from features.videos import THUMBNAIL_EXTENSIONS
from pipeline.dataset import TEST, TRAIN
from pipeline.workspace import Workspace

SPLITS = (TRAIN, TEST)
SETTINGS = Path("vp.toml")


def check_output(path: Path, dataset: DatasetConfig, workspace: Workspace, inputs: Iterable[Path] = ()) -> None:
    """Refuse a file that must not be written, before any work is spent on what would go into it.

    Raises
    ------
    UsageError
        It is no regular file, or it would overwrite the dataset, an input of the command, `vp.toml`, or a file that
        vp keeps in the work folder; the message names it.
    """
    place = _place(path)
    reasons = {
        _kind(path): _kind(path) != "",
        f"it would overwrite {SETTINGS}": place == _place(SETTINGS),
        f"it would overwrite a file of the dataset {dataset.data}": _is_of_dataset(place, dataset),
        f"vp keeps its own files in {workspace.root}": any(place.is_relative_to(own) for own in _own(workspace)),
    }
    reasons |= {f"it would overwrite {given}, which is read": place == _place(given) for given in inputs}
    if broken := [reason for reason, holds in reasons.items() if holds]:
        raise UsageError(f"--out must name another file than {path}: {broken[0]}")


def check_companion(path: Path, format_: str) -> None:
    """Refuse a JSON file beside the output, which the user did not name, unless vp wrote it in this format."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return
    except (OSError, ValueError, RecursionError):
        document = None
    if not isinstance(document, dict) or document.get("format") != format_:
        raise UsageError(f"--out must have another name: the numbers would overwrite {path}, which vp did not write")


def _place(path: Path) -> Path:
    """What a rename onto a path replaces: the last name is taken as it is, even where it is a link."""
    return Path(os.path.realpath(path.parent)) / path.name


def _kind(path: Path) -> str:
    """Why a path that is there is no place for a file; empty where it is one, or nothing is there."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        return "it is a link to nowhere" if path.is_symlink() else ""
    if stat.S_ISREG(mode):
        return ""
    return "it is a folder" if stat.S_ISDIR(mode) else "it is a device, a pipe or a socket, which would be destroyed"


def _is_of_dataset(place: Path, dataset: DatasetConfig) -> bool:
    data = dataset.data
    tables = [_place(data / f"{split}.csv") for split in SPLITS]
    folders = [Path(os.path.realpath(data / split)) for split in SPLITS]
    is_picture = place.suffix.lower() in THUMBNAIL_EXTENSIONS and place.exists()
    return (
        place in tables
        or any(place.is_relative_to(folder) for folder in folders)
        or (is_picture and place.is_relative_to(os.path.realpath(data)))
    )


def _own(workspace: Workspace) -> list[Path]:
    folders = (workspace.embeddings, workspace.runs, workspace.models, workspace.root / "submissions")
    return [Path(os.path.realpath(folder)) for folder in folders]
