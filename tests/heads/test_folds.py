import re
import subprocess
import sys
from datetime import date

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, reject, settings
from hypothesis import strategies as st
from sklearn.model_selection import KFold, StratifiedKFold, TimeSeriesSplit

from heads import folds
from heads.errors import UnfitDataError
from heads.folds import UNKNOWN_TIME, FoldPlan, duplicates_across_folds, from_table, kfold

CHANNELS = st.lists(st.sampled_from([*"abcdefghijklmnopqrst", ""]), min_size=2, max_size=60)
SECONDS = st.lists(st.one_of(st.integers(-20, 40), st.just(UNKNOWN_TIME)), min_size=8, max_size=60)


def plan_of(*fold_of: int, expanding: bool = False) -> FoldPlan:
    return FoldPlan(fold_of=np.array(fold_of, dtype=np.int32), split="file", seed=None, expanding=expanding)


def ids_of(n_videos: int) -> list[str]:
    return [f"v{row}" for row in range(n_videos)]


def group_plan(channels: list[str], n_folds: int, seed: int) -> FoldPlan:
    """The plan by channel; draws with an empty fold are left out."""
    try:
        return folds.group(channels, ids_of(len(channels)), n_folds, seed)
    except UnfitDataError:
        reject()


def time_plan(seconds: list[int], n_folds: int) -> FoldPlan:
    assume(len(set(seconds) - {UNKNOWN_TIME}) > n_folds)
    return folds.time(np.array(seconds, dtype=np.int64), n_folds)


@given(st.integers(2, 60), st.integers(2, 7), st.integers(0, 99))
@settings(max_examples=25)
def test_the_folds_are_those_of_scikit_learn(n_videos, n_folds, seed):
    if n_folds > n_videos:
        return
    plan = kfold(n_videos, n_folds, seed)
    splits = KFold(n_folds, shuffle=True, random_state=seed).split(np.zeros(n_videos))
    for fold, (train_rows, val_rows) in enumerate(splits):
        np.testing.assert_array_equal(plan.train_rows(fold), train_rows)
        np.testing.assert_array_equal(plan.val_rows(fold), val_rows)


def test_a_row_that_is_never_validated_trains_every_member():
    plan = plan_of(0, -1, 1, 0)
    assert [plan.train_rows(fold).tolist() for fold in range(2)] == [[1, 2], [0, 1, 3]]
    assert [plan.val_rows(fold).tolist() for fold in range(2)] == [[0, 3], [2]]
    assert plan.sizes.tolist() == [2, 1]


@pytest.mark.parametrize("folds", [(), (-1, -1), (0, 0), (0, 2), (0, 1, -2)])
def test_a_plan_with_too_few_empty_or_unknown_folds_is_refused(folds):
    with pytest.raises(UnfitDataError, match="fold"):
        plan_of(*folds)


@pytest.mark.parametrize(("n_videos", "n_folds"), [(10, 1), (2, 3), (0, 2)])
def test_folds_need_at_least_one_row_each(n_videos, n_folds):
    with pytest.raises(UnfitDataError, match="--folds must lie between 2 and the number of rows"):
        kfold(n_videos, n_folds, seed=0)


@pytest.mark.parametrize("fold", [-1, 2])
def test_a_fold_that_the_plan_does_not_have_is_refused(fold):
    with pytest.raises(ValueError, match="folds 0 to 1"):
        plan_of(0, 1).val_rows(fold)


def test_the_digest_tells_ids_and_folds_apart():
    digests = {
        plan_of(0, 1).digest(["a", "b"]),
        plan_of(1, 0).digest(["a", "b"]),
        plan_of(0, 1).digest(["b", "a"]),
        plan_of(0, 1).digest(["a0;1:b", "b"]),
        plan_of(0, 1).digest(["\ud800", "b"]),
    }
    assert len(digests) == 5
    assert plan_of(0, 1).digest(["a", "b"]) in digests


def test_a_digest_needs_one_id_per_row():
    with pytest.raises(ValueError, match="as many ids"):
        plan_of(0, 1).digest(["a"])


def test_digests_of_saved_plans_never_change():
    digest = "ae46dc153aa0114bf71f093ebebd91812b8a27b4b24fadd24cc6ef29b1a66b6d"
    assert kfold(10, 3, seed=42).digest(ids_of(10)) == digest
    assert from_table(np.array([0, 0, 1, 2, 2, 0, 2, 1, 0, 1])).digest(ids_of(10)) == digest


