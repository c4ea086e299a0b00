"""Predicting from Python, with runs that need no encoder: equal to a submission of the same videos, and honest."""

import contextlib
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from features.config import DatasetConfig
from features.dates import Published, today_utc
from features.errors import CacheError, DataError, UsageError
from features.videos import read_videos
from heads.intervals import Intervals
from pipeline.candidates import Candidate
from pipeline.drawn_dataset import CHANNELS, draw_dataset
from pipeline.predictor import Predictor
from pipeline.runs import open_run
from tests.command_line import copy_to_work_in, train, vp

RUNS = {"words": "linear words,channel,age", "trees": "trees words,channel,age", "old": "linear age"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A drawn dataset and three runs over it."""
    root = tmp_path_factory.mktemp("predict")
    with contextlib.chdir(root):
        draw_dataset(root / "dataset", n_train=180, n_test=25)
        for name, which in RUNS.items():
            train(name, *which.split())
    return root


@pytest.fixture
def job(trained, tmp_path, monkeypatch):
    root = copy_to_work_in(trained, tmp_path, monkeypatch)
    for name, shade in (("a.jpg", 10), ("b.jpg", 200)):
        Image.new("RGB", (64, 48), (shade, 0, 0)).save(name)
    return root


def test_candidates_get_what_a_submission_gives_the_same_videos(job):
    videos = read_videos(DatasetConfig(data=Path("dataset")), "test")
    days, years = videos.published.astype(np.int64).tolist(), videos.year.tolist()
    candidates = [
        Candidate(
            title=text.title,
            description=text.description,
            published=Published(days[row], years[row], ""),
            channel=videos.channel[row],
        )
        for row, text in enumerate(videos.texts(0, len(videos)))
    ]
    for name in RUNS:
        found = [one.views for one in Predictor.open(run=name).predict_each(candidates)]
        assert vp("submit", "--run", name, "--checkpoint", "final").exit_code == 0
        submitted = pd.read_csv(f"work/submissions/{name}_ensemble_mean.csv")["views"]
        np.testing.assert_allclose(found, submitted, rtol=1e-9)


def test_the_contributions_sum_to_the_prediction(job):
    for name in RUNS:
        for one in Predictor.open(run=name).predict(titles=["How I made a giant cake", "My first old phone"]):
            assert np.log1p(one.baseline) + sum(one.contributions.values()) == pytest.approx(one.log_views)
            assert one.views == pytest.approx(np.expm1(one.log_views))


def test_the_intervals_are_those_of_the_run(job):
    (one,) = Predictor.open(run="words").predict(titles=["How I made a giant cake"])
    intervals = Intervals.from_dict(open_run(Path("work/runs/words")).read_json("metrics.json")["intervals"])
    lower, upper = intervals.apply(np.array([one.log_views]))
    assert one.interval_50 == pytest.approx((np.expm1(lower[0, 0]), np.expm1(upper[0, 0])))
    assert one.interval_90 == pytest.approx((np.expm1(lower[1, 0]), np.expm1(upper[1, 0])))


def test_every_image_is_scored_with_every_title_the_highest_first(job):
    titles = ["How I made a giant cake", "My first old phone", "Never open the secret house"]
    found = Predictor.open(run="words").predict(images=["a.jpg", Path("b.jpg")], titles=titles)
    assert {(one.image, one.title) for one in found} == {
        (image, title) for image in ("a.jpg", "b.jpg") for title in titles
    }
    assert [one.views for one in found] == sorted((one.views for one in found), reverse=True)


def test_a_video_may_be_planned_for_a_day_up_to_a_year_ahead(job):
    predictor = Predictor.open(run="words")
    ahead = predictor.dates.last_day
    assert timedelta(365) <= ahead - today_utc() <= timedelta(367)
    assert predictor.predict(titles=["x y"], date=ahead)
    with pytest.raises(UsageError, match=f"--date must lie between 1990-01-01 and {ahead}, a year ahead, however: "):
        predictor.predict(titles=["x y"], date=ahead + timedelta(1))


@pytest.mark.parametrize(
    ("reference", "last"), [("2900-01-01T00:00:00", "2901-01-02"), ("9999-12-31", "9999-12-31"), ("NaT", None)]
)
def test_a_year_ahead_is_a_year_after_a_reference_that_is_later_than_today(job, reference, last):
    predictor = Predictor.open(run="words")
    predictor.reference = np.datetime64(reference)
    assert str(predictor.dates.last_day) == (last or str(today_utc() + timedelta(366)))


def test_a_percentile_does_not_depend_on_the_age(job):
    predictor = Predictor.open(run="words")
    new, old = (predictor.predict(titles=["a giant cake"], year=year)[0] for year in (2025, 2016))
    assert new.views < old.views
    assert new.percentile == pytest.approx(old.percentile)


def test_a_percentile_is_among_the_predictions_for_the_training_videos(job):
    (one,) = Predictor.open(run="words").predict(titles=["a giant cake"], channel=next(iter(CHANNELS)))
    oof = pd.read_csv("work/runs/words/oof.csv", dtype={"id": str}, keep_default_na=False)
    table = pd.read_csv("dataset/train_val.csv", dtype=str, keep_default_na=False)
    without_age = oof["log_pred_best"] - oof["contribution_age"]
    own = one.log_views - one.contributions["age"]  # `linear` has the same members at both epochs
    assert one.percentile == pytest.approx(100 * (without_age < own).mean())
    channel = without_age[(table["channel"] == next(iter(CHANNELS))).to_numpy()]
    assert one.percentile_in_channel == pytest.approx(100 * (channel < own).mean())


def test_what_is_not_given_counts_as_the_mean(job):
    predictor = Predictor.open(run="words")
    (bare,) = predictor.predict(images=["a.jpg"])
    assert (bare.contributions["words"], bare.contributions["channel"]) == (0.0, 0.0)
    assert bare.contributions["age"] == predictor.predict(titles=["x y"])[0].contributions["age"]
    (titled,) = predictor.predict(titles=["How I made a giant cake"], description="A new film every week.")
    assert titled.contributions["words"] != 0
    assert predictor.predict(images=["a.jpg"], channel="of nobody")[0].percentile_in_channel is None


def test_a_date_and_its_year_differ_by_less_than_a_year(job):
    predictor = Predictor.open(run="old")
    dated, reference = (predictor.predict(titles=["x y"], date=day)[0] for day in (date(2020, 1, 1), date(2025, 4, 15)))
    assert dated.views > reference.views


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        ({}, UsageError, "give something to score"),
        ({"images": "a.jpg"}, UsageError, "images and titles are lists"),
        ({"titles": ["good", " "]}, UsageError, "--title must hold a word"),
        ({"titles": ["\0"]}, UsageError, "--title must hold a word"),
        ({"images": [""]}, UsageError, "--image must name a file"),
        ({"images": ["a.jpg", "gone.jpg"]}, DataError, r"gone\.jpg \(missing\)"),
        ({"images": ["dataset"]}, DataError, r"dataset \(unreadable\)"),
        ({"images": ["dataset/test.csv"]}, DataError, r"test\.csv \(unidentified\)"),
        ({"titles": ["x y"], "date": date(2020, 1, 1), "year": 2020}, UsageError, "exclude each other"),
        ({"titles": ["x y"], "year": 10**12}, UsageError, "--year must be a year from 1990 to 20"),
        ({"titles": ["x y"], "year": 0}, UsageError, "--year must be a year from 1990 to 20"),
        ({"titles": ["x y"], "year": -2020}, UsageError, "--year must be a year from 1990 to 20"),
        ({"titles": ["x y"], "date": date(1800, 1, 1)}, UsageError, "--date must lie between 1990-01-01 and 20"),
        ({"titles": ["x y"], "date": date.max}, UsageError, "a year ahead, however: 9999-12-31"),
    ],
)
def test_a_mistake_is_told(job, given, error, said):
    with pytest.raises(error, match=said):
        Predictor.open(run="words").predict(**given)


def test_the_run_must_be_named_where_there_are_several(job):
    with pytest.raises(UsageError, match="choose with --run, one of old, trees, words"):
        Predictor.open()
    with pytest.raises(CacheError, match="no run in"):
        Predictor.open(run="none")


def test_a_run_of_another_target_is_told_in_its_own_units(job):
    train("plain", "linear", "words,age", "--target", "none")
    (one,) = Predictor.open(run="plain").predict(titles=["How I made a giant cake"])
    assert one.views == one.log_views == pytest.approx(one.baseline + sum(one.factors.values()))


def test_a_run_by_time_has_percentiles_of_the_rows_it_validated(job):
    train("time", "linear", "words,age", "--split", "time")
    assert 0 <= Predictor.open(run="time").predict(titles=["How I made a giant cake"])[0].percentile <= 100


def test_ids_and_titles_of_any_kind_do_no_harm(job):
    titles = ["=cmd()", "😱" * 500, "x" * 100_000, "\ud800 half", "বাংলা"]
    assert len(Predictor.open(run="words").predict(titles=titles)) == 5
