"""What may be removed from a work folder: files that vp wrote, never through a link that leads out of it."""

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from features import durable
from features.errors import CacheError
from features.inspection import LEFTOVERS, Inspection, Role, inspect
from features.lock import PART_LOCKS, WHOLE
from features.plan import QUARANTINE
from pipeline.config import PruneConfig
from pipeline.run_record import check_record
from pipeline.runs import RECORD, abandoned, lock_path, read_run, run_names
from pipeline.tuning.unfinished import Unfinished, unfinished
from pipeline.workspace import Workspace

WHOLE_CACHE = (Role.SHARD, *LEFTOVERS, Role.TIMING, Role.MANIFEST, Role.LOCK)
REPORTS = ("report.html", "report.json")

HOLDER = ".holder.json"
"""Who holds a lock; it goes when the lock is released."""


@dataclass(frozen=True)
class Item:
    """One file to remove, or a folder that is removed with everything in it."""

    path: Path
    why: str
    size_bytes: int


@dataclass
class Findings:
    """What can be removed, what is left alone and why, and what cannot be judged."""

    items: list[Item] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Scope:
    """The folders that are looked at, none of them outside of the work folder, and `outside`, those that are.

    It is decided before the locks are taken, so that nothing is touched whose lock is not held.
    """

    caches: Sequence[Path]
    whole: bool = False  # every file of the caches goes, not only leftovers
    runs: Sequence[Path] = ()  # of which every file goes
    tunings: Sequence[Unfinished] = ()  # which go whole if they were named, and stay otherwise
    abandoned: Mapping[Path, Path] = field(default_factory=dict)
    temporary: Sequence[Path] = ()  # folders that may hold temporary files and folders, which need no lock
    outside: Sequence[Path] = ()

    @property
    def locks(self) -> list[Path]:
        """The locks of everything that may be changed, in one order, so that two prunes cannot wait for each other."""
        tuned = [tuning.run for tuning in self.tunings if self.whole]
        runs = [*self.runs, *tuned, *self.abandoned.values()]
        parts = {lock for cache in self.caches for lock in (cache / WHOLE.lock_name, *cache.glob(PART_LOCKS))}
        return sorted(parts | set(map(lock_path, runs)))

    def find(self) -> Findings:
        """What can be removed in these folders."""
        findings = Findings(left=[f"{path} lies outside of the work folder" for path in self.outside])
        for cache in self.caches:
            _find_in_cache(inspect(cache), findings, whole=self.whole)
        for run in self.runs:
            _find_in_run(run, findings)
        for tuning in self.tunings:
            if self.whole:
                _find_tuning(tuning, findings)
            else:
                give_up = f"`vp prune --unfinished {tuning.name}` gives it up"
                findings.left.append(f"{tuning.told} in {tuning.folder}: {give_up}")
        for path in self.abandoned:
            findings.items.append(Item(path, "abandoned run", _tree_bytes(path)))
        for folder in self.temporary:
            for path in filter(durable.is_leftover, sorted(folder.glob(".tmp-*"))):
                if is_plain(path):
                    findings.items.append(Item(path, str(Role.TEMPORARY), path.lstat().st_size))
                elif path.is_dir() and not path.is_symlink():
                    findings.items.append(Item(path, "unfinished folder", _tree_bytes(path)))
        return findings

    def remove_empty(self) -> None:
        """Remove the folders in which nothing is left."""
        folders = [cache / QUARANTINE for cache in self.caches]
        folders += [folder for run in self.runs for folder in (run / "checkpoints", run)]
        if self.whole:
            folders += [*self.caches, *dict.fromkeys(cache.parent for cache in self.caches)]
        for folder in folders:
            with contextlib.suppress(OSError):  # it cannot be read, or somebody has just put something there
                if folder.is_dir() and not folder.is_symlink() and not any(folder.iterdir()):
                    folder.rmdir()


def scope_of(config: PruneConfig, workspace: Workspace) -> Scope:
    """Whole caches and runs if some are named, else leftovers everywhere."""
    root = workspace.root.resolve()
    outside: list[Path] = []

    def inside(paths: Iterable[Path]) -> list[Path]:
        kept: list[Path] = []
        for path in paths:
            (kept if path.resolve().is_relative_to(root) else outside).append(path)
        return kept

    tunings = [tuning for tuning in unfinished(workspace.runs) if inside([tuning.folder])]
    if config.cache or config.run or config.unfinished:
        caches = inside(folder for folder in workspace.cache_folders() if folder.parent.name in config.cache)
        runs = inside(map(workspace.run, config.run))
        named = [tuning for tuning in tunings if tuning.name in config.unfinished]
        return Scope(caches=caches, whole=True, runs=runs, tunings=named, outside=outside)
    runs = inside(workspace.runs / name for name in run_names(workspace.runs))
    others = inside([workspace.root, workspace.models, workspace.runs, workspace.root / "submissions"])
    return Scope(
        caches=inside(workspace.cache_folders()),
        tunings=tunings,
        abandoned=abandoned(workspace.runs) if workspace.runs in others else {},
        temporary=[*others, *runs],
        outside=outside,
    )


def _find_in_cache(found: Inspection, findings: Findings, *, whole: bool) -> None:
    """Locks go last: until then nobody else writes here; manifests go first: without one, no reader comes."""
    if not whole:
        findings.faults += found.faults  # `inspect` calls no shard superseded then
    order = sorted(found.entries, key=lambda entry: (entry.role is Role.LOCK, entry.role is not Role.MANIFEST))
    for entry in order:
        if entry.role is Role.STRAY or (whole and not is_plain(entry.path)):
            findings.left.append(f"{entry.path} was not written by vp")
        elif entry.role in (WHOLE_CACHE if whole else LEFTOVERS) and not entry.path.name.endswith(HOLDER):
            findings.items.append(Item(entry.path, str(entry.role), entry.size_bytes))


def _find_in_run(folder: Path, findings: Findings) -> None:
    """Every file that run.json names, run.json first: a run without it is none."""
    try:
        run = read_run(folder)
        check_record(run)
        ours = {RECORD, *REPORTS, *run.part("files")}
    except CacheError as error:
        findings.faults.append(str(error))
        return
    files = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    for path in sorted(files, key=lambda path: (path.name != RECORD, path)):
        if path.relative_to(folder).as_posix() in ours and is_plain(path):
            findings.items.append(Item(path, f"run {folder.name}", path.lstat().st_size))
        else:
            findings.left.append(f"{path} was not written by vp")


def _find_tuning(tuning: Unfinished, findings: Findings) -> None:
    if foreign := tuning.foreign:
        findings.left.append(
            f"{tuning.folder} stays, as vp did not write {foreign[0].relative_to(tuning.folder)} in it"
        )
    else:
        findings.items.append(Item(tuning.folder, "unfinished fine-tuning", tuning.size_bytes))


def is_plain(path: Path) -> bool:
    """Whether a path is a file of its own, and no link to one."""
    return path.is_file() and not path.is_symlink()


def _tree_bytes(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_dir())
