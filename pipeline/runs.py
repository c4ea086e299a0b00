"""A run is one folder, built aside and swapped in whole: a reader sees the old run or the new one.

    <name>/                 the run
    .<name>.building/       a run being made; worthless until it holds run.json, which is written last
    .<name>.replaced/       the old run, for the moment between two renames

A crash between the two renames leaves no `<name>/` but a whole `.<name>.building/`: the next command finishes the swap.
"""

import contextlib
import json
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from features import durable
from features.errors import CacheError, UsageError
from features.hashing import sha256_of
from features.listing import listed
from features.lock import writer_lock
from pipeline.checkpoint import Checkpoint, read_checkpoint

FORMAT = "vp-run"
SCHEMA = 1
RECORD = "run.json"

Moment = Literal["best", "final"]
MOMENTS: tuple[Moment, ...] = ("best", "final")
"""When a member was kept: at its epoch of lowest validation error, and after its last."""

_BUILDING, _REPLACED = ".building", ".replaced"


class UnreadableError(CacheError):
    """The system does not let this user read a run: to make it again would mend nothing."""

    def __init__(self, folder: Path, error: OSError) -> None:
        self.what, self.repair = f"run {folder.name} cannot be read: {error.strerror}", f"let this user read {folder}"
        super().__init__(f"{self.what}: {self.repair}")


@dataclass(frozen=True)
class Run:
    """A finished run and what its run.json says."""

    folder: Path
    record: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The name of the run, which is the name of its folder."""
        return self.folder.name

    @property
    def n_folds(self) -> int:
        """Number of folds."""
        return int(self.part("folds")["n"])

    @property
    def seeds(self) -> list[int | None]:
        """The seeds of the members of each fold; one for a run that does not say."""
        return list(self.record.get("seeds", [None]))

    @property
    def modalities(self) -> list[str]:
        """What the heads read, in their order."""
        return list(self.part("modalities"))

    @property
    def is_finetuned(self) -> bool:
        """Whether it has towers of its own, so that the vectors in the caches are not what its heads read."""
        return "finetuned_from" in self.record

    @property
    def command(self) -> str:
        """What makes the run again, as far as its record tells."""
        return f"vp {'finetune' if self.is_finetuned else 'train-heads'} --name {self.name}"

    @property
    def checkpoint_digests(self) -> dict[str, str]:
        """SHA-256 (hex) of each member's file."""
        files = self.part("files")
        return {name: files[name] for name in files if name.startswith("checkpoints/")}

    def digest(self) -> str:
        """SHA-256 (hex) of run.json, which holds the digest of every other file: equal for equal runs alone."""
        return sha256_of(self.folder / RECORD)

    def checkpoint_path(self, fold: int, moment: str, seed: int | None = None) -> Path:
        """Where a member is kept; `moment` is best or final, `seed` is needed where a fold has several."""
        return checkpoint_path(self.folder, self.name, fold, moment, seed if len(self.seeds) > 1 else None)

    def member(self, fold: int, moment: str, seed: int | None = None) -> Checkpoint:
        """One member, its bytes checked against run.json; without a `seed` the first."""
        chosen = self.seeds[0] if seed is None else seed
        relative = self.checkpoint_path(fold, moment, chosen).relative_to(self.folder)
        return read_checkpoint(self.verified(relative.as_posix()))

    def checkpoint(self, fold: int, moment: str) -> Checkpoint:
        """What a fold predicts with: its member, or one that predicts the mean of its members of several seeds."""
        first, *others = (self.member(fold, moment, seed) for seed in self.seeds)
        if not others:
            return first
        return replace(first, heads=first.heads.averaged_with([other.heads for other in others]), seed=None)

    def read_json(self, file_name: str) -> Any:
        """One of the run's JSON files, checked."""
        return json.loads(self.verified(file_name).read_text(encoding="utf-8"))

    def part(self, name: str) -> Any:
        """What run.json says under a name that every run has; CacheError if this one does not."""
        try:
            return self.record[name]
        except (KeyError, TypeError):
            raise CacheError(f"{self.folder / RECORD} lacks {name!r}: run `{self.command}` again") from None

    def verified(self, file_name: str) -> Path:
        """The path of one of the run's files, after its bytes were compared with what run.json says."""
        path = self.folder / file_name
        expected = self.part("files").get(file_name)
        try:
            found = sha256_of(path) if path.is_file() else None
        except PermissionError as error:
            raise UnreadableError(self.folder, error) from error
        if expected is None or found != expected:
            what = "is missing" if found is None else "is not the file that the run was saved with"
            raise CacheError(f"{path} {what}: run `{self.command}` again")
        return path


def checkpoint_path(folder: Path, name: str, fold: int, moment: str, seed: int | None = None) -> Path:
    """Where a run's folder keeps a member; its `seed` is named where a fold has several."""
    which = "" if seed is None else f"_seed{seed}"
    return folder / "checkpoints" / f"{name}_fold{fold}{which}_{moment}.safetensors"


def open_run(folder: Path) -> Run:
    """Open a finished run, finishing a swap that a crash interrupted.

    Raises
    ------
    CacheError
        There is no such run, or run.json cannot be read, is damaged or of another version.
    """
    if not _has_record(folder, unknown=True) and _has_record(_building(folder), unknown=False):
        with writer_lock(lock_path(folder)):
            _recover(folder)
    return read_run(folder)


