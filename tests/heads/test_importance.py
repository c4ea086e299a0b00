from itertools import permutations
from math import factorial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heads.errors import UnfitDataError
from heads.importance import alone_and_removed, coalition_shapley, covariance_shares, importances, shapley

SEEDS = st.integers(0, 10_000)
COUNTS = st.integers(1, 5)


def draw(seed: int, n_modalities: int, n_videos: int = 30) -> tuple[np.ndarray, np.ndarray]:
    """Correlated contributions, centred only nearly as out-of-fold ones are, and what they should explain."""
    rng = np.random.default_rng(seed)
    contributions = rng.normal(size=(n_modalities, n_modalities)) @ rng.normal(size=(n_modalities, n_videos))
    return contributions, contributions.sum(axis=0) * rng.uniform(-0.5, 1.5) + rng.normal(size=n_videos)


def holds(n_modalities: int, coalition: int) -> np.ndarray:
    return np.array([coalition >> modality & 1 for modality in range(n_modalities)], dtype=float)


def predictions(contributions: np.ndarray) -> np.ndarray:
    """What each coalition of an additive model predicts."""
    n_modalities = len(contributions)
    return np.stack([holds(n_modalities, coalition) @ contributions for coalition in range(2**n_modalities)])


def msle_drop(log_pred: np.ndarray, residual: np.ndarray) -> np.ndarray:
    return np.mean(residual**2) - np.mean((residual - log_pred) ** 2, axis=-1)


def by_permutations(values: np.ndarray) -> np.ndarray:
    """The definition: what a modality adds on joining, averaged over every order of joining."""
    n_modalities = len(values).bit_length() - 1
    added = np.zeros((n_modalities, *values.shape[1:]))
    for order in permutations(range(n_modalities)):
        coalition = 0
        for modality in order:
            added[modality] += values[coalition | 1 << modality] - values[coalition]
            coalition |= 1 << modality
    return added / factorial(n_modalities)


@given(SEEDS, COUNTS)
@settings(max_examples=40, deadline=None)
def test_the_closed_form_is_the_sum_over_all_coalitions(seed, n_modalities):
    contributions, residual = draw(seed, n_modalities)
    values = msle_drop(predictions(contributions), residual)
    np.testing.assert_allclose(shapley(contributions, residual), by_permutations(values), atol=1e-9)


@given(SEEDS, COUNTS)
@settings(max_examples=40, deadline=None)
def test_the_shapley_values_sum_to_the_drop_of_the_whole_model(seed, n_modalities):
    contributions, residual = draw(seed, n_modalities)
    drop = msle_drop(contributions.sum(axis=0), residual)
    assert shapley(contributions, residual).sum() == pytest.approx(drop, abs=1e-9)


@given(SEEDS, COUNTS)
@settings(max_examples=40, deadline=None)
def test_alone_and_removed_are_measured_and_their_mean_is_the_shapley_value(seed, n_modalities):
    contributions, residual = draw(seed, n_modalities)
    alone, removed = alone_and_removed(contributions, residual)
    whole = contributions.sum(axis=0)
    np.testing.assert_allclose(alone, msle_drop(contributions, residual), atol=1e-9)
    without = msle_drop(whole - contributions, residual)
    np.testing.assert_allclose(removed, msle_drop(whole, residual) - without, atol=1e-9)
    np.testing.assert_allclose((alone + removed) / 2, shapley(contributions, residual), atol=1e-9)


def test_two_modalities_by_hand():
    contributions, residual = (
        np.array([[1.0, -1.0, 0.0, 0.0], [1.0, 1.0, -1.0, -1.0]]),
        np.array([3.0, 0.0, -1.0, -2.0]),
    )
    # MSLE with neither: 14/4; image alone: (4 + 1 + 1 + 4)/4; age alone: (4 + 1 + 0 + 1)/4; both: (1 + 0 + 0 + 1)/4.
    table = importances(["image", "age"], contributions, residual)
    image, age = table["image"], table["age"]
    assert (image.alone, image.removed, image.shapley, image.share) == (1.0, 1.0, 1.0, pytest.approx(1 / 3))
    assert (age.alone, age.removed, age.shapley, age.share) == (2.0, 2.0, 2.0, pytest.approx(2 / 3))
    # The contributions are uncorrelated, with variances 1/2 and 1.
    assert (image.covariance_share, age.covariance_share) == (pytest.approx(1 / 3), pytest.approx(2 / 3))


def test_a_model_no_better_than_its_baseline_has_nothing_to_share():
    contributions = np.array([[1.0, -1.0], [2.0, -2.0]])
    table = importances(["image", "age"], contributions, -contributions.sum(axis=0))
    assert [row.share for row in table.values()] == [None, None]
    assert sum(row.shapley for row in table.values()) == pytest.approx(9.0 - 36.0)


def test_every_contribution_needs_its_name():
    with pytest.raises(ValueError, match="2 contributions need as many modalities, given image"):
        importances(["image"], *draw(0, 2))


