import json
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heads import intervals
from heads.errors import UnfitDataError
from heads.intervals import MIN_BIN_ROWS, Band, Intervals, calibrate, coverage

LEVEL = st.sampled_from([0.1, 0.5, 0.8, 0.9, 0.95])


def offsets(found: Intervals) -> list[tuple[float, float]]:
    return [(band.lower_offset, band.upper_offset) for band in found.pooled]


def draw_skewed(n_videos: int, seed: int = 0) -> np.ndarray:
    """Residuals with a heavy upper tail, as views have, around a mean that is not 0."""
    rng = np.random.default_rng(seed)
    return rng.gamma(1.5, 1.0, size=n_videos) + 0.3 * rng.standard_t(5, size=n_videos) - 1.0


def folds(n_videos: int, n_folds: int = 3) -> np.ndarray:
    return np.arange(n_videos, dtype=np.int32) % n_folds


@pytest.mark.parametrize(
    ("n_rows", "level", "lowest", "highest"),
    [
        (1, 0.9, 1, 1),
        (18, 0.9, 1, 18),  # 19 * 0.05 = 0.95 rows: too few, so the extremes
        (19, 0.9, 1, 19),  # 20 * 0.05 = 1
        (38, 0.9, 1, 38),  # 39 * 0.05 = 1.95
        (39, 0.9, 2, 38),  # 40 * 0.05 = 2
        (99, 0.9, 5, 95),
        (3, 0.5, 1, 3),  # 4 * 0.25 = 1
        (7, 0.5, 2, 6),
        (9, 0.5, 2, 8),  # 10 * 0.25 = 2.5
    ],
)
def test_the_ends_are_these_ranks(n_rows, level, lowest, highest):
    ranked = np.random.default_rng(0).permutation(np.arange(1.0, n_rows + 1))
    assert offsets(calibrate(ranked, [level])) == [(lowest, highest)]


@pytest.mark.parametrize(
    ("n_rows", "level", "rank"), [(1, 0.9, 1), (8, 0.9, 8), (9, 0.9, 9), (19, 0.9, 18), (20, 0.9, 19), (4, 0.5, 3)]
)
def test_a_symmetric_band_reaches_to_this_rank_by_size(n_rows, level, rank):
    signs = np.where(np.arange(n_rows) % 2, -1.0, 1.0)
    assert offsets(calibrate(signs * np.arange(1, n_rows + 1), [level], symmetric=True)) == [(-rank, rank)]


@given(st.integers(39, 80), LEVEL)
@settings(max_examples=40, deadline=None)
def test_each_row_left_out_in_turn_the_level_is_kept_but_not_by_more_than_two_rows(n_rows, level):
    """The promise for few rows, by enumeration: a new row is equally likely to be any of n + 1."""
    residuals = np.random.default_rng(n_rows).normal(size=n_rows + 1)
    for symmetric in (False, True):
        kept = 0
        for row, residual in enumerate(residuals):
            (band,) = calibrate(np.delete(residuals, row), [level], symmetric=symmetric).pooled
            kept += band.lower_offset <= residual <= band.upper_offset
        assert level * (n_rows + 1) - 1e-9 <= kept < level * (n_rows + 1) + 2


@given(st.integers(0, 10_000), st.floats(-20, 20))
@settings(max_examples=25, deadline=None)
def test_a_constant_error_of_all_predictions_does_not_move_the_ends(seed, error):
    residuals, log_pred = draw_skewed(80, seed), np.linspace(5, 12, 4)
    before = calibrate(residuals).apply(log_pred)
    after = calibrate(residuals - error).apply(log_pred + error)
    np.testing.assert_allclose(after, before, atol=1e-9)


def test_a_higher_level_holds_the_lower_one():
    half, most = calibrate(draw_skewed(200)).pooled
    assert most.lower_offset < half.lower_offset < half.upper_offset < most.upper_offset


@pytest.mark.parametrize("symmetric", [False, True])
def test_coverage_keeps_to_its_level_on_new_rows(symmetric):
    found = calibrate(draw_skewed(20_000, seed=1), symmetric=symmetric)
    new = draw_skewed(100_000, seed=2)
    lower, upper = found.apply(np.zeros(100_000))
    np.testing.assert_allclose(((lower <= new) & (new <= upper)).mean(axis=1), found.levels, atol=0.01)


