import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heads.errors import UnfitDataError
from heads.targets import MAX_VIEWS, Standardisation, Target


@given(st.lists(st.integers(0, 10**11), min_size=1, max_size=20))
@settings(max_examples=30)
def test_views_survive_the_way_to_the_log_scale_and_back(views):
    given_views = np.array(views, dtype=np.int64)
    target = Target("log1p")
    np.testing.assert_allclose(target.from_log(target.to_log(given_views)), given_views, rtol=1e-12, atol=1e-12)


def test_no_prediction_is_negative_or_overflows():
    views = Target("log1p").from_log(np.array([-3.0, 1e300, np.inf]))
    assert views[0] == 0.0
    assert (views <= MAX_VIEWS).all()
    assert views[1:] == pytest.approx(MAX_VIEWS)


def test_a_missing_prediction_stays_missing():
    assert np.isnan(Target("log1p").from_log(np.array([np.nan]))).all()


def test_without_a_transform_any_real_number_is_a_target():
    values = np.array([-2.5, 0.0, 7.0])
    assert Target("none").to_log(values).tolist() == values.tolist()
    assert Target("none").from_log(values).tolist() == values.tolist()


@pytest.mark.parametrize("bad", [-1.0, np.nan, np.inf])
def test_an_unusable_target_is_named_with_its_row(bad):
    with pytest.raises(UnfitDataError, match=r"finite and >= 0 .*row 1"):
        Target("log1p").to_log(np.array([3.0, bad]))


def test_an_unknown_kind_of_target_is_refused():
    with pytest.raises((ValueError, TypeError), match="log1p"):  # a TypeError where annotations are checked
        Target("sqrt")


def test_standardised_training_rows_have_mean_zero_and_deviation_one():
    log_views = np.random.default_rng(0).normal(9.0, 2.0, size=100)
    scale = Standardisation.fit(log_views)
    z = scale.apply(log_views)
    assert z.mean() == pytest.approx(0, abs=1e-12)
    assert z.std() == pytest.approx(1)
    np.testing.assert_allclose(scale.undo(z), log_views)


def test_a_constant_target_is_refused_even_where_its_deviation_rounds_above_zero():
    with pytest.raises(UnfitDataError, match="constant target"):
        Standardisation.fit(np.full(7, 0.1))


@pytest.mark.parametrize("log_views", [np.array([]), np.array([1.0, np.nan])])
def test_rows_without_a_finite_target_cannot_set_the_scale(log_views):
    with pytest.raises(UnfitDataError, match="finite"):
        Standardisation.fit(log_views)