def test_the_digest_tells_an_expanding_plan_apart():
    assert plan_of(-1, 0, 1, expanding=True).digest(ids_of(3)) != plan_of(-1, 0, 1).digest(ids_of(3))


@given(st.integers(1, 12), st.integers(2, 5), st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_strata_are_deciles_that_scikit_learn_spreads_over_the_folds(tens, n_folds, seed):
    assume(tens >= n_folds)
    log_views = np.random.default_rng(seed).normal(size=10 * tens)
    plan = folds.stratified(log_views, n_folds, seed)
    deciles = pd.qcut(log_views, 10, labels=False)
    splits = StratifiedKFold(n_folds, shuffle=True, random_state=seed).split(deciles, deciles)
    for fold, (train_rows, val_rows) in enumerate(splits):
        np.testing.assert_array_equal(plan.train_rows(fold), train_rows)
        np.testing.assert_array_equal(plan.val_rows(fold), val_rows)


@given(st.lists(st.integers(0, 3), min_size=2, max_size=40), st.integers(2, 7))
@settings(max_examples=50, deadline=None)
def test_few_or_tied_targets_still_give_folds_of_one_size(views, n_folds):
    assume(n_folds <= len(views))
    sizes = folds.stratified(np.log1p(views), n_folds, seed=0).sizes
    assert sizes.max() - sizes.min() <= 1
    assert sizes.sum() == len(views)


def test_strata_depend_on_the_order_of_the_views_alone():
    views = np.random.default_rng(0).permutation(200.0 * np.arange(50))
    by_log, by_views = (folds.stratified(target, 3, seed=1).fold_of for target in (np.log1p(views), views))
    np.testing.assert_array_equal(by_log, by_views)


def test_equal_targets_are_ranked_in_file_order():
    tied, ranked = (folds.stratified(target, 3, seed=1).fold_of for target in (np.zeros(50), np.arange(50.0)))
    np.testing.assert_array_equal(tied, ranked)


def test_strata_need_finite_targets():
    with pytest.raises(UnfitDataError, match="finite targets"):
        folds.stratified(np.array([1.0, np.nan, 2.0]), 2, seed=0)


@given(CHANNELS, st.integers(2, 4), st.integers(0, 99))
@settings(max_examples=50, deadline=None)
def test_no_group_is_on_both_sides_and_every_row_is_validated_once(channels, n_folds, seed):
    plan = group_plan(channels, n_folds, seed)
    names = np.array([channel or f"alone {row}" for row, channel in enumerate(channels)])
    for fold in range(n_folds):
        assert not set(names[plan.train_rows(fold)]) & set(names[plan.val_rows(fold)])
    assert plan.sizes.sum() == len(channels)


@given(CHANNELS, CHANNELS, st.integers(2, 4), st.integers(0, 99))
@settings(max_examples=50, deadline=None)
def test_appended_rows_leave_the_fold_of_every_group_as_it_was(channels, appended, n_folds, seed):
    before = group_plan(channels, n_folds, seed)
    after = group_plan(channels + appended, n_folds, seed)
    np.testing.assert_array_equal(after.fold_of[: len(channels)], before.fold_of)


def test_the_fold_of_a_group_is_the_same_on_every_machine():
    plan = folds.group(["Käse", "", "a", "\ud800", "a"], ids_of(5), n_folds=3, seed=5)
    assert plan.fold_of.tolist() == [0, 0, 1, 2, 1]


def test_groups_spread_evenly_and_anew_with_every_seed():
    channels = [f"channel {index}" for index in range(3000)]
    first, second = (folds.group(channels, ids_of(3000), 3, seed) for seed in (0, 1))
    # Binomial sizes: 1000 ± 26; two independent plans agree on a third of the rows, 1000 ± 26 again.
    assert np.abs(first.sizes - 1000).max() < 130
    assert abs(int((first.fold_of == second.fold_of).sum()) - 1000) < 130


def test_a_video_without_a_group_is_not_in_the_group_that_its_id_names():
    ids = ids_of(64)
    named, unnamed = (folds.group(channels, ids, 2, seed=0).fold_of for channels in (ids, [""] * 64))
    assert (named != unnamed).any()


def test_more_folds_than_groups_name_the_largest_group_and_the_most_folds_and_no_other_seed():
    with pytest.raises(UnfitDataError) as refused:
        folds.group(["a", "a", "a", ""], ids_of(4), n_folds=3, seed=0)
    said = str(refused.value)
    assert "2 groups, the largest with 3 of 4 rows: at most 2 folds can hold one each; use --" in said
    assert "--seed" not in said


@given(st.integers(1, 12), st.integers(2, 12), st.integers(0, 1000))
@settings(max_examples=200, deadline=None)
def test_the_number_of_folds_that_is_advised_is_the_largest_that_fits(n_groups, n_folds, seed):
    ids = ids_of(12)
    groups = [f"channel {row % n_groups}" for row in range(12)]

    def refusal(wanted):
        try:
            folds.group(groups, ids, wanted, seed)
        except UnfitDataError as error:
            return str(error)
        return ""

    said = refusal(n_folds)
    fitting = [n for n in range(2, n_folds) if not refusal(n)]
    if said:
        advised = re.search(r"use --folds (\d+)", said)
        assert (advised and int(advised[1])) == (fitting[-1] if fitting else None)
        assert ("--seed" in said, said.endswith("--split kfold")) == (n_groups >= n_folds, True)


def test_a_plan_by_group_needs_one_id_per_video():
    with pytest.raises(ValueError, match="3 groups and 2 ids"):
        folds.group(["a", "b", "c"], ["x", "y"], n_folds=2, seed=0)


@given(SECONDS, st.integers(2, 5))
@settings(max_examples=100, deadline=None)
def test_an_expanding_window_never_trains_on_the_future(seconds, n_folds):
    plan = time_plan(seconds, n_folds)
    times = np.array(seconds, dtype=np.int64)
    unknown = np.flatnonzero(times == UNKNOWN_TIME)
    for fold in range(n_folds):
        train_rows, val_rows = plan.train_rows(fold), plan.val_rows(fold)
        assert set(unknown) <= set(train_rows)
        known = np.setdiff1d(train_rows, unknown)
        np.testing.assert_array_equal(known, np.flatnonzero((times < times[val_rows].min()) & (times != UNKNOWN_TIME)))
        assert known.size


@given(SECONDS, st.integers(2, 5))
@settings(max_examples=50, deadline=None)
def test_an_expanding_window_validates_each_row_once_at_most_and_the_newest_last(seconds, n_folds):
    plan = time_plan(seconds, n_folds)
    validated = np.concatenate([plan.val_rows(fold) for fold in range(n_folds)])
    assert len(np.unique(validated)) == len(validated)
    assert plan.n_folds == n_folds
    assert plan.fold_of[np.argmax(seconds)] == n_folds - 1


@given(st.integers(3, 60), st.integers(2, 6), st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_without_ties_an_expanding_window_is_that_of_scikit_learn(n_videos, n_folds, seed):
    assume(n_folds < n_videos)
    seconds = np.random.default_rng(seed).permutation(n_videos)
    plan = folds.time(seconds, n_folds)
    oldest_first = np.argsort(seconds)
    for fold, (older, block) in enumerate(TimeSeriesSplit(n_folds).split(oldest_first)):
        assert set(plan.train_rows(fold)) == set(oldest_first[older])
        assert set(plan.val_rows(fold)) == set(oldest_first[block])


def test_a_crowded_moment_takes_no_fold_from_the_others():
    assert folds.time(np.array([1, 2, 3, 4, 4, 4, 4, 4, 4, 4]), n_folds=3).fold_of.tolist() == [-1, 0, 1] + 7 * [2]
    assert folds.time(np.array([1, 1, 1, 1, 1, 1, 1, 2, 3, 4]), n_folds=3).fold_of.tolist() == 7 * [-1] + [0, 1, 2]


@pytest.mark.parametrize(("seconds", "n_folds"), [([1, 2, 3], 1), ([1, 1, 2, 2], 2), ([1, 2, UNKNOWN_TIME], 2)])
def test_an_expanding_window_needs_a_moment_for_every_block(seconds, n_folds):
    with pytest.raises(UnfitDataError, match=r"less than the number of different times, [23]"):
        folds.time(np.array(seconds), n_folds)


def test_an_unknown_time_is_how_datetimes_spell_it():
    published = np.array([date(2024, 1, 1), None], dtype="datetime64[s]")
    assert published.astype(np.int64)[1] == UNKNOWN_TIME


def test_an_expanding_plan_needs_rows_that_only_train():
    with pytest.raises(UnfitDataError, match="fold 0 of an expanding plan trains on the videos of fold -1"):
        plan_of(0, 1, expanding=True)


def test_a_member_of_an_expanding_plan_trains_on_lower_folds_alone():
    plan = plan_of(1, -1, 0, 2, 0, expanding=True)
    assert [plan.train_rows(fold).tolist() for fold in range(3)] == [[1], [1, 2, 4], [0, 1, 2, 4]]


@pytest.mark.parametrize("dtype", [np.int8, np.int64, np.uint16])
def test_a_plan_can_be_given_in_a_table(dtype):
    plan = from_table(np.array([1, 0, 1], dtype=dtype))
    assert (plan.fold_of.tolist(), plan.split, plan.seed, plan.expanding) == ([1, 0, 1], "file", None, False)


def test_a_saved_plan_is_read_back_from_its_table():
    plan = folds.time(np.array([30, 10, UNKNOWN_TIME, 20]), n_folds=2)
    read = from_table(plan.fold_of.astype(np.int64), split=plan.split, seed=plan.seed, expanding=plan.expanding)
    assert read.digest(ids_of(4)) == plan.digest(ids_of(4))


@pytest.mark.parametrize("fold_of", [[1, 2], [0, 2], [0, 1, -2], [0, 1, 2**40], [0, 1, 2**32]])
def test_a_table_must_number_its_folds_without_a_gap(fold_of):
    with pytest.raises(UnfitDataError, match="without a gap, or -1: renumber"):
        from_table(np.array(fold_of))


def slow_duplicates(digests: np.ndarray, plan: FoldPlan, ignore: np.ndarray) -> list[tuple[int, ...]]:
    """Compares every training row with every validation row of its fold."""
    counted = [row for row in range(len(digests)) if any(digests[row]) and not ignore[row]]
    torn = set()
    for fold in range(plan.n_folds):
        for train_row in set(plan.train_rows(fold).tolist()) & set(counted):
            for val_row in set(plan.val_rows(fold).tolist()) & set(counted):
                if (digests[train_row] == digests[val_row]).all():
                    torn.add(tuple(row for row in counted if (digests[row] == digests[val_row]).all()))
    return sorted(torn)


@given(st.integers(3, 30), st.booleans(), st.integers(0, 10_000))
@settings(max_examples=60, deadline=None)
def test_duplicates_across_folds_are_what_every_pair_of_rows_says(n_videos, expanding, seed):
    rng = np.random.default_rng(seed)
    # Digests that differ in their first or last byte, and some that are all zeros.
    digests = np.zeros((n_videos, 16), dtype=np.uint8)
    digests[:, [0, 15]] = rng.integers(0, 3, size=(n_videos, 2))
    plan = plan_of(*rng.permutation([-1, 0, 1, *rng.integers(-1, 2, size=n_videos - 3)]), expanding=expanding)
    ignore = rng.random(n_videos) < 0.2
    expected = slow_duplicates(digests, plan, ignore)
    found = duplicates_across_folds(digests, plan, ignore)
    assert found.n_groups == len(expected)
    assert list(found.first) == expected[: folds.EXAMPLES]
    assert duplicates_across_folds(digests, plan) == duplicates_across_folds(digests, plan, np.zeros_like(ignore))


def test_rows_of_one_fold_or_without_a_digest_are_no_duplicates_across_folds():
    digests = np.array([[1], [1], [0], [0], [2], [2]], dtype=np.uint8).repeat(16, axis=1)
    assert duplicates_across_folds(digests, plan_of(0, 0, 0, 1, -1, -1)).n_groups == 0
    assert duplicates_across_folds(np.zeros((2, 16), dtype=np.uint8), plan_of(0, 1)).first == ()


def test_digests_and_plan_must_be_of_the_same_videos():
    with pytest.raises(ValueError, match="a plan for 2 videos needs as many digests, given 3"):
        duplicates_across_folds(np.ones((3, 16), dtype=np.uint8), plan_of(0, 1))


def test_a_saved_plan_can_be_used_without_scikit_learn():
    code = "import sys, heads.folds; sys.exit(bool({'sklearn', 'scipy', 'torch'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
