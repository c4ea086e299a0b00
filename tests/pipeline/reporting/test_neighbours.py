"""Nearest training videos against a search over all pairs, one by one."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.plan import CachePlan, PlannedShard, shard_ranges
from features.store import EmbeddingStore
from heads.folds import from_table
from pipeline.reporting.caches import Cache
from pipeline.reporting.neighbours import nearest

SHARD = 4


class Stored(EmbeddingStore):
    """A finished cache of one kind that needs no disk."""

    vectors: np.ndarray

    def shard(self, planned):
        return SimpleNamespace(embedding=self.vectors[planned.start : planned.stop])


def stored(vectors) -> Stored:
    vectors = np.asarray(vectors, np.float16)
    rows, dim = vectors.shape
    shards = tuple(PlannedShard("text", *place, key="k", file="f") for place in shard_ranges(rows, SHARD))
    store = Stored(Path("nowhere"), CachePlan({}, {}, "train_val", rows, SHARD, SHARD, {"text": dim}, shards))
    object.__setattr__(store, "vectors", vectors)
    return store


def cache_of(vectors, present=None, row_of=None) -> Cache:
    n = len(vectors)
    there = np.ones(n, dtype=bool) if present is None else np.array(present)
    rows = np.arange(n) if row_of is None else np.array(row_of)
    return Cache("tag", {}, stored(vectors), rows, {"text": there})


def cosine(a, b) -> float:
    a, b = (np.asarray(vector, np.float16).astype(np.float64) for vector in (a, b))
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


@settings(max_examples=25, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10_000))
def test_neighbours_are_the_nearest_rows_that_trained_the_videos_member(seed):
    rng = np.random.default_rng(seed)
    vectors, folds = rng.normal(size=(15, 3)), np.array([0, 1, 2, -1, 0, *rng.integers(-1, 3, 10)])
    present, row_of = rng.random(15) < 0.8, rng.permutation(15)
    plan, videos = from_table(folds), np.arange(15)
    found = nearest(cache_of(vectors, present, row_of), "text", plan, videos, 4)
    for video in range(15):
        allowed = [] if folds[video] < 0 else plan.train_rows(int(folds[video])).tolist()
        there = present[row_of]
        others = [other for other in allowed if there[other] and there[video]]
        cosines = {other: cosine(vectors[row_of[video]], vectors[row_of[other]]) for other in others}
        expected = sorted(others, key=lambda other: -cosines[other])[:4]
        assert [other for other, _ in found[video]] == expected
        assert [value for _, value in found[video]] == pytest.approx([cosines[o] for o in expected], abs=1e-5)


def test_a_video_that_the_cache_does_not_hold_has_no_neighbours_and_is_none():
    cache = cache_of(np.eye(3), row_of=[0, -1, 2])
    found = nearest(cache, "text", from_table(np.array([0, 0, 1])), np.array([1, 2]), 3)
    assert [[other for other, _ in each] for each in found] == [[], [0]]


def test_length_does_not_count_and_a_zero_vector_is_far_from_all():
    cache = cache_of([[1.0, 0.0], [900.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
    (found,) = nearest(cache, "text", from_table(np.array([0, 1, 1, 1])), np.array([0]), 3)
    assert found == [(1, 1.0), (2, pytest.approx(2**-0.5, abs=1e-4)), (3, 0.0)]


def test_a_member_of_an_expanding_plan_has_seen_earlier_folds_alone():
    plan = from_table(np.array([-1, 0, 1, 1]), expanding=True)
    (found,) = nearest(cache_of(np.ones((4, 2))), "text", plan, np.array([1]), 3)
    assert [other for other, _ in found] == [0]


def test_without_usable_vectors_nothing_is_near():
    plan, videos = from_table(np.array([0, 1])), np.array([0])
    gone = Cache("tag", {}, None, np.empty(0, np.int64), {})
    assert nearest(gone, "text", plan, videos, 3) == [[]]
    assert nearest(cache_of(np.eye(2)), "image", plan, videos, 3) == [[]]
