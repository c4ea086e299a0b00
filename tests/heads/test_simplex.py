import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heads.simplex import canonical_gauge, canonical_weights, head_means


def draw(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    rng = np.random.default_rng(seed)
    present = rng.random((3, 40)) < 0.8
    return rng.normal(1.0, 2.0, size=(3, 40)), present, rng.dirichlet(np.ones(3)), float(rng.normal())


@given(st.integers(0, 10_000))
@settings(max_examples=25)
def test_the_rewritten_heads_on_the_simplex_are_the_model_itself(seed):
    outputs, present, raw_weights, intercept = draw(seed)
    gauge = canonical_gauge(outputs, present, raw_weights, intercept)
    centre = head_means(outputs, present)
    model = intercept + raw_weights @ centre + raw_weights @ ((outputs - centre[:, None]) * present)
    heads = gauge.intercept + (outputs - gauge.centre[:, None]) * gauge.scale[:, None] * present
    np.testing.assert_allclose(gauge.weights @ heads, model, atol=1e-12)
    assert gauge.weights.sum() == pytest.approx(1)
    assert (gauge.weights >= 0).all()


@given(st.integers(0, 10_000), st.floats(0.05, 20), st.floats(-5, 5))
@settings(max_examples=25)
def test_how_a_head_shares_a_factor_or_a_constant_with_the_rest_makes_no_difference(seed, factor, constant):
    outputs, present, raw_weights, intercept = draw(seed)
    present[:] = True
    gauge = canonical_gauge(outputs, present, raw_weights, intercept)
    shared = raw_weights * np.array([factor, 1, 1])
    outputs_shared = outputs / np.array([factor, 1, 1])[:, None] + constant
    moved = canonical_gauge(outputs_shared, present, shared, intercept - constant * shared.sum())
    np.testing.assert_allclose(moved.weights, gauge.weights, atol=1e-12)
    np.testing.assert_allclose(moved.intercept, gauge.intercept, atol=1e-10)


def test_all_heads_spread_alike():
    outputs, present, raw_weights, intercept = draw(1)
    gauge = canonical_gauge(outputs, present, raw_weights, intercept)
    heads = (outputs - gauge.centre[:, None]) * gauge.scale[:, None] * present
    np.testing.assert_allclose(heads.std(axis=1), heads[0].std())


def test_a_contribution_of_rounding_noise_is_no_contribution():
    assert canonical_weights(np.array([1.0, 1e-9])).tolist() == [1.0, 0.0]
    assert canonical_weights(np.array([1e-9, 0.0, 0.0, 0.0])).tolist() == [0.25] * 4


def test_an_absent_modality_has_no_mean():
    means = head_means(np.array([[2.0, 4.0], [5.0, 7.0]]), np.array([[True, False], [False, False]]))
    assert means.tolist() == [2.0, 0.0]
