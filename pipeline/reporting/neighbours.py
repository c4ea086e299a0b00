"""The training videos whose embedding points most nearly the same way: what a head may have gone by.

The cache is read shard by shard, so memory does not grow with its vectors.
"""

import numpy as np
from jaxtyping import Bool, Float16, Float32, Int64

from features.store import EmbeddingStore
from heads.folds import FoldPlan
from pipeline.reporting.caches import Cache


def nearest(
    cache: Cache, kind: str, plan: FoldPlan, videos: Int64[np.ndarray, " query"], count: int
) -> list[list[tuple[int, float]]]:
    """For each video, up to `count` rows that trained the member which predicted it, with their cosine, nearest first.

    Rows are those of the run, as in `plan`. A video without an embedding, or never validated, has no neighbours.
    """
    if cache.store is None or kind not in cache.present:
        return [[] for _ in videos]
    present = (cache.row_of >= 0) & cache.present[kind][cache.row_of]
    cosines = _cosines(cache.store, kind, cache.row_of[videos])
    found = []
    for video, row in zip(videos.tolist(), cosines, strict=True):
        allowed = _trained(plan, video) & present & bool(present[video])
        allowed[video] = False
        own = row[cache.row_of]
        order = np.argsort(np.where(allowed, -own, np.inf), kind="stable")[: min(count, int(allowed.sum()))]
        found.append([(int(other), round(float(own[other]), 6)) for other in order])
    return found


def _trained(plan: FoldPlan, video: int) -> Bool[np.ndarray, " video"]:
    allowed = np.zeros(len(plan.fold_of), dtype=bool)
    if plan.fold_of[video] >= 0:
        allowed[plan.train_rows(int(plan.fold_of[video]))] = True
    return allowed


def _cosines(
    store: EmbeddingStore, kind: str, rows: Int64[np.ndarray, " query"]
) -> Float32[np.ndarray, "query stored"]:
    """Cosines of some rows of the cache with all of them."""
    queries = np.zeros((len(rows), store.plan.dims[kind]), np.float32)
    for part in store.plan.of_kind(kind):
        if (here := (part.start <= rows) & (rows < part.stop)).any():
            queries[here] = _unit(store.shard(part).embedding[rows[here] - part.start])
    cosines = [queries @ _unit(store.shard(part).embedding).T for part in store.plan.of_kind(kind)]
    return np.concatenate(cosines, axis=1)


def _unit(vectors: Float16[np.ndarray, "row dim"]) -> Float32[np.ndarray, "row dim"]:
    wide = vectors.astype(np.float32)
    norms = np.linalg.norm(wide, axis=1, keepdims=True)
    unit: Float32[np.ndarray, "row dim"] = np.divide(wide, norms, out=np.zeros_like(wide), where=norms > 0)
    return unit
