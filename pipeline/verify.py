"""`vp verify`: every digest and every value of all caches and runs; every fault, and what repairs it."""

import time
from collections.abc import Sequence
from pathlib import Path

from features.errors import CacheError
from features.inspection import inspect
from features.progress import Progress
from features.verification import Checked, Fault, verify_cache
from pipeline.config import VerifyConfig
from pipeline.dataset import Dataset, comparable_dataset
from pipeline.outcome import Outcome, counted, size_told
from pipeline.repairs import extract_command
from pipeline.run_faults import run_faults
from pipeline.runs import run_names
from pipeline.settings import repeated_flags
from pipeline.workspace import Workspace


def verify(config: VerifyConfig, progress: Progress) -> Outcome:
    """Check everything in the work folder; the outcome carries a CacheError if anything is wrong."""
    start = time.monotonic()
    workspace = Workspace(config.work)
    folders, names = workspace.cache_folders(), run_names(workspace.runs)
    following = f"vp status{repeated_flags(config)}"
    if not folders and not names:
        return Outcome([f"{config.work} holds no embeddings and no runs to verify"], {"faults": []}, following)
    dataset = comparable_dataset(config, progress)
    caches = _verify_caches(config, folders, dataset, progress)
    faults = [fault for cache in caches for fault in cache.faults]
    faults += _verify_runs(config, workspace, names, dataset, progress)
    shards, size_bytes = (sum(getattr(cache, name) for cache in caches) for name in ("shards", "size_bytes"))
    seconds = time.monotonic() - start
    facts = {
        "caches": len(folders),
        "shards": shards,
        "size_bytes": size_bytes,
        "runs": len(names),
        "compared_with_dataset": dataset is not None,
        "seconds": round(seconds, 3),
        "faults": [{"where": str(fault.where), "what": fault.what, "repair": fault.repair} for fault in faults],
    }
    what = f"{counted(len(folders), 'cache')} ({counted(shards, 'shard')}, {size_told(size_bytes)})"
    done = f"{what} and {counted(len(names), 'run')} in {seconds:.1f} s"
    if not faults:
        return Outcome([f"{done}: nothing is wrong"], facts, following)
    return Outcome([*(f"{fault.where}: {fault.what}" for fault in faults), done], facts, error=_error(faults))


def _verify_caches(
    config: VerifyConfig, folders: Sequence[Path], dataset: Dataset | None, progress: Progress
) -> list[Checked]:
    """Check the caches one after the other, against the dataset if there is one."""
    tables = {} if dataset is None else {videos.split: videos for videos in dataset.tables}
    checked = []
    for folder in folders:
        inspection = inspect(folder)
        for writer in inspection.writers:
            progress.warn(f"{folder} is being written by {writer}: what is told of it may be over by now")
        extract = extract_command(folder.parent.name, inspection.plan, config)
        checked.append(verify_cache(folder, tables.get(folder.name), extract, progress, sources=config.sources))
    return checked


def _verify_runs(
    config: VerifyConfig, workspace: Workspace, names: Sequence[str], dataset: Dataset | None, progress: Progress
) -> list[Fault]:
    inspections = {folder: inspect(folder) for folder in workspace.cache_folders()}
    faults = []
    progress.begin("runs", len(names), "runs")
    for name in names:
        faults += run_faults(workspace, name, config, inspections, None if dataset is None else dataset.test)
        progress.advance(1)
    progress.end()
    return faults


def _error(faults: Sequence[Fault]) -> CacheError:
    repairs = dict.fromkeys(fault.repair for fault in faults)
    return CacheError(f"{counted(len(faults), 'fault')}; to repair: {'; '.join(repairs)}")
