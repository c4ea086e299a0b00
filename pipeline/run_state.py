"""What a run is and whether it still stands on the caches it was trained on, told without reading its checkpoints."""

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from features.errors import CacheError
from features.extract_command import text_option
from features.inspection import Inspection
from features.videos import VideoTable
from pipeline.config import WorkConfig
from pipeline.dataset import TRAIN
from pipeline.json_shape import Number, fault_in
from pipeline.repairs import extract_command, train_command
from pipeline.run_record import check_record
from pipeline.runs import Run, UnreadableError
from pipeline.tuning.finetuned import other_videos
from pipeline.workspace import Workspace


@dataclass(frozen=True)
class Change:
    """Why the cache of an encoder is not the one that a run was trained on; `is_missing` if there is none at all.

    `kinds` are those that the run reads. Without a `tag` it is the test videos that are others.
    """

    tag: str
    what: str
    is_missing: bool = False
    kinds: Sequence[str] = ()


@dataclass(frozen=True)
class RunState:
    """One run. `faults` is why it cannot be used, `changes` what is no longer as when it was trained.

    `again` is the command that trains it once more; empty if that would mend nothing.
    """

    name: str
    again: str
    facts: Mapping[str, Any]
    faults: list[str]
    changes: list[Change]
    notes: list[str]

    @property
    def word(self) -> str:
        """The state in one word or two."""
        if self.faults:
            return "damaged"
        if any(change.tag for change in self.changes):
            return "cache changed"
        return "stale" if self.changes else "whole"

    @property
    def lines(self) -> list[str]:
        """What is worth a line; nothing for a whole run on its own caches."""
        return [*self.faults, *(change.what for change in self.changes), *self.notes]


def run_state(
    run: Run,
    config: WorkConfig,
    workspace: Workspace,
    inspections: Mapping[Path, Inspection],
    test: VideoTable | None = None,
) -> RunState:
    """Look at a run, at the caches that it names, and whether what it stored is of the `test` videos, if any are given.

    Damage is told in the result, never raised.
    """
    faults: list[str] = []
    changes: list[Change] = []
    notes: list[str] = []
    facts: dict[str, Any] = {"name": run.name}
    is_readable = True
    try:
        check_record(run)
        facts |= _facts(run)
        missing = [name for name in run.part("files") if not (run.folder / name).is_file()]
        facts["missing_files"] = missing
        if missing:
            faults.append(f"files missing: {len(missing)} ({', '.join(missing[:5])})")
        ids = run_ids(run) if facts["encoders"] and "folds.csv" not in missing else None
        for tag, encoder in facts["encoders"].items():
            inspection = inspections.get(workspace.cache(tag, TRAIN))
            kinds = [source["kind"] for source in run.part("sources") if source["tag"] == tag]
            changes += cache_changes(tag, str(encoder), kinds, inspection)
            if inspection is not None and ids is not None and not changes:
                notes += _row_changes(tag, ids, inspection)
        if test is not None and (other := other_videos(run, test)):
            changes.append(Change("", f"it {other}, not those of {test.path}"))
    except (PermissionError, UnreadableError) as error:
        is_readable = False
        faults.append(str(error if isinstance(error, UnreadableError) else UnreadableError(run.folder, error)))
    except CacheError as error:
        faults.append(str(error))
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        faults.append(f"its run.json is not whole ({error!r})")
    again = train_command(run.name, config, run.record.get("config")) if is_readable else ""
    return RunState(run.name, again, facts, faults, changes, notes)


def cache_changes(tag: str, encoder: str, kinds: list[str], inspection: Inspection | None) -> list[Change]:
    """Why the cache of an encoder is not the one that a run was trained on; nothing if it is."""
    plan = None if inspection is None else inspection.plan
    if inspection is not None and plan is None and inspection.faults:
        return []  # the cache's own faults say why nothing is known of it
    if plan is None:
        what = f"it was trained on the cache {tag}, which is not there"
        return [Change(tag, what, is_missing=True, kinds=kinds)]
    if plan.encoder != encoder:
        what = f"it was trained on vectors of {tag} {encoder[:12]}, the cache was made by {plan.encoder[:12]}"
        return [Change(tag, what)]
    lacking = ", ".join(kind for kind in kinds if kind not in plan.dims)
    return [Change(tag, f"it was trained on {lacking} vectors, which the cache {tag} lacks")] if lacking else []


def repair_of(change: Change, again: str, config: WorkConfig) -> str:
    """The command that mends a change: a cache that is missing is made, for any other the run is trained `again`."""
    if not change.is_missing:
        return again
    return f"{extract_command(change.tag, None, config)}{text_option(change.kinds)}"


def run_ids(run: Run) -> list[str]:
    """The ids of the videos that a run was trained and validated on, in their order."""
    path = run.folder / "folds.csv"
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return [row["id"] for row in csv.DictReader(file)]
    except (OSError, UnicodeError, csv.Error, KeyError) as error:
        raise CacheError(f"{path} cannot be read ({error})") from error


def _facts(run: Run) -> dict[str, Any]:
    folds = run.part("folds")
    return {
        "head": run.part("config").get("head", ""),
        "modalities": run.modalities,
        "encoders": dict(run.part("encoders")),
        "folds": run.n_folds,
        "split": folds["split"],
        "rows": run.part("rows"),
        "target": run.part("target"),
        "created_utc": run.record.get("created_utc", ""),
        "oof_msle": _oof_msle(run),
    }


def _oof_msle(run: Run) -> float | None:
    """The score that metrics.json tells; None if it does not."""
    try:
        score = json.loads((run.folder / "metrics.json").read_text(encoding="utf-8"))["oof_msle"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return None if fault_in(score, Number(0.0)) else float(score)


def _row_changes(tag: str, ids: list[str], inspection: Inspection) -> list[str]:
    cached = inspection.ids()
    if cached is None or cached == ids:
        return []
    before, now = set(ids), set(cached)
    parts = [f"has {len(now - before)} new rows"] if now - before else []
    parts += [f"lacks {len(before - now)} of its rows"] if before - now else []
    return [f"since it was trained, the cache {tag} {' and '.join(parts)}"] if parts else []