@pytest.mark.parametrize("symmetric", [False, True])
def test_honest_coverage_is_within_a_point_of_its_level(symmetric):
    half, most = coverage(draw_skewed(6000), folds(6000), symmetric=symmetric)
    assert (half.level, most.level) == (0.5, 0.9)
    assert half.overall.share == pytest.approx(0.5, abs=0.01)
    assert most.overall.share == pytest.approx(0.9, abs=0.01)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("level", [0.5, 0.8, 0.9])
def test_the_bands_are_those_of_mapie(level, symmetric):
    from mapie.conformity_scores import AbsoluteConformityScore
    from mapie.regression import SplitConformalRegressor
    from sklearn.dummy import DummyRegressor

    for n_rows in (41, 250, 1003):
        residuals = draw_skewed(n_rows, seed=n_rows)
        rows = np.zeros((n_rows, 1))
        nothing = DummyRegressor(strategy="constant", constant=0.0).fit(rows, residuals)
        rival = SplitConformalRegressor(nothing, level, AbsoluteConformityScore(sym=symmetric), prefit=True)
        _, ends = rival.conformalize(rows, residuals).predict_interval(rows[:1])
        (band,) = calibrate(residuals, [level], symmetric=symmetric).pooled
        assert (band.lower_offset, band.upper_offset) == tuple(ends[0, :, 0])


@given(st.integers(0, 10_000), st.floats(-1e6, 1e6))
@settings(max_examples=15, deadline=None)
def test_the_bands_of_a_fold_do_not_depend_on_its_own_rows(seed, anything):
    residuals, fold_of = draw_skewed(90, seed), folds(90)
    changed = np.where(fold_of == 1, anything, residuals)
    used, used_changed = bands_used(residuals, fold_of), bands_used(changed, fold_of)
    assert used[1] == used_changed[1]
    assert used[0] != used_changed[0]


def bands_used(residuals: np.ndarray, fold_of: np.ndarray) -> list[list[tuple[float, float]]]:
    """The offsets that `coverage` counts with, fold by fold."""
    used = []

    def spy(*args, **options):
        found = calibrate(*args, **options)
        used.append(offsets(found))
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(intervals, "calibrate", spy)
        coverage(residuals, fold_of)
    return used


@pytest.mark.parametrize("symmetric", [False, True])
def test_coverage_is_what_counting_row_by_row_gives(symmetric):
    residuals, fold_of, bin_of = draw_skewed(300), folds(300), np.arange(300) // 150
    fold_of[::10] = -1
    residuals[::10] = np.nan
    (measured,) = coverage(residuals, fold_of, [0.9], symmetric=symmetric, bin_of=bin_of)
    inside = np.zeros(300, dtype=bool)
    for row in np.flatnonzero(fold_of >= 0):
        others = residuals[(fold_of >= 0) & (fold_of != fold_of[row])]
        (band,) = calibrate(others, [0.9], symmetric=symmetric).pooled
        inside[row] = band.lower_offset <= residuals[row] <= band.upper_offset
    assert measured.overall.rows == 270
    assert measured.overall.share == pytest.approx(inside[fold_of >= 0].mean())
    for by_group, group_of in ((measured.by_fold, fold_of), (measured.by_bin, bin_of)):
        assert set(by_group) == set(np.unique(group_of[fold_of >= 0]).tolist())
        for group, tally in by_group.items():
            own = inside[(fold_of >= 0) & (group_of == group)]
            assert (tally.rows, tally.share) == (len(own), pytest.approx(own.mean()))
    assert coverage(residuals, fold_of, [0.9])[0].by_bin == {}


def test_bands_per_bin_keep_their_level_in_a_calm_and_in_a_wild_bin():
    bin_of = np.arange(6000) % 2
    residuals = draw_skewed(6000) * np.where(bin_of == 0, 0.5, 2.0)
    (pooled,) = coverage(residuals, folds(6000), [0.9], bin_of=bin_of)
    (apart,) = coverage(residuals, folds(6000), [0.9], bin_of=bin_of, per_bin=True)
    assert pooled.by_bin[0].share > 0.95
    assert pooled.by_bin[1].share < 0.85
    for tally in apart.by_bin.values():
        assert tally.rows == 3000
        assert tally.share == pytest.approx(0.9, abs=0.015)


