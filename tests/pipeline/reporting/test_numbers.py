"""The numbers of a report equal those that a reader computes from oof.csv alone."""

import json
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.oof import SavedOutOfFold
from pipeline.reporting.numbers import numbers_of, reliability
from pipeline.reporting.sources import Notices, Videos, find_videos
from tests.pipeline.reporting.world import N_VIDEOS, ReportWorld, Told, out_of_fold


@pytest.fixture
def world(tmp_path):
    world = ReportWorld(tmp_path)
    world.write_dataset()
    return world


def videos_of(world) -> Videos:
    return find_videos(world.config, world.files(), Notices(Told()))


def oof_of(log_views, final) -> SavedOutOfFold:
    return out_of_fold(np.zeros(len(log_views)), log_views, final)


def test_the_score_is_that_of_the_validated_rows_of_oof_csv(world):
    world.write_run()
    score = numbers_of(world.files(), None)["score"]
    table = pd.read_csv(world.work.run("hand") / "oof.csv").query("fold >= 0")
    for name in ("best", "final"):
        errors = table[f"log_pred_{name}"] - table["log_views"]
        assert score[name]["msle"] == pytest.approx((errors**2).mean())
        assert score[name]["typical_factor"] == pytest.approx(math.exp(math.sqrt((errors**2).mean())))
        assert score[name]["share_within_factor_2"] == pytest.approx((errors.abs() <= math.log(2)).mean())
        assert score[name]["bias"] == pytest.approx(errors.mean())
        assert score[name]["median_size"] == pytest.approx(errors.abs().median())
    assert score["constant"] == {"msle": 16.0, "rmse": 4.0, "typical_factor": pytest.approx(math.e**4)}
    assert score["explained"] == pytest.approx(1 - score["final"]["msle"] / 16)


def test_a_target_that_is_no_count_has_no_factor(tmp_path):
    world = ReportWorld(tmp_path, target="none")
    world.write_run()
    score = numbers_of(world.files(), None)["score"]
    assert "typical_factor" not in {*score["final"], *score["constant"]}


def test_every_split_has_a_score_or_the_reason_why_not(world):
    splits = {"kfold": 1.0, "group": 4.0, "time": "one date only"}
    world.write_run(diagnostics={"linear_msle_by_split": splits, "test_against_train_auc": {"age": 0.5}})
    numbers = numbers_of(world.files(), None)
    assert [entry["msle"] for entry in numbers["splits"]] == [1.0, 4.0, None]
    assert numbers["splits"][1]["typical_factor"] == pytest.approx(math.e**2)
    assert numbers["splits"][2]["reason"] == "one date only"
    assert numbers["test_against_train_auc"] == {"age": 0.5}


def test_a_run_without_diagnostics_has_no_splits(world):
    world.write_run()
    assert numbers_of(world.files(), None)["splits"] == []


def test_deciles_go_from_the_lowest_to_the_highest_prediction():
    truth = np.arange(20.0)
    found = reliability(oof_of(truth, 2 * truth[::-1]))
    assert [entry["rows"] for entry in found["deciles"]] == [2] * 10
    assert [entry["log_pred"] for entry in found["deciles"]] == [4.0 * at + 1 for at in range(10)]
    assert found["deciles"][0]["log_views"] == 18.5  # the lowest predictions belong to rows 18 and 19
    assert found["deciles"][0]["standard_error"] == pytest.approx(0.5 / math.sqrt(2))
    assert found["slope"] == pytest.approx(-0.5)


def test_predictions_that_are_all_the_same_have_no_slope():
    assert reliability(oof_of([1.0, 2.0], [1.0, 1.0]))["slope"] is None


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.floats(-5, 25), st.floats(-5, 25)), min_size=1, max_size=60))
def test_every_row_lies_in_one_cell_and_in_one_decile(rows):
    found = reliability(oof_of(*zip(*rows, strict=True)))
    assert sum(count for _, _, count in found["density"]["cells"]) == len(rows)
    assert sum(entry["rows"] for entry in found["deciles"]) == len(rows)


def test_curves_hold_every_epoch_of_every_fold(world):
    world.write_run()
    curves = numbers_of(world.files(), None)["training"]
    assert [curve["best_epoch"] for curve in curves] == [2, 1, 3]
    assert curves[2]["epoch"] == [1, 2, 3]
    assert curves[2]["val_msle"] == [6.0, 5.0, 4.0]
    assert curves[0]["weights"] == {m: [1 / 3] * 3 for m in world.modalities}


def test_heads_that_are_solved_have_no_curves(world, monkeypatch):
    monkeypatch.setattr(ReportWorld, "_epochs", lambda _self: [{"epoch": 0, "fold_0/val/msle": 1.0}])
    world.write_run()
    assert numbers_of(world.files(), None)["training"] == []


def test_what_only_some_runs_have_is_kept_as_it_is(world):
    world.write_run(seeds=[{"seed": 1, "oof_msle": 2.0}])
    assert numbers_of(world.files(), None)["other"] == {"seeds": [{"seed": 1, "oof_msle": 2.0}]}


def test_all_numbers_are_json_without_nan(world):
    world.write_run()
    numbers = numbers_of(world.files(), videos_of(world))
    json.dumps(numbers, allow_nan=False)
    assert (numbers["run"]["rows"], numbers["run"]["validated"]) == (N_VIDEOS, N_VIDEOS - 1)
    assert numbers["run"]["name"] == "hand"
