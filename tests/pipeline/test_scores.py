"""Out-of-fold predictions and the numbers that follow, with members that a reader can compute in his head."""

import json
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heads.folds import FoldPlan, from_table
from heads.inputs import Block, Inputs
from heads.intervals import Intervals
from heads.members import TrainedMember, Training
from heads.targets import Standardisation
from pipeline.scores import OutOfFold, distribution, fold_info, metrics_of

MODALITIES = ("size", "age")


@dataclass(frozen=True, eq=False)
class Sum:
    """Predicts its baseline, and for each modality `per_unit` times its number."""

    baseline: float
    per_unit: tuple[float, float]
    weights: np.ndarray = field(default_factory=lambda: np.array([0.5, 0.5]))
    modalities = MODALITIES
    additive = True
    standardisation = Standardisation(mean=0.0, sd=1.0)

    @property
    def raw_weights(self):
        return self.weights

    def contributions(self, inputs):
        blocks = [inputs.block(name) for name in MODALITIES]
        amounts = np.hstack([block.values[:, :1] for block in blocks]).T.astype(np.float64)
        return np.array(self.per_unit)[:, None] * amounts

    def predict(self, inputs):
        return self.baseline + self.contributions(inputs).sum(axis=0)

    def to_arrays(self):
        return {}

    def to_metadata(self):
        return {}

    def averaged_with(self, others):
        raise NotImplementedError


def member(fold: int, best: Sum, final: Sum | None = None, seed: int | None = None) -> TrainedMember:
    return TrainedMember(
        fold=fold,
        seed=seed,
        best=best,
        final=final or best,
        best_epoch=fold + 3,
        best_msle=0.25 + fold,
        final_msle=0.5 + fold,
        train_size=10 * fold + 2,
        val_size=10 * fold + 1,
        history=(),
    )


def inputs_of(sizes, ages) -> Inputs:
    return Inputs((Block.scalar("size", np.array(sizes)), Block.scalar("age", np.array(ages))))


def plan_of(*fold_of: int, expanding: bool = False) -> FoldPlan:
    return from_table(np.array(fold_of), expanding=expanding)


def oof_of(plan: FoldPlan, log_views, final) -> OutOfFold:
    """Predictions `final` from nothing but a baseline."""
    final = np.array(final, dtype=np.float64)
    return OutOfFold(plan, np.array(log_views, dtype=np.float64), final, final, final, np.zeros((2, len(final))))


def draw(seed: int, n_videos: int = 60) -> tuple[Training, OutOfFold]:
    """Three members that differ, a tenth of the rows never validated, numbers of either sign."""
    rng = np.random.default_rng(seed)
    fold_of = rng.choice([-1, 0, 1, 2], size=n_videos, p=[0.1, 0.3, 0.3, 0.3])
    fold_of[:4] = [-1, 0, 1, 2]
    models = [
        Sum(rng.normal(), tuple(rng.normal(size=2)), weights=np.array([share, 1 - share])) for share in rng.random(6)
    ]
    members = [member(fold, *models[2 * fold : 2 * fold + 2]) for fold in range(3)]
    inputs, log_views = inputs_of(*rng.normal(size=(2, n_videos))), rng.normal(size=n_videos)
    return Training(members, facts={"penalty": 2.5}), OutOfFold.predict(members, plan_of(*fold_of), inputs, log_views)


def metrics(training: Training, oof: OutOfFold, ages=None) -> dict:
    return metrics_of(training, oof, MODALITIES, np.zeros(len(oof.log_views)) if ages is None else ages)


