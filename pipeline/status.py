"""`vp status`: what the work folder holds, what is missing or stale, and what a user would type next.

It only looks: nothing is locked, changed or hashed (apart from thumbnails, with `--hash`).
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from features.errors import CacheError
from features.inspection import LEFTOVERS, Inspection, Role, Writer, writer_of
from features.progress import Progress
from features.videos import VideoTable
from pipeline.cache_state import CacheState, cache_state
from pipeline.config import StatusConfig
from pipeline.dataset import TEST, Dataset, comparable_dataset
from pipeline.outcome import Outcome, size_told, table
from pipeline.repairs import train_command
from pipeline.run_state import RunState, repair_of, run_state
from pipeline.runs import UnreadableError, abandoned, lock_path, read_run, run_names
from pipeline.settings import repeated_flags
from pipeline.tuning.unfinished import Unfinished, unfinished
from pipeline.workspace import Workspace

LISTED = 5


def status(config: StatusConfig, progress: Progress) -> Outcome:
    """Tell the state of every cache and run.

    The outcome carries a CacheError if one of them cannot be read; everything else is only told.
    """
    workspace = Workspace(config.work)
    folders = workspace.cache_folders()
    names, tunings = run_names(workspace.runs), unfinished(workspace.runs)
    if not folders and not names and not tunings:
        return _nothing(config)
    dataset = comparable_dataset(config, progress)
    tables = {} if dataset is None else {videos.split: videos for videos in dataset.tables}
    caches = [cache_state(config, folder, tables.get(folder.name), progress) for folder in folders]
    inspections = {cache.inspection.folder: cache.inspection for cache in caches}
    runs = [_run_state(config, workspace, name, inspections, tables.get(TEST)) for name in names]
    lines = [f"{_dataset_told(config, dataset)}", "", *_cache_lines(caches), "", *_run_lines(config, runs)]
    trained_by = [(tuning, writer_of(lock_path(tuning.run))) for tuning in tunings]
    lines += [_tuning_line(tuning, trainer) for tuning, trainer in trained_by]
    left = [path for path, run in abandoned(workspace.runs).items() if writer_of(lock_path(run)) is None]
    lines += [f"{path} was left by a process that died: `vp prune` removes it" for path in left]
    facts = {
        "work": str(config.work),
        "dataset": None if dataset is None else {videos.split: len(videos) for videos in dataset.tables},
        "caches": [cache.facts for cache in caches],
        "runs": [_run_facts(run) for run in runs],
        "unfinished": [
            {"run": tuning.name, "epochs": dict(tuning.epochs), "writer": trainer and vars(trainer)}
            for tuning, trainer in trained_by
        ],
        "abandoned": [str(path) for path in left],
    }
    return Outcome(lines, facts, _next(config, dataset, caches, runs), _error(caches, runs))


def _run_state(
    config: StatusConfig,
    workspace: Workspace,
    name: str,
    inspections: Mapping[Path, Inspection],
    test: VideoTable | None,
) -> RunState:
    folder = workspace.runs / name
    try:
        return run_state(read_run(folder), config, workspace, inspections, test)
    except UnreadableError as error:
        return RunState(name, "", {"name": name}, [str(error)], [], [])
    except CacheError as error:
        return RunState(name, train_command(name, config), {"name": name}, [str(error)], [], [])


def _tuning_line(tuning: Unfinished, trainer: Writer | None) -> str:
    goes_on = "the same `vp finetune` goes on with it" if trainer is None else f"it is being trained by {trainer}"
    return f"{tuning.told}: {goes_on}"


def _run_facts(run: RunState) -> dict[str, Any]:
    return {
        **run.facts,
        "state": run.word,
        "faults": run.faults,
        "changes": [change.what for change in run.changes],
        "notes": run.notes,
    }


def _nothing(config: StatusConfig) -> Outcome:
    facts: dict[str, Any] = {"work": str(config.work), "dataset": None, "caches": [], "runs": []}
    facts |= {"unfinished": [], "abandoned": []}
    start = f"vp extract{repeated_flags(config)}" if config.data.is_dir() else "vp demo"
    return Outcome([f"{config.work} holds no embeddings and no runs yet"], facts, start)


def _dataset_told(config: StatusConfig, dataset: Dataset | None) -> str:
    if dataset is None:
        return f"{config.work}; the dataset {config.data} cannot be read"
    splits = ", ".join(f"{videos.split} {len(videos)}" for videos in dataset.tables)
    return f"{config.work}; the dataset {config.data} has {splits} videos"


def _cache_lines(caches: Sequence[CacheState]) -> list[str]:
    if not caches:
        return ["no embeddings"]
    rows: list[list[object]] = [["cache", "rows", "vectors", "precision", "shards", "on disk", "state"]]
    for cache in caches:
        facts = cache.facts
        vectors = ", ".join(f"{kind} {dim}" for kind, dim in facts["dims"].items()) or "-"
        shards = f"{facts['shards']['there']}/{facts['shards']['planned']}"
        size = size_told(facts["size_bytes"])
        rows.append([cache.name, facts["rows"], vectors, facts["precision"] or "-", shards, size, cache.word])
    lines = table(rows)
    for cache in caches:
        details = _details(cache)
        lines += ["", cache.name, *(f"  {line}" for line in details)] if details else []
    return lines


def _details(cache: CacheState) -> list[str]:
    """What is worth a line about one cache; nothing if it is whole, fresh and clean."""
    found = cache.inspection
    bad = {kind: counts for kind, counts in cache.bad.items() if counts}
    lines = [f"is being written by {writer}" for writer in found.writers]
    lines += [f"{kind}: {', '.join(f'{n} {word}' for word, n in sorted(bad[kind].items()))}" for kind in bad]
    lines += found.faults
    to_extract = _to_extract(cache)
    lines += to_extract
    if to_extract:
        lines.append(f"`{cache.extract}` mends this")
    elif cache.staleness is not None and cache.staleness.touched.count:
        lines.append(
            f"thumbnails were written or copied since, in shards of {cache.staleness.touched.rows}: `--hash` tells "
            f"which have another content, `{cache.extract}` encodes just those"
        )
    if cache.staleness is not None and cache.staleness.unreadable_told:
        lines.append(f"{cache.staleness.unreadable_told}: make the files readable")
    return lines + _leftover_lines(found)


def _to_extract(cache: CacheState) -> list[str]:
    """Everything that `vp extract` makes good."""
    found, lines = cache.inspection, []
    if found.plan is None and not found.faults:
        lines.append("holds no manifest")
    if found.pending is not None:
        lines.append(f"unfinished: {found.pending_there} of {len(found.pending.shards)} planned shards are there")
    if found.published is not None and found.missing:
        names = ", ".join(shard.file for shard in found.missing[:LISTED])
        more = ", ..." if len(found.missing) > LISTED else ""
        lines.append(f"shards missing or unreadable: {len(found.missing)} ({names}{more})")
    return lines + (cache.staleness.told if cache.staleness is not None else [])


def _leftover_lines(found: Inspection) -> list[str]:
    lines = []
    leftovers = found.of_role(*LEFTOVERS)
    if leftovers:
        counts = Counter(str(entry.role) for entry in leftovers)
        told = ", ".join(f"{role} {count}" for role, count in counts.items())
        size = size_told(sum(entry.size_bytes for entry in leftovers))
        lines.append(f"leftovers of {size} ({told}): `vp prune` lists them")
    strays = [entry.path.relative_to(found.folder).as_posix() for entry in found.of_role(Role.STRAY)]
    if strays:
        more = ", ..." if len(strays) > LISTED else ""
        lines.append(f"not written by vp: {', '.join(strays[:LISTED])}{more}")
    return lines


def _run_lines(config: StatusConfig, runs: Sequence[RunState]) -> list[str]:
    if not runs:
        return ["no runs"]
    rows: list[list[object]] = [["run", "head", "modalities", "folds", "rows", "OOF MSLE", "state"]]
    for run in runs:
        facts = run.facts
        folds = f"{facts['folds']} {facts['split']}" if "folds" in facts else "-"
        score = facts.get("oof_msle")
        told = "-" if score is None else f"{score:.4f}"
        modalities = ", ".join(facts.get("modalities", ())) or "-"
        rows.append([run.name, facts.get("head", "-"), modalities, folds, facts.get("rows", "-"), told, run.word])
    lines = table(rows)
    for run in runs:
        mended = [f"`{one}` makes {'it' if one == run.again else 'its cache'} again" for one in _repairs(config, run)]
        lines += ["", run.name, *(f"  {line}" for line in (*run.lines, *mended))] if run.lines else []
    return lines


def _repairs(config: StatusConfig, run: RunState) -> list[str]:
    """The commands that mend a run, in their order: it is trained on caches that are there."""
    wanted = [run.again] if run.faults and run.again else []
    wanted += [repair_of(change, run.again, config) for change in run.changes]
    return sorted(dict.fromkeys(filter(None, wanted)), key=lambda command: command == run.again)


def _next(config: StatusConfig, dataset: Dataset | None, caches: Sequence[CacheState], runs: Sequence[RunState]) -> str:
    """The first thing to mend, else the next step of the job."""
    for cache in caches:
        if cache.word in ("damaged", "unfinished", "stale") and not cache.inspection.faults:
            return cache.extract
    for run in runs:
        for command in _repairs(config, run):
            return command
    usable = [run for run in runs if run.facts.get("oof_msle") is not None]
    if not usable:
        return f"vp train-heads{repeated_flags(config)}" if caches else f"vp extract{repeated_flags(config)}"
    if dataset is None or dataset.test is None:
        return ""
    best = min(usable, key=lambda run: float(run.facts["oof_msle"]))
    return f"vp submit --run {best.name}{repeated_flags(config)}"


def _error(caches: Sequence[CacheState], runs: Sequence[RunState]) -> CacheError | None:
    broken = [f"cache {cache.name}" for cache in caches if not cache.is_readable]
    broken += [f"run {run.name}" for run in runs if run.faults]
    if not broken:
        return None
    return CacheError(f"cannot be used as they are: {', '.join(broken)}; `vp verify` says what is wrong with each")
