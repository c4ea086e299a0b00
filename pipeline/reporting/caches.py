"""The caches that a run was trained on, as far as they are still there: how they were made, and what they hold."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from jaxtyping import Bool, Int64

from features.errors import CacheError
from features.status import Status
from features.store import EmbeddingStore
from pipeline.dataset import TRAIN
from pipeline.reporting.sources import Notices, RunFiles
from pipeline.workspace import Workspace

BAD_IDS_LISTED = 10


@dataclass(frozen=True, eq=False)
class Cache:
    """One encoder's cache of the training videos: what its manifest says, and where it holds the run's videos.

    `store` is None where its vectors are not those that the run was trained on.
    """

    tag: str
    facts: Mapping[str, Any]
    store: EmbeddingStore | None
    row_of: Int64[np.ndarray, " video"]  # -1 for a video that the cache does not hold
    present: Mapping[str, Bool[np.ndarray, " stored"]]  # kind -> rows of the cache that have a vector


def find_caches(workspace: Workspace, files: RunFiles, notices: Notices) -> list[Cache]:
    """The caches that the run was trained on; a notice for each that is gone, changed or damaged."""
    caches = []
    if files.run.is_finetuned:
        notices("The encoder was tuned for each fold: embeddings and neighbours are those of the frozen one before.")
    for tag in dict.fromkeys(source.tag for source in files.sources if source.tag):
        try:
            caches.append(_cache(EmbeddingStore.open(workspace.cache(tag, TRAIN)), tag, files, notices))
        except CacheError as error:
            notices(f"The embeddings of {tag} could not be read: nothing on how they were made, no neighbours.", error)
    return caches


def _cache(store: EmbeddingStore, tag: str, files: RunFiles, notices: Notices) -> Cache:
    if store.plan.encoder != files.run.part("encoders").get(tag):
        notices(f"The embeddings of {tag} were made again, otherwise, since the run was trained: no neighbours.")
        return Cache(tag, _manifest(store, tag), None, np.empty(0, np.int64), {})
    rows = {kind: _stored(store, kind) for kind in store.plan.dims}
    row_of_id = {id_: row for row, (id_, _) in enumerate(next(iter(rows.values())))}
    row_of = np.array([row_of_id.get(id_, -1) for id_ in files.oof.ids], dtype=np.int64)
    if lacking := int((row_of < 0).sum()):
        notices(f"Of the run's {len(row_of):,} videos, no longer among the embeddings of {tag}: {lacking:,}.")
    facts = _manifest(store, tag) | {
        "rows_by_status": {kind: _counted([status for _, status in own]) for kind, own in rows.items()},
        "bad_ids": {kind: _bad_ids(own) for kind, own in rows.items()},
    }
    present = {kind: np.array([status == Status.OK for _, status in own]) for kind, own in rows.items()}
    return Cache(tag, facts, store, row_of, present)


def _stored(store: EmbeddingStore, kind: str) -> list[tuple[str, Status]]:
    """Id and status of every row of one kind."""
    shards = (store.shard(part) for part in store.plan.of_kind(kind))
    return [
        (id_, Status(value)) for shard in shards for id_, value in zip(shard.ids, shard.status.tolist(), strict=True)
    ]


def _manifest(store: EmbeddingStore, tag: str) -> dict[str, Any]:
    plan = store.plan
    return {
        "tag": tag,
        "encoder": plan.encoder,
        "semantic": dict(plan.semantic),
        "environment": dict(plan.environment),
        "rows": plan.rows,
        "shards": len(plan.shards),
        "batch_size": plan.batch_size,
        "dims": dict(plan.dims),
        "created_utc": plan.created_utc,
        "rows_by_status": {},
        "bad_ids": {},
    }


def _counted(statuses: Sequence[Status]) -> dict[str, int]:
    counts = Counter(statuses)
    return {status.label: counts[status] for status in Status if counts[status]}


def _bad_ids(rows: Sequence[tuple[str, Status]]) -> list[dict[str, str]]:
    bad = ({"id": id_, "status": status.label} for id_, status in rows if status != Status.OK)
    return list(islice(bad, BAD_IDS_LISTED))