def test_each_row_is_predicted_by_the_member_that_did_not_train_on_it_and_others_by_none():
    members = [member(0, Sum(100.0, (1.0, 0.0)), Sum(1.0, (0.0, 1.0))), member(1, Sum(200.0, (0.0, 2.0)))]
    inputs = inputs_of([1.0, 2.0, 3.0, 4.0], [10.0, 20.0, 30.0, 40.0])
    oof = OutOfFold.predict(members, plan_of(1, 0, -1, 0), inputs, np.zeros(4))
    np.testing.assert_array_equal(oof.baseline, [200, 100, np.nan, 100])
    np.testing.assert_array_equal(oof.contributions, [[0, 2, np.nan, 4], [20, 0, np.nan, 0]])
    np.testing.assert_array_equal(oof.best, [220, 102, np.nan, 104])
    np.testing.assert_array_equal(oof.final, [220, 21, np.nan, 41])
    assert oof.validated.tolist() == [True, True, False, True]


def test_members_may_come_in_any_order():
    members = [member(1, Sum(2.0, (0.0, 0.0))), member(0, Sum(1.0, (0.0, 0.0)))]
    oof = OutOfFold.predict(members, plan_of(0, 1, 0), inputs_of([0.0] * 3, [0.0] * 3), np.zeros(3))
    assert oof.best.tolist() == oof.final.tolist() == [1, 2, 1]


@settings(max_examples=30, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10_000))
def test_baseline_and_contributions_add_up_to_the_prediction(seed):
    _, oof = draw(seed)
    np.testing.assert_allclose(oof.baseline + oof.contributions.sum(axis=0), oof.best, rtol=1e-12)
    assert np.isnan(oof.best).tolist() == np.isnan(oof.final).tolist() == (~oof.validated).tolist()


def test_a_constant_is_the_mean_of_the_training_rows_of_each_fold():
    oof = oof_of(plan_of(0, 0, 1, -1), [1, 3, 5, 7], [0, 0, 0, np.nan])
    fold_0 = [(1 - 6) ** 2, (3 - 6) ** 2]  # trained on 5 and 7
    fold_1 = [(5 - 11 / 3) ** 2]  # trained on 1, 3 and 7
    assert oof.constant_msle() == pytest.approx(np.mean(fold_0 + fold_1))


def test_a_constant_of_an_expanding_plan_knows_the_past_alone():
    oof = oof_of(plan_of(-1, 0, 1, expanding=True), [1, 3, 5], [np.nan, 0, 0])
    assert oof.constant_msle() == pytest.approx(((3 - 1) ** 2 + (5 - 2) ** 2) / 2)


def test_the_table_has_a_line_per_video_and_leaves_empty_what_nobody_predicted():
    members = [member(0, Sum(100.0, (1.0, 0.0)), Sum(50.0, (1.0, 0.0))), member(1, Sum(200.0, (0.0, 2.0)))]
    inputs = inputs_of([1.0, 2.0, 3.0], [10.0, 20.0, 30.0])
    oof = OutOfFold.predict(members, plan_of(1, 0, -1), inputs, np.array([5.0, 6.0, 7.0]))
    table = oof.table(["a", "b", "c"], MODALITIES)
    assert table.to_csv(index=False, lineterminator="\n") == (
        "id,fold,log_views,log_pred_best,log_pred_final,contribution_size,contribution_age\n"
        "a,1,5.0,220.0,220.0,0.0,20.0\n"
        "b,0,6.0,102.0,52.0,2.0,0.0\n"
        "c,-1,7.0,,,,\n"
    )


def test_a_table_names_every_modality():
    _, oof = draw(0)
    with pytest.raises(ValueError, match="argument 2 is longer"):
        oof.table([str(row) for row in range(60)], ["size"])


@settings(max_examples=30, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10_000))
def test_importance_adds_up_to_what_the_members_gain_over_their_baselines(seed):
    training, oof = draw(seed)
    rows = oof.validated
    drop = np.mean((oof.log_views - oof.baseline)[rows] ** 2) - np.mean((oof.log_views - oof.best)[rows] ** 2)
    found = metrics(training, oof)
    assert sum(entry["shapley"] for entry in found["importance"].values()) == pytest.approx(drop)
    assert list(found["importance"]) == list(MODALITIES)


