"""Errors of groups, and the age curve, against sums over the rows of each group."""

import numpy as np
import pytest

from pipeline.oof import SavedOutOfFold
from pipeline.reporting.groups import age_effect, age_effect_of, errors_by, errors_of_groups, scored
from pipeline.reporting.sources import Notices, find_videos
from tests.pipeline.reporting.world import ReportWorld, Told, out_of_fold


@pytest.fixture
def groups(world):
    files = world.files()
    videos = find_videos(world.config, files, Notices(Told()))
    return errors_of_groups(files, videos, videos.ages(np.datetime64("2021-01-01")))


def oof_of(folds, errors) -> SavedOutOfFold:
    return out_of_fold(folds, np.zeros(len(folds)), errors)


def test_a_group_is_scored_on_its_own_validated_rows():
    found = errors_by(oof_of([0, -1, 1, 0], [1.0, 9.0, 3.0, -2.0]), np.array([7, 7, 7, 8]))
    assert [(entry["label"], entry["rows"]) for entry in found] == [(7, 2), (8, 1)]
    assert found[0] == {"label": 7, "rows": 2} | scored(np.zeros(2), np.array([1.0, 3.0]))


def test_rows_of_no_known_group_come_last():
    found = errors_by(oof_of([0, 1, 0], [0.0, 1.0, 2.0]), np.array([-1, 5, 3]))
    assert [entry["label"] for entry in found] == [3, 5, "unknown"]


def test_errors_by_year_and_age_cover_every_validated_row(world, groups):
    assert [entry["label"] for entry in groups["year"]] == [2015, 2016, 2017, 2018, 2019, 2020]
    assert sum(entry["rows"] for entry in groups["year"]) == sum(entry["rows"] for entry in groups["age"]) == 59
    rows = (np.array(world.years) == 2016) & world.seen
    assert groups["year"][1]["msle"] == pytest.approx(np.mean((world.final - world.log_views)[rows] ** 2))
    ends = [(entry["from_years"], entry["to_years"]) for entry in groups["age"]]
    assert ends == [(None, 2.0), (2.0, 4.0), (4.0, None)]


def test_channels_with_few_rows_are_told_together(world, groups):
    told = [(entry["label"], entry["channels"], entry["rows"]) for entry in groups["channel"]]
    assert told == [("big", 1, 29), ("small", 1, 15), (None, 15, 15)]
    rest = np.array([name.startswith("only") for name in world.channels]) & world.seen
    assert groups["channel"][2]["msle"] == pytest.approx(np.mean((world.final - world.log_views)[rest] ** 2))


def test_without_the_dataset_there_are_no_groups(world):
    assert errors_of_groups(world.files(), None, None) == {"year": [], "age": [], "channel": []}
    assert age_effect_of(world.files(), None) == []


def test_the_age_curve_is_the_mean_contribution_of_each_bin_and_fold():
    folds = [0, 1] * 16
    ages, contribution = np.arange(32.0), np.repeat([1.0, 3.0], 16) + np.tile([0.5, -0.5], 16)
    young, old = age_effect(oof_of(folds, np.zeros(32)), contribution, ages, n_folds=2)
    assert young == {"rows": 16, "age_years": 7.5, "contribution": 1.0, "by_fold": [1.5, 0.5]}
    assert (old["contribution"], old["by_fold"]) == (3.0, [3.5, 2.5])


def test_a_curve_needs_two_bins_of_enough_rows():
    assert age_effect(oof_of([0, 1] * 15, np.zeros(30)), np.zeros(30), np.arange(30.0), n_folds=2) == []


def test_rows_of_unknown_age_are_not_on_the_curve():
    ages = np.append(np.arange(32.0), np.nan)
    curve = age_effect(oof_of([0, 1] * 16 + [0], np.zeros(33)), np.append(np.zeros(32), 100.0), ages, n_folds=2)
    assert sum(entry["rows"] for entry in curve) == 32
    assert {entry["contribution"] for entry in curve} == {0.0}


def test_the_curve_is_of_the_modality_that_reads_ages(tmp_path):
    world = ReportWorld(tmp_path, modalities=("age", "words"))
    world.write_dataset()
    world.write_run()
    files = world.files()
    ages = find_videos(world.config, files, Notices(Told())).ages(np.datetime64("2021-01-01"))
    curve = age_effect_of(files, ages)
    total = sum(entry["rows"] * entry["contribution"] for entry in curve)
    assert total == pytest.approx(world.contributions[0][world.seen].sum())


def test_without_an_age_modality_there_is_no_curve(tmp_path):
    world = ReportWorld(tmp_path, modalities=("words",))
    world.write_run()
    assert age_effect_of(world.files(), np.arange(60.0)) == []
