"""The largest misses, with their reasons, against a sort of oof.csv."""

import json
from functools import partial

import numpy as np
import pytest

from pipeline.reporting.caches import find_caches
from pipeline.reporting.cases import extremes, misjudged
from pipeline.reporting.sources import Notices, find_videos
from tests.pipeline.reporting.world import BASELINE, ReportWorld, Told


@pytest.fixture
def world(tmp_path, cache_world, fake_encoder):
    world = ReportWorld(tmp_path / "report")
    world.write_dataset()
    world.paint()
    world.embed(partial(cache_world.make, fake_encoder()))
    world.write_run()
    return world


def cases_of(world, told=None):
    files, notices = world.files(), Notices(told or Told())
    return extremes(files, find_videos(world.config, files, notices), find_caches(world.work, files, notices), notices)


def test_the_worst_come_first_each_way(world):
    errors = world.best - world.log_views
    order = [int(row) for row in np.argsort(errors) if world.seen[row]]
    assert misjudged(world.files()) == (order[::-1][:5], order[:5])


def test_nobody_is_too_high_where_all_are_too_low(world):
    world.best[1:] = world.log_views[1:] - 1
    world.write_run()
    over, under = misjudged(world.files())
    assert (over, len(under)) == ([], 5)


def test_baseline_and_contributions_add_up_to_the_prediction_of_each_case(world):
    for case in (case for way in cases_of(world).values() for case in way):
        row = case["video"]
        assert case["baseline"] == pytest.approx(BASELINE)
        assert case["baseline"] + sum(case["contributions"].values()) == pytest.approx(world.best[row])
        assert case["error"] == pytest.approx(world.best[row] - world.log_views[row])
        assert (case["id"], case["title"]) == (world.ids[row], world.titles[row])
        assert (case["channel"], case["published"]) == (world.channels[row], str(world.years[row]))


def test_the_first_two_each_way_have_neighbours_in_every_encoded_modality(world):
    cases = cases_of(world)
    for way in cases.values():
        assert [list(case["neighbours"]) for case in way] == [["image", "text"]] * 2 + [[]] * 3
        for case in way[:2]:
            for found in case["neighbours"].values():
                assert len(found) == 3
                assert all(world.fold[other["video"]] != world.fold[case["video"]] for other in found)
                assert [other["cosine"] for other in found] == sorted((o["cosine"] for o in found), reverse=True)


def test_terms_that_are_no_modality_are_part_of_the_sum(world):
    record = world.work.run("hand") / "run.json"
    document = json.loads(record.read_text())
    document["modalities"] = ["image", "text"]  # a run whose third term is no modality
    record.write_text(json.dumps(document))
    for case in cases_of(world)["over"]:
        assert list(case["contributions"]) == ["image", "text", "age"]
        assert case["baseline"] == pytest.approx(BASELINE)


def test_without_dataset_and_cache_the_reasons_are_still_there(world):
    notices = Notices(Told())
    case = extremes(world.files(), None, [], notices)["over"][0]
    assert (case["title"], case["channel"], case["published"], case["neighbours"]) == ("", "", "", {})
    assert set(case["contributions"]) == set(world.modalities)


def test_a_table_that_changes_meanwhile_is_told_once(world):
    told = Told()
    files, notices = world.files(), Notices(told)
    videos = find_videos(world.config, files, notices)
    (world.data / "train_val.csv").write_text("id,title,views,year\na,b,1,2020\n")
    cases = extremes(files, videos, [], notices)
    assert cases["over"][0]["title"] == ""
    assert len(told.warnings) == 1
    assert "changed meanwhile" in told.warnings[0]