def test_errors_are_those_of_validated_rows_and_tell_best_from_final():
    members = [member(0, Sum(1.0, (0.0, 0.0)), Sum(3.0, (0.0, 0.0))), member(1, Sum(2.0, (0.0, 0.0)))]
    oof = OutOfFold.predict(members, plan_of(0, 1, 1, -1), inputs_of([0.0] * 4, [0.0] * 4), np.array([0.0, 2, 5, 99]))
    found = metrics(Training(members), oof)
    assert found["oof_msle"] == found["oof"]["msle"] == pytest.approx((1 + 0 + 9) / 3)
    assert found["oof_msle_final"] == found["oof_final"]["msle"] == pytest.approx((9 + 0 + 9) / 3)
    assert found["oof"]["mae"] == pytest.approx(4 / 3)
    assert (found["fold_msle"], found["fold_msle_final"]) == ([1.0, 4.5], [9.0, 4.5])
    assert "seeds" not in found


def test_weights_are_means_over_the_folds_with_their_deviation():
    shares = [np.array([0.2, 0.8]), np.array([0.4, 0.6])]
    members = [member(fold, Sum(0.0, (0.0, 0.0), weights=own)) for fold, own in enumerate(shares)]
    oof = OutOfFold.predict(members, plan_of(0, 1), inputs_of([0.0, 1], [0.0, 1]), np.array([0.0, 1.0]))
    found = metrics(Training(members), oof)
    assert found["weights"] == pytest.approx({"size": 0.3, "age": 0.7})
    assert found["weights_sd"] == pytest.approx({"size": 0.1, "age": 0.1})
    assert found["fold_weights"] == [{"size": 0.2, "age": 0.8}, {"size": 0.4, "age": 0.6}]


def test_all_numbers_are_fit_for_strict_json():
    training, oof = draw(1)
    ages = np.where(np.arange(60) % 7 == 0, np.nan, np.linspace(0, 9, 60))
    found = json.loads(json.dumps(metrics(training, oof, ages), allow_nan=False))
    assert found["chosen"] == {"penalty": 2.5}
    assert Intervals.from_dict(found["intervals"]).levels == (0.5, 0.9)


def test_bands_are_read_off_the_final_predictions():
    residuals = np.arange(-4.0, 5.0)
    oof = oof_of(plan_of(0, 1, 0, 1, 0, 1, 0, 1, 0), 10 + residuals, [10.0] * 9)
    oof = OutOfFold(oof.plan, oof.log_views, np.full(9, 77.0), oof.final, oof.baseline, oof.contributions)
    half, most = metrics(Training([member(0, Sum(0.0, (0.0, 0.0)))]), oof)["intervals"]["pooled"]
    assert (half["lower_offset"], half["upper_offset"]) == (-3, 3)  # of rank floor(10 * 0.25)
    assert (most["lower_offset"], most["upper_offset"]) == (-4, 4)


def test_coverage_by_fold_counts_each_fold_in_bands_of_the_others():
    plan = plan_of(*[0] * 20, *[1] * 20, -1)
    residuals = np.concatenate([np.linspace(-1, 1, 20), np.linspace(-9, 9, 20), [0]])
    final = np.array([0.0] * 40 + [np.nan])
    found = metrics(Training([member(0, Sum(0.0, (0.0, 0.0)))]), oof_of(plan, residuals, final))
    for level in found["coverage"]:
        assert level["overall"]["rows"] == 40
        assert level["by_fold"][0] == {"rows": 20, "share": 1.0}  # the bands of fold 1 are wide
        assert level["by_fold"][1] == {"rows": 20, "share": pytest.approx(0.1)}  # only ±9 / 19 lies within ±1


