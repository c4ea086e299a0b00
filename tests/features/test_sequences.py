"""Whatever happens to a cache, in whatever order: it ends as the one that a single clean run gives.

Hypothesis draws a history of changed datasets and of kills at any step that changes the disk; after each the cache is
made again, and at the end it is compared with a cache made in an empty folder.
"""

import shutil

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from features import durable
from features.store import EmbeddingStore

ROWS_PER_SHARD = 4
TOLERANCE = 2e-3


class Killed(BaseException):
    """The process ends here, without another word."""


class KilledAt(durable.DiskCalls):
    """Dies before the n-th call that changes the disk, or in the middle of it if that is a write."""

    def __init__(self, at):
        self.left = at

    def _step(self):
        self.left -= 1
        if self.left == 0:
            raise Killed

    def create(self, path):
        self._step()
        return super().create(path)

    def write(self, descriptor, data):
        if self.left == 1:
            super().write(descriptor, data[: len(data) // 2])
        self._step()
        return super().write(descriptor, data)

    def sync(self, descriptor):
        self._step()
        super().sync(descriptor)

    def replace(self, source, target):
        self._step()
        super().replace(source, target)


def add(world, number):
    id_ = f"new-{number}-{len(world.rows)}"
    world.rows.insert(number % (len(world.rows) + 1), [id_, f"a new title {number}", number, 2015])
    world.paint(id_, number)


def repaint(world, number):
    world.paint(world.rows[number % len(world.rows)][0], number % 31)


def lose_thumbnail(world, number):
    (world.data / "train_val" / f"{world.rows[number % len(world.rows)][0]}.jpg").unlink(missing_ok=True)


def retitle(world, number):
    world.rows[number % len(world.rows)][1] = f"title {number % 5}"


def remove(world, number):
    if len(world.rows) > 1:
        del world.rows[number % len(world.rows)]


def reorder(world, number):
    at = number % len(world.rows)
    world.rows[:] = world.rows[at:][::-1] + world.rows[:at]


CHANGES = [add, repaint, lose_thumbnail, retitle, remove, reorder]
STEPS = st.one_of(
    st.tuples(st.sampled_from(CHANGES), st.integers(0, 200)),
    st.tuples(st.just("kill"), st.integers(1, 60)),
    st.tuples(st.just("make"), st.just(0)),
)


@pytest.fixture(scope="module")
def world(tmp_path_factory, make_world):
    """One small world, whose rows and pictures every example draws anew."""
    world = make_world(tmp_path_factory.mktemp("sequences"))
    shutil.rmtree(world.data / "train_val")
    return world


def begin(world):
    for folder in (world.data / "train_val", world.folder, world.folder.with_name("clean")):
        shutil.rmtree(folder, ignore_errors=True)
    (world.data / "train_val").mkdir()
    world.rows = [[f"id-{row}", f"title {row}", row, 2010 + row] for row in range(6)]
    for row in range(6):
        world.paint(f"id-{row}", row)
    world.write()


def make(world, encoder, calls=None, folder=None):
    durable.calls = calls or durable.DiskCalls()
    try:
        world.make(encoder, folder=folder, rows_per_shard=ROWS_PER_SHARD)
    except Killed:
        pass
    finally:
        durable.calls = durable.DiskCalls()


def content(folder):
    store = EmbeddingStore.open(folder)
    return {kind: store.read(kind) for kind in store.plan.dims}


@settings(
    deadline=None,
    derandomize=True,
    max_examples=16,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(st.lists(STEPS, min_size=2, max_size=8))
def test_any_history_ends_in_the_cache_of_a_single_clean_run(world, fake_encoder, history):
    begin(world)
    for step, number in history:
        if step == "kill":
            make(world, fake_encoder(), KilledAt(number))
        elif step == "make":
            make(world, fake_encoder())
        else:
            step(world, number)
            world.write()
    make(world, fake_encoder())
    clean = world.folder.with_name("clean")
    make(world, fake_encoder(), folder=clean)
    found, expected = content(world.folder), content(clean)
    for kind, own in found.items():
        assert own.ids == expected[kind].ids == [row[0] for row in world.rows]
        np.testing.assert_array_equal(own.status, expected[kind].status)
        np.testing.assert_array_equal(own.source_digest, expected[kind].source_digest)
        np.testing.assert_allclose(own.vectors, expected[kind].vectors, atol=TOLERANCE, rtol=TOLERANCE)
    assert not [path for path in world.folder.rglob("*") if path.name.startswith(".tmp-")]
    make(world, None)  # and now nothing is missing
