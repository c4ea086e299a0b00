"""What a cache still tells of a run that was trained on it."""

from functools import partial

import pytest

from features.status import Status
from pipeline.reporting.caches import find_caches
from pipeline.reporting.sources import Notices
from tests.pipeline.reporting.world import N_VIDEOS, ReportWorld


@pytest.fixture
def world(tmp_path, cache_world, fake_encoder):
    world = ReportWorld(tmp_path / "report")
    world.write_dataset()
    world.paint()
    (world.data / "train_val" / "id-03.jpg").unlink()
    world.embed(partial(cache_world.make, fake_encoder()))
    world.write_run()
    return world


def look(world, told):
    return find_caches(world.work, world.files(), Notices(told))


def test_a_cache_tells_how_it_was_made_and_what_is_bad_in_it(world, told):
    (cache,) = look(world, told)
    assert told.warnings == []
    assert (cache.tag, cache.facts["rows"], cache.facts["dims"]) == ("fake", N_VIDEOS, {"image": 3, "text": 4})
    assert cache.facts["semantic"] == {"weights": "w", "precision": "fp32"}
    assert cache.facts["rows_by_status"] == {"image": {"ok": N_VIDEOS - 1, "missing": 1}, "text": {"ok": N_VIDEOS}}
    assert cache.facts["bad_ids"] == {"image": [{"id": "id-03", "status": Status.MISSING.label}], "text": []}
    assert cache.row_of.tolist() == list(range(N_VIDEOS))
    assert (~cache.present["image"]).nonzero()[0].tolist() == [3]


def test_a_run_that_needs_no_cache_misses_none(tmp_path, told):
    world = ReportWorld(tmp_path, modalities=("age",))
    world.write_run()
    assert look(world, told) == []
    assert told.warnings == []


def test_a_cache_that_is_gone_or_damaged_is_told(world, told):
    folder = world.work.cache("fake", "train_val")
    shard = next(folder.glob("image-*.h5"))
    shard.write_bytes(shard.read_bytes()[:-1])
    assert look(world, told) == []
    (folder / "manifest.json").unlink()
    assert look(world, told) == []
    assert ["could not be read" in warning for warning in told.warnings] == [True, True]


def test_a_cache_of_other_vectors_tells_how_it_was_made_but_has_no_neighbours(world, told):
    world.encoders = {"fake": "0" * 64}
    world.write_run()
    (cache,) = look(world, told)
    assert (cache.store, cache.facts["rows"], cache.facts["rows_by_status"]) == (None, N_VIDEOS, {})
    assert "made again, otherwise" in told.warnings[0]


def test_videos_that_the_cache_does_not_hold_have_no_row(world, told):
    world.ids[5] = "another"
    world.write_run()
    (cache,) = look(world, told)
    assert cache.row_of[4:7].tolist() == [4, -1, 6]
    assert told.warnings == ["Of the run's 60 videos, no longer among the embeddings of fake: 1."]