@pytest.mark.parametrize("symmetric", [False, True])
def test_a_bin_with_too_few_rows_or_none_uses_the_pooled_bands(symmetric):
    residuals = draw_skewed(2 * MIN_BIN_ROWS - 1)
    bin_of = np.where(np.arange(len(residuals)) < MIN_BIN_ROWS, 4, -1)
    found = calibrate(residuals, symmetric=symmetric, bin_of=bin_of)
    assert list(found.by_bin) == [4]
    assert found.by_bin[4] == calibrate(residuals[:MIN_BIN_ROWS], symmetric=symmetric).pooled
    log_pred = np.array([3.0, 5.0, 7.0])
    lower, upper = found.apply(log_pred, np.array([-1, 4, 9]))
    for video, bands in enumerate((found.pooled, found.by_bin[4], found.pooled)):
        ends = [band.apply(log_pred[[video]]) for band in bands]
        np.testing.assert_array_equal(lower[:, video], [end[0][0] for end in ends])
        np.testing.assert_array_equal(upper[:, video], [end[1][0] for end in ends])


def test_intervals_survive_json():
    bin_of = np.arange(1500) % 2 - 1
    found = calibrate(draw_skewed(1500), bin_of=bin_of)
    assert list(found.by_bin) == [-1, 0]
    assert Intervals.from_dict(found.to_dict()) == found
    assert Intervals.from_dict(json.loads(json.dumps(found.to_dict()))) == found


def test_coverage_fits_into_json():
    (measured,) = coverage(np.zeros(4), folds(4, 2), [0.9], bin_of=np.array([0, 0, 0, 1]))
    assert json.loads(json.dumps(asdict(measured))) == {
        "level": 0.9,
        "overall": {"rows": 4, "share": 1.0},
        "by_fold": {"0": {"rows": 2, "share": 1.0}, "1": {"rows": 2, "share": 1.0}},
        "by_bin": {"0": {"rows": 3, "share": 1.0}, "1": {"rows": 1, "share": 1.0}},
    }


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"pooled": []},
        {"pooled": [], "by_bin": {}},
        {"pooled": [{"level": 0.9}], "by_bin": {}},
        {"pooled": [{"level": 0.9, "lower_offset": 2.0, "upper_offset": 1.0}], "by_bin": {}},
        {"pooled": [{"level": 0.9, "lower_offset": 0.0, "upper_offset": float("inf")}], "by_bin": {}},
        {"pooled": [{"level": 1.0, "lower_offset": 0.0, "upper_offset": 1.0}], "by_bin": {}},
        {"pooled": [{"level": 0.9, "lower_offset": 0.0, "upper_offset": 1.0}], "by_bin": {"3": []}},
    ],
)
def test_a_damaged_description_is_refused(fields):
    with pytest.raises(ValueError, match=r"must|need"):
        Intervals.from_dict(fields)


@pytest.mark.parametrize("level", [-0.1, 0.0, 1.0, 90.0])
def test_a_level_is_a_share(level):
    with pytest.raises(ValueError, match=r"such as 0\.9 for 90 %"):
        calibrate(np.arange(30.0), [level])


@pytest.mark.parametrize("residuals", [np.zeros(0), np.array([1.0, np.nan]), np.array([np.inf])])
def test_residuals_must_be_there_and_finite(residuals):
    with pytest.raises(UnfitDataError, match="finite residuals"):
        calibrate(residuals)


def test_what_coverage_cannot_measure_is_refused():
    with pytest.raises(UnfitDataError, match="at least 2 folds, given 1"):
        coverage(np.zeros(3), np.array([0, 0, -1], dtype=np.int32))
    with pytest.raises(ValueError, match="give bin_of"):
        coverage(np.zeros(4), folds(4), per_bin=True)


def test_bands_of_bins_need_the_bins():
    band = Band(level=0.9, lower_offset=-1.0, upper_offset=1.0)
    with pytest.raises(ValueError, match="bin of every video"):
        Intervals(pooled=(band,), by_bin={0: (band,)}).apply(np.zeros(2))