@given(SEEDS, COUNTS, st.floats(-5, 5))
@settings(max_examples=40, deadline=None)
def test_covariance_shares_sum_to_one_and_ignore_constants(seed, n_modalities, constant):
    contributions, _ = draw(seed, n_modalities)
    shares = covariance_shares(contributions)
    assert shares.sum() == pytest.approx(1)
    covariance = np.cov(np.vstack([contributions, contributions.sum(axis=0)]))
    np.testing.assert_allclose(shares, covariance[:-1, -1] / covariance[-1, -1], rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(covariance_shares(contributions + constant), shares, rtol=1e-6, atol=1e-9)


def test_where_contributions_cancel_no_share_is_larger_than_another():
    rng = np.random.default_rng(0)
    image, text = rng.normal(size=(2, 50)).astype(np.float32)
    rounded = (-image.astype(np.float64) - text + 1e-9 * rng.normal(size=50)).astype(np.float32)
    contributions = np.stack([image, text, rounded]).astype(np.float64)
    assert contributions.sum(axis=0).any()
    np.testing.assert_allclose(covariance_shares(contributions), [1 / 3] * 3)


def test_shares_of_a_least_squares_model_agree_and_an_overfitted_modality_falls_behind():
    rng = np.random.default_rng(1)
    columns = rng.normal(size=(2, 500)) + rng.normal(size=500)
    columns -= columns.mean(axis=1, keepdims=True)
    residual = columns.sum(axis=0) + rng.normal(size=500)
    slopes = np.linalg.lstsq(columns.T, residual, rcond=None)[0]
    fitted = importances(["image", "text"], columns * slopes[:, None], residual)
    for row in fitted.values():
        assert row.share == pytest.approx(row.covariance_share)
    noisy = np.vstack([columns * slopes[:, None], rng.normal(size=500)])
    age = importances(["image", "text", "age"], noisy, residual)["age"]
    assert age.shapley < 0 < age.covariance_share


@given(SEEDS, COUNTS)
@settings(max_examples=40, deadline=None)
def test_contributions_over_coalitions_are_the_mean_over_every_order_of_joining(seed, n_modalities):
    log_pred = np.random.default_rng(seed).normal(9, 2, size=(2**n_modalities, 4))
    contributions = coalition_shapley(log_pred)
    np.testing.assert_allclose(contributions, by_permutations(log_pred), atol=1e-12)
    np.testing.assert_allclose(contributions.sum(axis=0), log_pred[-1] - log_pred[0], atol=1e-12)


@given(SEEDS, COUNTS, st.floats(-10, 10))
@settings(max_examples=40, deadline=None)
def test_contributions_of_an_additive_model_are_its_terms(seed, n_modalities, baseline):
    contributions, _ = draw(seed, n_modalities)
    np.testing.assert_allclose(coalition_shapley(baseline + predictions(contributions)), contributions, atol=1e-9)


@given(SEEDS)
@settings(max_examples=25, deadline=None)
def test_modalities_that_act_alike_contribute_alike_and_an_idle_one_nothing(seed):
    image_or_text, both = np.random.default_rng(seed).normal(size=(2, 5))
    without_age = np.stack([np.zeros(5), image_or_text, image_or_text, both])
    image, text, age = coalition_shapley(np.vstack([without_age, without_age]))
    np.testing.assert_allclose(image, text, atol=1e-12)
    np.testing.assert_allclose(image, both / 2, atol=1e-12)
    np.testing.assert_allclose(age, 0, atol=1e-12)


def test_many_modalities_still_sum_up():
    log_pred = np.random.default_rng(0).normal(size=(2**10, 3))
    np.testing.assert_allclose(coalition_shapley(log_pred).sum(axis=0), log_pred[-1] - log_pred[0], atol=1e-12)


@pytest.mark.parametrize("n_coalitions", [0, 1, 3, 6])
def test_a_coalition_that_is_missing_is_noticed(n_coalitions):
    with pytest.raises(ValueError, match=rf"2\^M .* given {n_coalitions} rows"):
        coalition_shapley(np.zeros((n_coalitions, 2)))


@pytest.mark.parametrize("spoilt", [np.nan, np.inf])
def test_rows_without_a_prediction_or_target_are_refused(spoilt):
    contributions, residual = draw(0, 2)
    broken = contributions.copy()
    broken[1, 3] = spoilt
    with pytest.raises(UnfitDataError, match="never validated"):
        shapley(broken, residual)
    with pytest.raises(UnfitDataError, match="never validated"):
        covariance_shares(broken)
    with pytest.raises(UnfitDataError, match="never validated"):
        coalition_shapley(broken)
    residual[0] = spoilt
    with pytest.raises(UnfitDataError, match="never validated"):
        alone_and_removed(contributions, residual)


def test_no_rows_have_no_importance():
    with pytest.raises(UnfitDataError, match="at least one row"):
        importances(["image"], np.zeros((1, 0)), np.zeros(0))
