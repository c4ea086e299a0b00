"""The training videos whose embedding points most nearly the same way: what a head may have gone by."""

import numpy as np
from jaxtyping import Bool, Float16, Float32, Int64

from features.store import Embeddings
from heads.folds import FoldPlan

CHUNK_ROWS = 8192
"""Rows that are made float32 at once, so that memory does not grow with the cache."""


def nearest(
    embeddings: Embeddings, plan: FoldPlan, videos: Int64[np.ndarray, " query"], count: int
) -> list[list[tuple[int, float]]]:
    """For each video, up to `count` rows that trained the member which predicted it, with their cosine, nearest first.

    A video without an embedding has no neighbours. `embeddings` and `plan` are in the same order.
    """
    found: list[list[tuple[int, float]]] = []
    cosines = _cosines(embeddings.vectors, videos)
    for video, row in zip(videos.tolist(), cosines, strict=True):
        allowed = _trained(plan, video) & embeddings.present
        allowed[video] = False
        if not embeddings.present[video] or plan.fold_of[video] < 0:
            found.append([])
            continue
        order = np.argsort(np.where(allowed, -row, np.inf), kind="stable")[: min(count, int(allowed.sum()))]
        found.append([(int(other), float(row[other])) for other in order])
    return found


def _trained(plan: FoldPlan, video: int) -> Bool[np.ndarray, " video"]:
    allowed = np.zeros(len(plan.fold_of), dtype=bool)
    if plan.fold_of[video] >= 0:
        allowed[plan.train_rows(int(plan.fold_of[video]))] = True
    return allowed


def _cosines(
    vectors: Float16[np.ndarray, "video dim"], videos: Int64[np.ndarray, " query"]
) -> Float32[np.ndarray, "query video"]:
    queries = _unit(vectors[videos])
    cosines = np.empty((len(videos), len(vectors)), np.float32)
    for start in range(0, len(vectors), CHUNK_ROWS):
        stop = start + CHUNK_ROWS
        cosines[:, start:stop] = queries @ _unit(vectors[start:stop]).T
    return cosines


def _unit(vectors: Float16[np.ndarray, "row dim"]) -> Float32[np.ndarray, "row dim"]:
    wide = vectors.astype(np.float32)
    norms = np.linalg.norm(wide, axis=1, keepdims=True)
    unit: Float32[np.ndarray, "row dim"] = np.divide(wide, norms, out=np.zeros_like(wide), where=norms > 0)
    return unit