def test_coverage_by_age_has_five_bins_of_equal_size_and_one_for_unknown_ages():
    ages = np.array([*np.random.default_rng(0).permutation(100) / 10, *[np.nan] * 7, 0.0])
    # Only the oldest fifth is ever missed: the bands of each fold are far narrower than its errors.
    residuals = np.where(ages >= 8, 50.0, np.tile([-1.0, 1.0], 54))
    plan = plan_of(*np.arange(107) // 2 % 2, -1)
    training = Training([member(0, Sum(0.0, (0.0, 0.0)))])
    found = metrics(training, oof_of(plan, residuals, np.where(plan.fold_of < 0, np.nan, 0.0)), ages)
    np.testing.assert_allclose(found["age_bin_edges_years"], [1.98, 3.96, 5.94, 7.92])
    half = found["coverage"][0]
    assert {bin_: tally["rows"] for bin_, tally in half["by_bin"].items()} == {-1: 7, 0: 20, 1: 20, 2: 20, 3: 20, 4: 20}
    assert [half["by_bin"][bin_]["share"] for bin_ in (-1, 0, 3, 4)] == [1, 1, 1, 0]


def test_videos_of_one_age_fall_into_one_bin():
    training, oof = draw(2)
    found = metrics(training, oof, np.full(60, 3.0))
    assert found["age_bin_edges_years"] == [3.0]
    assert [tally["rows"] for tally in found["coverage"][0]["by_bin"].values()] == [int(oof.validated.sum())]


def test_without_ages_there_are_no_bins():
    training, oof = draw(3)
    found = metrics(training, oof, np.full(60, np.nan))
    assert found["age_bin_edges_years"] == []
    assert [level["by_bin"] for level in found["coverage"]] == [{}, {}]


def test_fold_info_has_a_line_per_fold():
    training = Training([member(fold, Sum(0.0, (0.0, 0.0))) for fold in range(2)])
    table = fold_info(training, {"fold_msle": [0.25, 1.25], "fold_msle_final": [0.5, 1.5]})
    assert table.to_csv(index=False, lineterminator="\n") == (
        "fold,train_size,val_size,best_epoch,best_msle,final_msle\n0,2,1,3,0.25,0.5\n1,12,11,4,1.25,1.5\n"
    )


def test_a_distribution_is_that_of_the_whole_table():
    assert distribution(np.array([1.0, 1.0, 4.0])) == {"mean": 2.0, "sd": pytest.approx(np.sqrt(2)), "max": 4.0}


def test_where_a_fold_has_several_seeds_their_mean_predicts_and_each_is_told_beside_it():
    pairs = [(Sum(1.0, (1.0, 0.0)), 7), (Sum(3.0, (3.0, 0.0)), 8)]
    members = [member(fold, model, seed=seed) for fold in range(2) for model, seed in pairs]
    training = Training(members)
    oof = OutOfFold.predict(members, plan_of(0, 1, 1), inputs_of([1.0, 2.0, 3.0], [0.0] * 3), np.array([4.0, 6, 10]))
    np.testing.assert_array_equal(oof.baseline, [2, 2, 2])
    np.testing.assert_array_equal(oof.contributions, [[2, 4, 6], [0, 0, 0]])
    np.testing.assert_array_equal(oof.best, [4, 6, 8])
    found = metrics(training, oof)
    assert (found["oof_msle"], found["fold_msle"]) == (pytest.approx(4 / 3), [0, 2])
    assert found["seeds"] == {
        "seeds": [7, 8],
        "oof_msle_of_one": pytest.approx((1 * 0.25 + 11 * 1.25) / 12),
        "oof_msle_final_of_one": pytest.approx((1 * 0.5 + 11 * 1.5) / 12),
        "fold_msle": [[0.25, 0.25], [1.25, 1.25]],
        "fold_msle_final": [[0.5, 0.5], [1.5, 1.5]],
        "fold_msle_final_sd": [0.0, 0.0],
    }
    assert len(found["fold_weights"]) == 2
    assert list(fold_info(training, found)["best_epoch"]) == [3, 4]
