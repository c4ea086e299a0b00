"""The bootstrap against a slow version, and against what is known of a mean."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heads import bootstrap
from heads.bootstrap import SEED, MeanInterval, mean_interval
from heads.errors import UnfitDataError


def slow(values, cluster_of, resamples):
    """Draw clusters, write down every row of each, take the mean."""
    names = np.unique(cluster_of)
    rng = np.random.default_rng(SEED)
    means = []
    for _ in range(resamples):
        rows = [values[cluster_of == name] for name in names[rng.integers(len(names), size=len(names))]]
        means.append(np.concatenate(rows).mean())
    return np.quantile(means, [0.025, 0.975])


@pytest.mark.parametrize("n_clusters", [2, 7, 40])
def test_whole_clusters_are_drawn_as_a_slow_version_does(monkeypatch, n_clusters):
    monkeypatch.setattr(bootstrap, "RESAMPLES", 200)
    rng = np.random.default_rng(n_clusters)
    values, cluster_of = rng.normal(size=90), rng.permutation(np.arange(90) % n_clusters)
    found = mean_interval(values, cluster_of)
    np.testing.assert_allclose([found.lower, found.upper], slow(values, cluster_of, 200))
    assert (found.mean, found.clusters) == (pytest.approx(values.mean()), n_clusters)


def test_a_row_alone_is_a_cluster_of_its_own():
    values = np.random.default_rng(0).normal(size=50)
    assert mean_interval(values) == mean_interval(values, np.arange(50))


def test_over_rows_the_interval_is_that_of_the_normal_distribution():
    values = np.random.default_rng(1).normal(0.3, 2.0, size=4000)
    found = mean_interval(values)
    half = 1.96 * values.std() / np.sqrt(4000)
    np.testing.assert_allclose([found.lower, found.upper], [values.mean() - half, values.mean() + half], atol=0.01)


def test_rows_that_repeat_their_channel_tell_no_more_than_the_channel():
    of_channel = np.random.default_rng(2).normal(size=30)
    rows, channel = np.repeat(of_channel, 100), np.repeat(np.arange(30), 100)
    over_channels, once = mean_interval(rows, channel), mean_interval(of_channel)
    np.testing.assert_allclose([over_channels.lower, over_channels.upper], [once.lower, once.upper])
    assert mean_interval(rows).upper - mean_interval(rows).lower < 0.2 * (once.upper - once.lower)


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=30), st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_exchanging_the_two_models_turns_the_interval_round(numbers, seed):
    values = np.array(numbers)
    cluster_of = np.append([0, 1], np.random.default_rng(seed).integers(5, size=len(values) - 2))
    one, other = mean_interval(values, cluster_of), mean_interval(-values, cluster_of)
    np.testing.assert_allclose([other.lower, other.upper], [-one.upper, -one.lower], atol=1e-12)
    assert other.sign == -one.sign


@pytest.mark.parametrize(("lower", "upper", "sign"), [(0.1, 0.2, 1), (-0.2, -0.1, -1), (-0.1, 0.2, 0), (0.0, 0.2, 0)])
def test_the_sign_is_known_where_the_interval_leaves_zero_out(lower, upper, sign):
    assert MeanInterval(mean=0.0, lower=lower, upper=upper, clusters=9).sign == sign


@pytest.mark.parametrize(
    ("values", "cluster_of"),
    [([1.0], None), ([], None), ([1.0, 2.0], [3, 3]), ([1.0, np.nan], None)],
    ids=["one row", "no row", "one cluster", "a row without a prediction"],
)
def test_nothing_to_draw_from_is_refused(values, cluster_of):
    with pytest.raises(UnfitDataError):
        mean_interval(np.array(values), None if cluster_of is None else np.array(cluster_of))
