"""`vp prune`: what no manifest names and what dying processes left, listed or removed.

Only files that vp wrote are ever removed, one by one and under the lock of their writer; links are not followed.
"""

import contextlib
from collections.abc import Iterator
from contextlib import ExitStack

from features import durable
from features.errors import CacheError, UsageError
from features.inspection import writer_of
from features.lock import writer_lock
from features.progress import Progress
from pipeline.config import PruneConfig
from pipeline.leftovers import Findings, Item, is_plain, scope_of
from pipeline.outcome import Outcome, counted, size_told, table
from pipeline.runs import read_run, run_names
from pipeline.settings import repeated_flags
from pipeline.tuning.unfinished import unfinished
from pipeline.workspace import Workspace


def prune(config: PruneConfig, progress: Progress) -> Outcome:
    """List what can be removed; with `--yes` remove it.

    Raises
    ------
    UsageError, LockedError, StorageError
        A name that is not there; somebody writes to one of the caches or runs (then nothing is removed); the disk
        does not allow it.
    """
    workspace = Workspace(config.work)
    _refuse_unknown(config, workspace)
    for warning in _needed_by(config, workspace):
        progress.warn(warning)
    scope = scope_of(config, workspace)
    if not config.yes:
        for writer in filter(None, map(writer_of, scope.locks)):
            progress.warn(f"{writer.lock} is held by {writer}: with --yes, nothing would be removed")
        return _outcome(config, scope.find())
    with ExitStack() as locks:
        for lock in scope.locks:
            locks.enter_context(writer_lock(lock))
        findings = scope.find()
        for item in findings.items:
            _remove(item)
    scope.remove_empty()
    return _outcome(config, findings)


def _refuse_unknown(config: PruneConfig, workspace: Workspace) -> None:
    tags = sorted({folder.parent.name for folder in workspace.cache_folders()})
    tunings = [tuning.name for tuning in unfinished(workspace.runs)]
    options = (
        ("cache", config.cache, tags),
        ("run", config.run, run_names(workspace.runs)),
        ("unfinished", config.unfinished, tunings),
    )
    for option, wanted, there in options:
        unknown = [name for name in wanted if name not in there]
        if unknown:
            known = ", ".join(there) or "none"
            raise UsageError(f"--{option} {unknown[0]!r} is not in {workspace.root}; there is: {known}")


def _needed_by(config: PruneConfig, workspace: Workspace) -> Iterator[str]:
    """A warning for every run that stays and was trained on a cache that goes."""
    for name in run_names(workspace.runs) if config.cache else []:
        with contextlib.suppress(CacheError, TypeError, AttributeError):  # a damaged run needs no cache any more
            needed = sorted(set(config.cache) & set(read_run(workspace.runs / name).part("encoders")))
            if needed and name not in config.run:
                yield f"run {name} needs the cache {', '.join(needed)}: without it no submission can be made from it"


def _remove(item: Item) -> None:
    if is_plain(item.path):
        durable.remove(item.path)
    else:  # an abandoned run, or what was never finished: no other folder is removed whole
        durable.discard_tree(item.path)


def _outcome(config: PruneConfig, findings: Findings) -> Outcome:
    size_bytes = sum(item.size_bytes for item in findings.items)
    count = f"{counted(len(findings.items), 'file')}, {size_told(size_bytes)}"
    rows = [[str(item.path), item.why, f"{item.size_bytes:,}"] for item in findings.items]
    lines = table([["file", "why", "bytes"], *rows]) if rows else []
    lines += [f"left alone: {left}" for left in findings.left]
    lines.append(f"{count} removed" if config.yes else f"{count} to remove; nothing is removed without --yes")
    facts = {
        "removed": config.yes,
        "size_bytes": size_bytes,
        "files": [{"path": str(item.path), "why": item.why, "size_bytes": item.size_bytes} for item in findings.items],
        "left": findings.left,
        "faults": findings.faults,
    }
    told = "; ".join(findings.faults)
    error = CacheError(f"some of it is left alone, because it cannot be judged: {told}") if told else None
    return Outcome(lines, facts, _next(config, findings), error)


def _next(config: PruneConfig, findings: Findings) -> str:
    if config.yes or not findings.items:
        return f"vp status{repeated_flags(config)}"
    named = {"cache": config.cache, "run": config.run, "unfinished": config.unfinished}
    chosen = "".join(f" --{option} {name}" for option, names in named.items() for name in names)
    return f"vp prune --yes{chosen}{repeated_flags(config)}"
