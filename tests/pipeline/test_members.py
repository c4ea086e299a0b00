"""The members of an ensemble: who predicts what, and with what weight."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.config import DatasetConfig
from features.errors import CacheError, UsageError
from features.store import EmbeddingStore
from features.videos import read_videos
from pipeline.members import (
    fold_members,
    fold_weights,
    given_weights,
    run_members,
    stacked_weights,
    unfitted_scores,
)
from pipeline.runs import Run, building, open_run, seal
from pipeline.workspace import Workspace

LINES = {"best": [[0.0, 1.0], [2.0, 3.0]], "final": [[10.0, 0.0], [20.0, 0.0]]}
"""Moment -> for each fold, log views at age 0 and what a year adds."""


class Line:
    """Heads that a reader can compute in his head."""

    def __init__(self, at_birth, per_year):
        self.at_birth, self.per_year = at_birth, per_year

    modalities = ("age",)
    weights = raw_weights = standardisation = baseline = None  # a member has these as well
    to_arrays = to_metadata = averaged_with = dict
    additive = True

    def predict(self, inputs):
        return self.at_birth + self.contributions(inputs)[0]

    def contributions(self, inputs):
        return self.per_year * inputs.block("age").values[:, :1].astype(np.float64).T


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    """A work folder whose runs predict by the lines that their record holds."""

    def checkpoint(run, fold, moment):
        return SimpleNamespace(heads=Line(*run.record["lines"][moment][fold]))

    monkeypatch.setattr(Run, "checkpoint", checkpoint)
    return Workspace(tmp_path / "work")


@pytest.fixture
def videos(tmp_path):
    """Three videos, 0, 1 and 4 years old in 2024."""
    (tmp_path / "test.csv").write_text("id,title,year\na,x,2024\nb,x,2023\nc,x,2020\n")
    return read_videos(DatasetConfig(data=tmp_path), "test")


def make_run(workspace, name, files=None, **record):
    whole = {
        "folds": {"n": 2},
        "modalities": ["age"],
        "sources": [{"modality": "age", "kind": "age", "tag": ""}],
        "encoders": {},
        "reference_date": "2024-01-01T00:00:00",
        "target": "log1p",
        "lines": LINES,
    }
    with building(workspace.run(name)) as aside:
        for file_name, content in (files or {}).items():
            (aside / file_name).write_text(content, encoding="utf-8", newline="")
        seal(aside, whole | record)
    return open_run(workspace.run(name))


def oof(rows):
    """An oof.csv of (id, fold, log views, best, final)."""
    lines = ["id,fold,log_views,log_pred_best,log_pred_final", *(",".join(map(str, row)) for row in rows)]
    return {"oof.csv": "\n".join(lines) + "\n"}


def test_every_fold_predicts_every_video(workspace, videos):
    members = fold_members(workspace, make_run(workspace, "run"), videos, "best")
    assert members.names == ["fold_0", "fold_1"]
    np.testing.assert_array_equal(members.log_views, [[0, 1, 4], [2, 5, 14]])


def test_the_last_epoch_has_members_of_its_own(workspace, videos):
    members = fold_members(workspace, make_run(workspace, "run"), videos, "final")
    np.testing.assert_array_equal(members.log_views, [[10, 10, 10], [20, 20, 20]])


def test_ages_count_from_the_day_of_the_training(workspace, videos):
    run = make_run(workspace, "run", reference_date="2034-01-01T00:00:00")
    assert fold_members(workspace, run, videos, "best").log_views[0].tolist() == [10, 11, 14]


def test_a_run_predicts_the_mean_of_its_folds(workspace, videos):
    other = {"best": [[1.0, 0.0], [5.0, 0.0], [9.0, 0.0]]}
    runs = [make_run(workspace, "b"), make_run(workspace, "a", lines=other, folds={"n": 3})]
    members = run_members(workspace, runs, videos, "best", "log")
    assert members.names == ["b", "a"]
    np.testing.assert_allclose(members.log_views, [[1, 3, 9], [5, 5, 5]])


def test_a_run_can_predict_the_mean_of_views_instead(workspace, videos):
    lines = {"best": [[np.log(10), 0.0], [np.log(100), 0.0]]}
    counts, numbers = (make_run(workspace, target, lines=lines, target=target) for target in ("log1p", "none"))
    members = run_members(workspace, [counts, numbers], videos, "best", "views")
    np.testing.assert_allclose(members.log_views[0], np.log1p((9 + 99) / 2))
    np.testing.assert_allclose(members.log_views[1], np.log(1000) / 2)


def test_vectors_of_another_encoder_are_refused(workspace, cache_world, fake_encoder):
    videos, cache = cache_world.table(), workspace.cache("fake", "train_val")
    cache_world.make(fake_encoder(), folder=cache)
    here = EmbeddingStore.open(cache).plan.encoder
    sources = [{"modality": "image", "kind": "image", "tag": "fake"}, {"modality": "age", "kind": "age", "tag": ""}]
    same = make_run(workspace, "same", sources=sources, encoders={"fake": here})
    assert fold_members(workspace, same, videos, "best").log_views.shape == (2, len(videos))
    other = make_run(workspace, "other", sources=sources, encoders={"fake": "0" * 64})
    with pytest.raises(CacheError, match=f"encoder fake 000000000000, but the train_val cache was made by {here[:12]}"):
        fold_members(workspace, other, videos, "best")


NAMES = ["fold_0", "fold_1", "fold_2"]


def test_numbers_are_weights_in_the_order_of_the_members():
    assert given_weights(["0.5", "0.2", "0.3"], NAMES).tolist() == [0.5, 0.2, 0.3]


@settings(deadline=None, derandomize=True, max_examples=50)
@given(st.permutations(range(3)), st.lists(st.integers(1, 100), min_size=3, max_size=3))
def test_named_weights_count_in_any_order(order, parts):
    texts = [str(part / sum(parts)) for part in parts]
    named = [f" {NAMES[place]} = {texts[place]} " for place in order]
    np.testing.assert_array_equal(given_weights(named, NAMES), given_weights(texts, NAMES))


def test_weights_that_were_rounded_are_scaled_to_sum_to_one():
    weights = given_weights(["0.3333", "0.3333", "0.3333"], NAMES)
    np.testing.assert_allclose(weights, [1 / 3] * 3, rtol=1e-15)


def test_a_member_may_count_nothing():
    assert given_weights(["1", "0", "0e9"], NAMES).tolist() == [1, 0, 0]


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        (["1"], "needs one number for each of fold_0, fold_1, fold_2, 1 were given"),
        (["0.25"] * 4, "needs one number for each of fold_0, fold_1, fold_2, 4 were given"),
        (["0.5", "half", "0"], "takes numbers, not 0.5, half, 0"),
        (["0.5", "0.4", "0"], "must be 0 or more and sum to 1, however: 0.5, 0.4, 0 sum to 0.9"),
        (["0.6", "0.6", "-0.2"], "must be 0 or more and sum to 1, however: 0.6, 0.6, -0.2 sum to 1"),
        (["nan", "0.5", "0.5"], "must be 0 or more and sum to 1, however: nan, 0.5, 0.5 sum to nan"),
        (["inf", "0", "0"], "must be 0 or more and sum to 1, however: inf, 0, 0 sum to inf"),
        (["fold_0=1"], "must name each of fold_0, fold_1, fold_2 once, not fold_0=1"),
        (["fold_0=1", "0", "0"], "must name each of fold_0, fold_1, fold_2 once, not fold_0=1, 0, 0"),
        (["fold_0=1", "fold_0=0", "fold_1=0"], "must name each of fold_0, fold_1, fold_2 once, not "),
        (["fold_0=1", "fold_1=0", "fold_2=0", "fold_2=0"], "must name each of fold_0, fold_1, fold_2 once, not "),
        (["fold_0=1", "fold_1=0", "fold_3=0"], "must name each of fold_0, fold_1, fold_2 once, not "),
        (["fold_0=1", "fold_1=", "fold_2=0"], "takes numbers, not 1, , 0"),
    ],
)
def test_weights_that_fit_no_members_are_refused_with_the_reason(texts, said):
    with pytest.raises(UsageError) as told:
        given_weights(texts, NAMES)
    assert str(told.value).startswith(f"--weights {said}")


def test_fold_weights_are_inverse_to_the_error_of_the_epoch_that_is_used(workspace):
    metrics = json.dumps({"fold_msle": [1.0, 3.0], "fold_msle_final": [4.0, 1.0]})
    run = make_run(workspace, "run", {"metrics.json": metrics})
    np.testing.assert_allclose(fold_weights(run, "best"), [0.75, 0.25])
    np.testing.assert_allclose(fold_weights(run, "final"), [0.2, 0.8])


def test_fold_weights_are_not_taken_from_metrics_that_were_edited(workspace):
    run = make_run(workspace, "run", {"metrics.json": json.dumps({"fold_msle": [1.0, 3.0]})})
    (run.folder / "metrics.json").write_text(json.dumps({"fold_msle": [3.0, 1.0]}))
    with pytest.raises(CacheError, match=r"metrics\.json is not the file that the run was saved with"):
        fold_weights(run, "best")


def draw_oof(seed, n_videos=60):
    """Two runs of which a quarter and three quarters add up to the truth, as rows of an oof.csv each."""
    rng = np.random.default_rng(seed)
    one, other, final = rng.normal(9, 2, size=(3, n_videos))
    truth = 0.25 * one + 0.75 * other
    rows = [(f"v{row}", row % 3, truth[row]) for row in range(n_videos)]
    return [
        [(*row, predicted, last) for row, predicted, last in zip(rows, best, final, strict=True)]
        for best in (one, other)
    ]


def test_runs_get_the_weights_that_fit_the_truth_best_out_of_fold(workspace):
    one, other = draw_oof(0)
    runs = [make_run(workspace, name, oof(rows)) for name, rows in (("one", one), ("other", other))]
    weights, scores = stacked_weights(runs, "best")
    np.testing.assert_allclose(weights, [0.25, 0.75], atol=1e-8)
    assert scores["msle_together"] == pytest.approx(0, abs=1e-12)
    assert scores["msle_nested"] == pytest.approx(0, abs=1e-12)
    errors = {
        name: np.mean([(row[3] - row[2]) ** 2 for row in rows]) for name, rows in (("one", one), ("other", other))
    }
    assert scores["msle_of_each"] == pytest.approx(errors)


def test_the_last_epoch_is_fitted_on_its_own_predictions(workspace):
    best_is_right = [(f"v{row}", row % 2, row, row, 0.0) for row in range(10)]
    final_is_right = [(f"v{row}", row % 2, row, 0.0, row) for row in range(10)]
    runs = [make_run(workspace, "best", oof(best_is_right)), make_run(workspace, "final", oof(final_is_right))]
    for moment, expected in (("best", [1, 0]), ("final", [0, 1])):
        np.testing.assert_allclose(stacked_weights(runs, moment)[0], expected, atol=1e-8)


def test_rows_that_no_fold_validated_do_not_count(workspace):
    tables = draw_oof(1)
    never = [(f"w{row}", -1, 99.0, "", "") for row in range(5)]
    clean = [make_run(workspace, f"clean{number}", oof(rows)) for number, rows in enumerate(tables)]
    gappy = [make_run(workspace, f"gappy{number}", oof(never + rows)) for number, rows in enumerate(tables)]
    expected, scores = stacked_weights(clean, "best")
    weights, same = stacked_weights(gappy, "best")
    np.testing.assert_array_equal(weights, expected)
    assert same["msle_nested"] == scores["msle_nested"]


@pytest.mark.parametrize(("n_videos", "too_few"), [(99, True), (100, False)])
def test_fifty_rows_per_run_are_enough(workspace, n_videos, too_few):
    runs = [make_run(workspace, f"run{number}", oof(rows)) for number, rows in enumerate(draw_oof(2, n_videos))]
    assert stacked_weights(runs, "best")[1]["too_few_rows"] is too_few


def test_rows_in_another_order_are_the_same_rows(workspace):
    one, other = draw_oof(3)
    runs = [make_run(workspace, "one", oof(one)), make_run(workspace, "turned", oof(other[::-1]))]
    np.testing.assert_allclose(stacked_weights(runs, "best")[0], [0.25, 0.75], atol=1e-8)


def noisy_runs(workspace, expanding):
    """Two runs in three folds that follow each other; the first is right early, the second late."""
    rng = np.random.default_rng(4)
    truth, noise = rng.normal(9, 2, 90), rng.normal(size=(2, 90))
    fold_of = np.repeat([0, 1, 2], 30)
    scale = np.array([[0.2, 1.0, 3.0], [3.0, 1.0, 0.2]])[:, fold_of]
    folds = {"n": 3, "expanding": expanding}
    return [
        make_run(workspace, f"{name}-{expanding}", oof(_rows(fold_of, truth, own)), folds=folds)
        for name, own in zip(("early", "late"), truth + scale * noise, strict=True)
    ]


def _rows(fold_of, truth, predicted):
    return [(f"v{row}", fold_of[row], truth[row], predicted[row], predicted[row]) for row in range(len(truth))]


def test_under_a_split_by_time_the_nested_score_never_looks_ahead(workspace):
    in_order, at_random = (stacked_weights(noisy_runs(workspace, expanding), "best")[1] for expanding in (True, False))
    assert (in_order["nested_on"], at_random["nested_on"]) == ("earlier folds", "the other folds")
    assert in_order["msle_nested"] != at_random["msle_nested"]
    assert in_order["msle_together"] == at_random["msle_together"]


ROWS = [("NA", 0, 1.0, 1.0, 1.0), ("v", 1, 2.0, 2.0, 2.0), ("x", 1, 3.0, 3.5, 3.0)]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ([("NA", 1, 1.0, 1.0, 1.0), *ROWS[1:]], "of one and three 1 of 3 rows are in another fold (first: NA)"),
        ([("null", 0, 1.0, 1.0, 1.0), *ROWS[1:]], "1 videos are only in one (first: NA); 1 videos are only in three"),
        (ROWS[:2], "1 videos are only in one (first: x); train both"),
        ([ROWS[0], ("v", 1, 2.5, 2.0, 2.0), ROWS[2]], "1 videos have other views (first: v); train both"),
        (
            [ROWS[0], ROWS[1], ("x", -1, 3.0, "", "")],
            "1 videos have a fold in one run and none in the other (first: x)",
        ),
    ],
    ids=["another fold", "another id", "a row less", "other views", "never validated"],
)
def test_runs_that_were_validated_otherwise_are_not_stacked(workspace, changed, said):
    runs = [make_run(workspace, "one", oof(ROWS)), make_run(workspace, "two", oof(ROWS))]
    stacked_weights(runs, "best")
    runs.append(make_run(workspace, "three", oof(changed)))
    with pytest.raises(CacheError) as told:
        stacked_weights(runs, "best")
    assert said in str(told.value)


def test_ids_that_only_look_alike_are_other_rows(workspace):
    tables = [[(id_, 0, 1.0, 1.0, 1.0), ("12", 1, 2.0, 2.5, 2.0)] for id_ in ("007", "7")]
    runs = [make_run(workspace, f"run{number}", oof(rows)) for number, rows in enumerate(tables)]
    with pytest.raises(CacheError, match=r"1 videos are only in run0 \(first: 007\)"):
        stacked_weights(runs, "best")


def test_without_fitted_weights_runs_may_have_other_folds(workspace):
    one, other = draw_oof(5)
    other = [(id_, (fold + 1) % 3, *rest) for id_, fold, *rest in other]
    runs = [make_run(workspace, name, oof(rows)) for name, rows in (("one", one), ("other", other))]
    truth, first, second = (np.array([row[place] for row in rows]) for rows, place in ((one, 2), (one, 3), (other, 3)))
    plain = unfitted_scores(runs, "best", "mean", None, "log")
    assert plain["msle_together"] == pytest.approx(np.mean(((first + second) / 2 - truth) ** 2))
    given = unfitted_scores(runs, "best", "weighted_mean", np.array([0.25, 0.75]), "log")
    assert given["msle_together"] == pytest.approx(0, abs=1e-12)
    assert given["rows"] == 60


def test_the_effect_of_a_modality_is_its_mean_contribution_to_the_videos(workspace, videos):
    run = make_run(workspace, "run")
    assert fold_members(workspace, run, videos, "best").effects == [{"age": 5 / 3}, {"age": 5.0}]
    assert run_members(workspace, [run, run], videos, "best", "log").effects == [{"age": pytest.approx(10 / 3)}] * 2