def read_run(folder: Path) -> Run:
    """Open a finished run as it is, changing nothing; raises CacheError as `open_run` does."""
    path = folder / RECORD
    try:
        if not path.is_file() and path.exists():  # a FIFO would wait for a writer, a device may have no end
            raise CacheError(f"{path} is no file: move {folder} away and run `vp train-heads` again")
        record = json.loads(path.read_text(encoding="utf-8"))
        written_by = (record["format"], record["schema"])
    except FileNotFoundError:
        raise _no_run(folder) from None
    except PermissionError as error:
        raise UnreadableError(folder, error) from error
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CacheError(f"{path} is damaged ({error}): run `vp train-heads` again") from error
    if written_by != (FORMAT, SCHEMA):
        raise CacheError(f"{path} has format {written_by}, this vp reads {FORMAT} {SCHEMA}: train again")
    return Run(folder, record)


def only_run(runs: Path) -> str:
    """The name of the only run there is, for commands that were not told one."""
    names = run_names(runs)
    if not names:
        raise CacheError(f"no run in {runs}: run `vp train-heads` first")
    if len(names) > 1:
        raise UsageError(f"several runs in {runs}: choose with --run, one of {', '.join(names)}")
    return names[0]


def run_names(runs: Path) -> list[str]:
    """The names of all runs, also of one whose swap a crash interrupted, and of one that cannot be read.

    Raises
    ------
    CacheError
        The folder of all runs cannot be read.
    """
    there = listed(runs)
    folders = {path.name for path in there if not path.name.startswith(".") and _has_record(path, unknown=True)}
    built = [path for path in there if path.match(f".*{_BUILDING}") and _has_record(path, unknown=False)]
    return sorted(folders | {_run_of(path).name for path in built})


def abandoned(runs: Path) -> dict[Path, Path]:
    """Folders that a process left when it died -> their run: one that was never sealed, one that was replaced."""
    there = listed(runs)
    unsealed = [path for path in there if path.match(f".*{_BUILDING}") and not _has_record(path, unknown=True)]
    replaced = [path for path in there if path.match(f".*{_REPLACED}") and _run_of(path).exists()]
    return {path: _run_of(path) for path in sorted(unsealed + replaced) if path.is_dir() and not path.is_symlink()}


@contextlib.contextmanager
def building(folder: Path) -> Iterator[Path]:
    """A folder to build a run in; on success it takes the place of `folder`, after an error nothing has changed.

    The block must end by calling `seal` on the folder it was given.
    """
    with writer_lock(lock_path(folder)):
        _recover(folder)
        aside = _building(folder)
        durable.remove_tree(aside)
        durable.make_folder(aside)
        try:
            yield aside
            _swap_in(folder)
        finally:
            if not (aside / RECORD).is_file():
                durable.remove_tree(aside)


def seal(aside: Path, record: Mapping[str, Any]) -> None:
    """Write run.json, last, with the digest of every other file of the run."""
    for folder in (aside, *(path for path in aside.rglob("*") if path.is_dir())):
        durable.remove_leftovers(folder)  # of workers that died while they wrote
    files = {path.relative_to(aside).as_posix(): sha256_of(path) for path in sorted(aside.rglob("*")) if path.is_file()}
    document = {"format": FORMAT, "schema": SCHEMA, **record, "files": files}
    durable.publish(aside / RECORD, json.dumps(document, indent=1) + "\n")


def _has_record(folder: Path, *, unknown: bool) -> bool:
    """Whether there is a run.json in a folder; `unknown` where the system does not tell."""
    try:
        return stat.S_ISREG((folder / RECORD).stat().st_mode)
    except PermissionError:
        return unknown
    except OSError:
        return False


def _no_run(folder: Path) -> CacheError:
    names = ", ".join(name for name in run_names(folder.parent) if name != folder.name)
    told, choose = (f"; there is: {names}", ", or name one of these") if names else ("", "")
    return CacheError(f"no run in {folder}{told}: run `vp train-heads --name {folder.name}`{choose}")


def _swap_in(folder: Path) -> None:
    if folder.exists():
        durable.remove_tree(_replaced(folder))
        durable.move(folder, _replaced(folder))
    durable.move(_building(folder), folder)
    durable.remove_tree(_replaced(folder))


def _recover(folder: Path) -> None:
    """Finish a swap that a crash interrupted; a run that was not sealed is not one."""
    durable.remove_leftovers(folder.parent)
    if (_building(folder) / RECORD).is_file():
        _swap_in(folder)
    elif not folder.exists() and _replaced(folder).exists():
        durable.move(_replaced(folder), folder)
    durable.remove_tree(_replaced(folder))


def _building(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}{_BUILDING}")


def _replaced(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}{_REPLACED}")


def _run_of(path: Path) -> Path:
    """The run that a folder beside it belongs to."""
    return path.with_name(path.name[1:].rpartition(".")[0])


def lock_path(folder: Path) -> Path:
    """The lock file of a run."""
    return folder.with_name(f".{folder.name}.lock")
