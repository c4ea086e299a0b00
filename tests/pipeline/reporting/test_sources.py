"""A run is read whole or not at all; of its dataset, whatever is left."""

import csv

import numpy as np
import pytest

from features.config import DatasetConfig
from features.errors import CacheError
from pipeline.reporting.sources import Notices, find_videos
from tests.pipeline.reporting.world import N_VIDEOS, ReportWorld


def look(world, told):
    return find_videos(world.config, world.files(), Notices(told))


def test_a_run_reads_back_what_was_written(world):
    oof = world.files().oof
    assert oof.ids == world.ids
    assert oof.fold_of.tolist() == world.fold.tolist()
    for read, written in ((oof.best, world.best), (oof.final, world.final), (oof.contributions, world.contributions)):
        np.testing.assert_allclose(read, written, rtol=1e-12)
    assert [row["best_msle"] for row in world.files().fold_info] == [1.0, 2.0, 3.0]
    assert len(world.files().epochs) == 9


def test_ids_that_look_like_missing_values_stay(world):
    world.ids[:3] = ["NA", "007", "-Abc"]
    world.write_run()
    assert world.files().oof.ids[:3] == ["NA", "007", "-Abc"]


@pytest.mark.parametrize("name", ["oof.csv", "metrics.json", "metrics.jsonl", "fold_info.csv"])
def test_a_file_that_was_changed_or_lost_is_refused(world, name):
    path = world.work.run("hand") / name
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CacheError, match="is not the file that the run was saved with"):
        world.files()
    path.unlink()
    with pytest.raises(CacheError, match="is missing"):
        world.files()


def test_a_whole_run_that_lacks_a_number_is_refused(world, monkeypatch):
    without = {name: value for name, value in world.metrics.items() if name != "weights_sd"}
    monkeypatch.setattr(ReportWorld, "_metrics", lambda _self: without)
    world.write_run()
    with pytest.raises(CacheError, match=r"metrics\.json is damaged \(it lacks 'weights_sd'\)"):
        world.files()


def test_what_the_dataset_says_is_in_the_order_of_the_run(world, told):
    videos = look(world, told)
    assert told.warnings == []
    assert videos.channels() == world.channels
    assert videos.years().tolist() == world.years
    assert videos.ages(np.datetime64("2021-01-01")).tolist() == [2021 - year for year in world.years]
    assert videos.text(7).title == "title 7"
    assert videos.published(7) == str(world.years[7])


def test_a_dataset_that_is_gone_is_told_without_its_path_on_the_page(world, told, tmp_path):
    notices = Notices(told)
    assert find_videos(DatasetConfig(data=tmp_path / "elsewhere"), world.files(), notices) is None
    assert "could not be read" in notices.texts[0]
    assert "elsewhere" in told.warnings[0]
    assert "elsewhere" not in notices.texts[0]


def test_what_has_changed_in_the_dataset_is_counted(world, told):
    with (world.data / "train_val.csv").open(newline="", encoding="utf-8") as file:
        lines = list(csv.reader(file))
    lines[5][3] = "3"
    kept = [*lines[:1], *lines[3:], ["new", "", "t", "1", "2020"]]
    with (world.data / "train_val.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(kept)
    videos = look(world, told)
    assert told.warnings == [
        f"Of the run's {N_VIDEOS} videos, no longer in the dataset: 2.",
        "Videos in the dataset that were not there when the run was trained: 1.",
        "Videos whose views have changed since: 1. Every number is of the views trained on.",
    ]
    assert (videos.channels()[0], videos.years()[0], videos.text(0), videos.published(0)) == ("", 0, None, "")
    assert np.isnan(videos.ages(np.datetime64("2021-01-01"))[0])
    assert videos.text(2).title == "title 2"
