import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heads import ensemble
from heads.ensemble import combine, inverse_msle_weights, nested_msle, stack_weights
from heads.errors import UnfitDataError
from heads.metrics import msle
from heads.targets import Target

MEMBERS = np.array([[0.0, 2.0], [1.0, 4.0], [5.0, 12.0]])


@pytest.mark.parametrize(
    ("method", "weights", "expected"),
    [
        ("mean", None, [2.0, 6.0]),
        ("median", None, [1.0, 4.0]),
        ("weighted_mean", [0.5, 0.5, 0.0], [0.5, 3.0]),
        ("weighted_mean", [2.0, 1.0, 1.0], [1.5, 5.0]),
    ],
)
def test_members_are_combined_in_log_space(method, weights, expected):
    given_weights = None if weights is None else np.array(weights)
    np.testing.assert_allclose(combine(MEMBERS, method, given_weights), expected)


def test_views_can_be_averaged_instead():
    log_predictions = np.log1p(np.array([[1.0, 10.0], [3.0, 10.0]]))
    np.testing.assert_allclose(np.expm1(combine(log_predictions, "mean", space="views")), [2.0, 10.0])
    np.testing.assert_allclose(combine(MEMBERS, "mean", space="views", target=Target("none")), [2.0, 6.0])


def test_negative_log_views_count_as_no_views_when_views_are_averaged():
    assert np.expm1(combine(np.array([[-5.0], [np.log(3)]]), "mean", space="views")) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("method", "weights"),
    [
        ("mean", [1.0, 1.0, 1.0]),
        ("weighted_mean", None),
        ("weighted_mean", [1.0, 1.0]),
        ("weighted_mean", [1.0, -1.0, 1.0]),
        ("weighted_mean", [0.0, 0.0, 0.0]),
        ("weighted_mean", [np.nan, 1.0, 1.0]),
    ],
)
def test_weights_that_cannot_be_used_are_refused(method, weights):
    with pytest.raises(ValueError, match="weights"):
        combine(MEMBERS, method, None if weights is None else np.array(weights))


def test_a_member_without_error_has_no_inverse_weight():
    with pytest.raises(ValueError, match="above 0"):
        inverse_msle_weights(np.array([1.0, 0.0]))


def caruana(oof: np.ndarray, log_views: np.ndarray, steps: int) -> np.ndarray:
    """Greedy selection with replacement: the slow, obvious rival."""
    counts = np.zeros(len(oof))
    for _ in range(steps):
        scores = [msle(log_views, (counts + one) @ oof / (counts.sum() + 1)) for one in np.eye(len(oof))]
        counts[int(np.argmin(scores))] += 1
    return counts / counts.sum()


def draw_models(n_videos: int, spreads: list[float], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    log_views = rng.normal(9, 2, size=n_videos)
    return log_views + rng.normal(size=(len(spreads), n_videos)) * np.array(spreads)[:, None], log_views


def test_stacking_is_as_good_as_many_greedy_steps():
    oof, log_views = draw_models(500, [1.0, 1.2, 1.5, 3.0])
    exact, greedy = stack_weights(oof, log_views), caruana(oof, log_views, steps=300)
    np.testing.assert_allclose(exact, greedy, atol=0.01)
    assert msle(log_views, exact @ oof) <= msle(log_views, greedy @ oof) + 1e-12


@given(st.integers(0, 10_000))
@settings(max_examples=25)
def test_no_point_of_the_simplex_beats_the_stack(seed):
    rng = np.random.default_rng(seed)
    oof, log_views = draw_models(30, rng.uniform(0.1, 3, size=4).tolist(), seed)
    weights = stack_weights(oof, log_views)
    assert weights.sum() == pytest.approx(1)
    assert (weights >= 0).all()
    best = msle(log_views, weights @ oof)
    rivals = [*rng.dirichlet(np.ones(4), size=20), *np.eye(4)]
    assert all(best <= msle(log_views, rival @ oof) + 1e-9 for rival in rivals)


def test_identical_models_share_what_one_would_get():
    oof, log_views = draw_models(40, [1.0])
    weights = stack_weights(np.vstack([oof, oof]), log_views)
    assert weights.sum() == pytest.approx(1)


def test_rows_without_a_prediction_cannot_be_stacked():
    with pytest.raises(UnfitDataError, match="never validated"):
        stack_weights(np.array([[np.nan, 1.0]]), np.array([0.0, 1.0]))


def test_the_nested_score_never_fits_weights_on_the_fold_it_scores(monkeypatch):
    oof, log_views = draw_models(60, [1.0, 1.0])
    fold_of = np.repeat(np.arange(3, dtype=np.int32), 20)
    fold_of[::10] = -1
    seen = []

    def spy(oof_rows, log_views_rows):
        seen.append(set(log_views_rows.tolist()))
        return stack_weights(oof_rows, log_views_rows)

    monkeypatch.setattr(ensemble, "stack_weights", spy)
    nested_msle(oof, log_views, fold_of)
    expected = [set(log_views[(fold_of != fold) & (fold_of >= 0)].tolist()) for fold in range(3)]
    assert seen == expected


def test_no_later_fold_weighs_an_earlier_one_where_folds_follow_each_other_in_time(monkeypatch):
    oof, log_views = draw_models(60, [1.0, 2.0])
    fold_of = np.repeat(np.arange(-1, 2, dtype=np.int32), 20)
    seen = []

    def spy(oof_rows, log_views_rows):
        seen.append(log_views_rows.tolist())
        return stack_weights(oof_rows, log_views_rows)

    monkeypatch.setattr(ensemble, "stack_weights", spy)
    score = nested_msle(oof, log_views, fold_of, expanding=True)
    assert seen == [log_views[fold_of == 0].tolist()]
    later = stack_weights(oof[:, fold_of == 0], log_views[fold_of == 0])
    predicted = np.append(oof[:, fold_of == 0].mean(axis=0), later @ oof[:, fold_of == 1])
    assert score == pytest.approx(np.mean((predicted - log_views[20:]) ** 2))


def test_many_noisy_models_on_few_rows_look_good_in_sample_only():
    oof, log_views = draw_models(150, [2.0] * 100)
    fold_of = np.arange(150, dtype=np.int32) % 3
    in_sample = msle(log_views, stack_weights(oof, log_views) @ oof)
    assert nested_msle(oof, log_views, fold_of) > 3 * in_sample


def test_a_nested_score_needs_two_folds():
    with pytest.raises(UnfitDataError, match="at least 2 folds"):
        nested_msle(np.ones((1, 3)), np.ones(3), np.array([0, 0, -1], dtype=np.int32))
