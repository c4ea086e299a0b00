"""Where a prediction stands among the training videos, against slow versions."""

import csv
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.config import DatasetConfig
from features.errors import DataError
from pipeline.runs import building, open_run, seal
from pipeline.standing import Standing, percentile


@given(st.lists(st.integers(0, 9), min_size=1), st.integers(-1, 10))
@settings(max_examples=100, deadline=None)
def test_a_percentile_counts_what_is_lower_and_half_of_what_is_equal(numbers, value):
    slow = 100 * (sum(one < value for one in numbers) + 0.5 * sum(one == value for one in numbers)) / len(numbers)
    assert percentile(float(value), np.sort(np.array(numbers, dtype=np.float64))) == pytest.approx(slow)


@pytest.fixture
def world(tmp_path):
    """Forty videos of two channels, five of them never validated, and what a run predicted of them."""
    rng = np.random.default_rng(0)
    log_views, best, final, age = rng.normal(9, 2, (4, 40))
    (tmp_path / "dataset").mkdir()
    with (tmp_path / "dataset" / "train_val.csv").open("w", newline="") as file:
        rows = [[f"v{row}", "a title", 2020, 5, "cats" if row % 3 else "dogs"] for row in range(40)]
        csv.writer(file).writerows([["id", "title", "year", "views", "channel"], *rows])
    with building(tmp_path / "run") as aside:
        lines = ["id,fold,log_views,log_pred_best,log_pred_final,contribution_age"]
        for row in range(40):
            numbers = [best[row], final[row], age[row]] if row >= 5 else ["", "", ""]
            lines.append(",".join(map(str, [f"v{row}", row % 2 if row >= 5 else -1, log_views[row], *numbers])))
        (aside / "oof.csv").write_text("\n".join(lines) + "\n")
        seal(aside, {})
    return tmp_path, log_views[5:], best[5:], final[5:], age[5:]


def standing(folder, data="dataset"):
    return Standing(open_run(folder / "run"), DatasetConfig(data=folder / data))


def test_the_age_counts_on_neither_side(world):
    folder, _, best, _, age = world
    ((everyone, own),) = standing(folder).percentiles(np.array([1.5]), [""])
    assert everyone == pytest.approx(100 * np.mean(best - age < 1.5))
    assert own is None


def test_a_channel_has_a_standing_of_its_own(world):
    folder, _, best, _, age = world
    cats = np.array([bool(row % 3) for row in range(5, 40)])
    found = standing(folder).percentiles(np.array([0.5, 0.5, 0.5]), ["cats", "dogs", "birds"])
    slow = [100 * np.mean((best - age)[rows] < 0.5) for rows in (cats, ~cats)]
    assert [own for _, own in found[:2]] == pytest.approx(slow)
    assert found[2][1] is None


def test_without_the_dataset_a_channel_has_none(world):
    assert standing(world[0], "nowhere").percentiles(np.array([0.5]), ["cats"])[0][1] is None


def test_a_dataset_is_not_read_for_nothing(world):
    folder = world[0]
    Path(folder / "dataset" / "train_val.csv").write_text("broken")
    assert standing(folder).percentiles(np.array([0.5]), [""])[0][1] is None
    with pytest.raises(DataError):
        standing(folder).percentiles(np.array([0.5]), ["cats"])


@pytest.mark.parametrize("difference", [0.0, 0.3, 2.0, 50.0])
def test_the_chance_of_an_order_is_that_over_all_pairs_of_residuals(world, difference):
    folder, log_views, _, final, _ = world
    residuals = log_views - final
    slow = np.mean(residuals[None, :] <= residuals[:, None] + difference)
    assert standing(folder).chance_of_order(difference) == pytest.approx(slow)
