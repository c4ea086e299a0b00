"""One cache as `vp status` tells it: what lies there, how far it is from the dataset, and what brings it up to date."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from features.inspection import LEFTOVERS, Entry, Inspection, Role, inspect
from features.progress import Progress
from features.staleness import Staleness, compare
from features.videos import VideoTable
from pipeline.config import StatusConfig
from pipeline.repairs import extract_command


@dataclass(frozen=True, eq=False)
class CacheState:
    """One cache, how far it is from its dataset (None: not compared), and the command that brings it up to date."""

    inspection: Inspection
    staleness: Staleness | None
    extract: str

    @property
    def name(self) -> str:
        """Encoder and split."""
        return f"{self.inspection.folder.parent.name}/{self.inspection.folder.name}"

    @property
    def is_readable(self) -> bool:
        """Whether readers can use what is published; a cache that is still being made has nothing to read yet."""
        found = self.inspection
        if found.faults or found.plan is None:
            return False
        return found.published is None or not found.missing

    @property
    def is_finished(self) -> bool:
        """Whether no plan waits for its shards."""
        return self.inspection.pending is None

    @property
    def word(self) -> str:
        """The state in one word or two."""
        if not self.is_readable:
            return "damaged"
        if not self.is_finished:
            return "unfinished"
        if self.staleness is None:
            return "not compared"
        if self.staleness.is_fresh:
            return "fresh"
        if self.staleness.is_only_unreadable:
            return "not readable"
        return "touched" if self.staleness.is_only_touched else "stale"

    @property
    def bad(self) -> dict[str, dict[str, int]]:
        """Kind -> status -> rows, for every status but ok."""
        counts = self.inspection.statuses()
        return {kind: {word: n for word, n in of.items() if word != "ok"} for kind, of in counts.items()}

    @property
    def facts(self) -> dict[str, Any]:
        """Everything there is to tell, for `--json`."""
        found, plan = self.inspection, self.inspection.plan
        planned = () if plan is None else plan.shards
        return {
            "cache": self.name,
            "state": self.word,
            "encoder": None if plan is None else {"digest": plan.encoder, **plan.environment},
            "semantic": None if plan is None else dict(plan.semantic),
            "created_utc": None if plan is None else plan.created_utc,
            "rows": 0 if plan is None else plan.rows,
            "dims": {} if plan is None else dict(plan.dims),
            "precision": None if plan is None else plan.semantic.get("precision"),
            "shards": {"there": len(planned) - len(found.missing), "planned": len(planned)},
            "statuses": found.statuses(),
            "size_bytes": found.size_bytes,
            "writers": [vars(writer) for writer in found.writers],
            "unfinished": None if found.pending is None else [found.pending_there, len(found.pending.shards)],
            "faults": [*found.faults, *found.unreadable.values()],
            "missing_shards": [shard.file for shard in found.missing if shard.file],
            "leftovers": [_entry(entry, found.folder) for entry in found.of_role(*LEFTOVERS)],
            "strays": [_entry(entry, found.folder) for entry in found.of_role(Role.STRAY)],
            "against_dataset": None if self.staleness is None else self.staleness.counts,
            "repair": self.extract,
        }


def _entry(entry: Entry, folder: Path) -> dict[str, Any]:
    return {"name": entry.path.relative_to(folder).as_posix(), "why": str(entry.role), "size_bytes": entry.size_bytes}


def cache_state(config: StatusConfig, folder: Path, videos: VideoTable | None, progress: Progress) -> CacheState:
    """Look at one cache; `videos` is its split of the dataset, if that can be read."""
    inspection = inspect(folder)
    staleness = None
    if inspection.plan is not None and videos is not None:
        staleness = compare(inspection.plan, inspection.shards, videos, progress, contents=config.hash)
    return CacheState(inspection, staleness, extract_command(folder.parent.name, inspection.plan, config))
