import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr
from sklearn.metrics import mean_squared_log_error

from heads import metrics
from heads.errors import UnfitDataError


def test_the_msle_is_scikit_learns():
    rng = np.random.default_rng(0)
    views, predicted = rng.integers(0, 10**6, size=(2, 50))
    assert metrics.msle(np.log1p(views), np.log1p(predicted)) == pytest.approx(mean_squared_log_error(views, predicted))


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=3, max_size=30))
@settings(max_examples=40)
def test_the_rank_correlation_is_scipys_with_ties(pairs):
    log_views, log_pred = np.array(pairs, dtype=np.float64).T
    if np.ptp(log_views) > 0 and np.ptp(log_pred) > 0:
        assert metrics.spearman(log_views, log_pred) == pytest.approx(spearmanr(log_views, log_pred).statistic)
    else:
        assert metrics.spearman(log_views, log_pred) == 0


def test_a_score_holds_every_metric():
    log_views, log_pred = np.log1p([0.0, 9.0, 99.0]), np.log1p([0.0, 19.0, 999.0])
    score = metrics.score(log_views, log_pred)
    assert score["msle"] == pytest.approx((np.log(2) ** 2 + np.log(10) ** 2) / 3)
    assert score["rmse"] == pytest.approx(np.sqrt(score["msle"]))
    assert score["mae"] == pytest.approx((np.log(2) + np.log(10)) / 3)
    assert (score["spearman"], score["share_within_factor_2"]) == (pytest.approx(1), pytest.approx(2 / 3))


def test_twice_as_many_is_within_a_factor_of_two():
    assert metrics.share_within_factor(np.log([8.0, 8.0]), np.log([16.0, 4.0]), 2.0) == 1.0


def test_no_rows_have_no_score():
    with pytest.raises(UnfitDataError, match="at least one row"):
        metrics.score(np.array([]), np.array([]))
