"""The fold plan that a run asks for, the file that may give it, and the warning where equal videos are torn apart."""

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import KFold

from features.config import DatasetConfig
from features.errors import DataError, UsageError
from features.progress import Silent
from features.videos import VideoTable, read_videos
from heads.errors import UnfitDataError
from heads.folds import FoldPlan, from_table
from heads.inputs import Block, Inputs
from pipeline.config import TrainHeadsConfig
from pipeline.plans import make_plan, read_folds, tell_duplicates, tell_near_duplicates

N_VIDEOS = 24
LOG_VIEWS = np.random.default_rng(0).permutation(np.arange(float(N_VIDEOS)))
CONFIG = TrainHeadsConfig(folds=4, seed=5)


def write_table(path: Path, *rows: tuple[str, ...]) -> Path:
    with path.open("w", newline="", encoding="utf-8", errors="surrogatepass") as file:
        csv.writer(file).writerows(rows)
    return path


def read_table(folder: Path, titles: list[str], channels: list[str], dates: list[str]) -> VideoTable:
    rows = [(f"v{row}", *cells, "1") for row, cells in enumerate(zip(titles, channels, dates, strict=True))]
    write_table(folder / "train_val.csv", ("id", "title", "channel", "date", "views"), *rows)
    return read_videos(DatasetConfig(data=folder), "train_val")


@pytest.fixture
def videos(tmp_path: Path) -> VideoTable:
    """Newest first, two videos a day; every sixth without a date, every fourth without a channel."""
    dates = ["" if row % 6 == 5 else f"2024-05-{30 - row // 2}" for row in range(N_VIDEOS)]
    channels = ["" if row % 4 == 3 else f"channel {row % 11}" for row in range(N_VIDEOS)]
    return read_table(tmp_path, [f"title {row}" for row in range(N_VIDEOS)], channels, dates)


@pytest.fixture
def fold_file(tmp_path: Path):
    """Writes a table of folds."""

    def fold_file(*rows: tuple[str, ...], header: tuple[str, ...] = ("id", "fold")) -> Path:
        return write_table(tmp_path / "folds.csv", header, *rows)

    return fold_file


def plan_from(path: Path, videos: VideoTable) -> FoldPlan:
    config = replace(CONFIG, split="file", fold_file=path)
    return make_plan(config, "file", videos, np.zeros(len(videos)))


def everyone(videos: VideoTable) -> list[tuple[str, str]]:
    return [(id_, str(row % 3)) for row, id_ in enumerate(videos.ids)]


def test_random_folds_are_those_of_scikit_learn_for_the_seed_and_number_of_the_run(videos):
    plan = make_plan(CONFIG, "kfold", videos, LOG_VIEWS)
    splits = KFold(4, shuffle=True, random_state=5).split(np.zeros(N_VIDEOS))
    assert [plan.val_rows(fold).tolist() for fold in range(plan.n_folds)] == [rows.tolist() for _, rows in splits]


def test_stratified_folds_share_each_run_of_neighbours_by_views(videos):
    plan = make_plan(CONFIG, "stratified", videos, LOG_VIEWS)
    least_first = plan.fold_of[np.argsort(LOG_VIEWS)]
    assert [sorted(four) for four in least_first.reshape(-1, 4).tolist()] == [[0, 1, 2, 3]] * 6


def test_a_channel_is_in_one_fold_and_videos_without_one_are_in_several(videos):
    plan = make_plan(CONFIG, "group", videos, LOG_VIEWS)
    folds_of = {name: {int(plan.fold_of[row]) for row, own in enumerate(videos.channel) if own == name}
                for name in set(videos.channel)}  # fmt: skip
    assert len(folds_of.pop("")) > 1
    assert [len(folds) for folds in folds_of.values()] == [1] * 11
    assert plan.n_folds == 4


def test_folds_by_time_validate_on_the_future_of_their_training_rows_and_never_on_undated_videos(videos):
    plan = make_plan(CONFIG, "time", videos, LOG_VIEWS)
    undated = np.flatnonzero(np.isnat(videos.published))
    assert (plan.n_folds, len(undated)) == (4, 4)
    for fold in range(4):
        train, val = plan.train_rows(fold), plan.val_rows(fold)
        assert set(undated) <= set(train)
        assert videos.published[np.setdiff1d(train, undated)].max() < videos.published[val].min()
    assert 0 in plan.val_rows(3)


@pytest.mark.parametrize(("split", "moves"), [("kfold", True), ("stratified", True), ("group", True), ("time", False)])
def test_another_seed_draws_other_folds_where_folds_are_drawn(videos, split, moves):
    first, second = (make_plan(replace(CONFIG, seed=seed), split, videos, LOG_VIEWS).fold_of for seed in (5, 6))
    assert bool((first != second).any()) == moves


def test_more_folds_than_videos_are_refused(videos):
    with pytest.raises(UnfitDataError, match="--folds must lie between 2 and the number of rows, 24; given 25"):
        make_plan(replace(CONFIG, folds=25), "kfold", videos, LOG_VIEWS)


# A file of folds


@settings(max_examples=40, deadline=None, derandomize=True)
@given(data=st.data())
def test_a_file_in_any_order_with_other_videos_among_them_gives_each_video_its_fold(tmp_path_factory, data):
    ids = data.draw(st.lists(st.text(st.characters(codec="utf-8"), min_size=1, max_size=6), unique=True, min_size=1))
    fold_of = {id_: data.draw(st.integers(-1, 3)) for id_ in ids}
    lines = data.draw(st.permutations(ids))
    ours = data.draw(st.permutations(ids))[: data.draw(st.integers(1, len(ids)))]
    path = tmp_path_factory.mktemp("folds") / "folds.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, quoting=csv.QUOTE_ALL)
        table.writerow(["fold", "note", "id"])
        table.writerows([f" {fold_of[id_]} ", "x", id_] for id_ in lines)
    assert read_folds(path, ours).tolist() == [fold_of[id_] for id_ in ours]


def test_a_file_decides_the_number_of_folds_and_who_only_trains(videos, fold_file):
    rows = [(id_, str(row % 2 if row < 20 else -1)) for row, id_ in enumerate(videos.ids)]
    plan = plan_from(fold_file(*rows), videos)
    assert (plan.n_folds, plan.split, plan.seed, plan.expanding) == (2, "file", None, False)
    assert plan.train_rows(0).tolist() == [*range(1, 20, 2), 20, 21, 22, 23]


def test_a_saved_plan_can_be_given_back_as_a_file(videos, fold_file):
    plan = make_plan(CONFIG, "group", videos, LOG_VIEWS)
    again = plan_from(fold_file(*zip(videos.ids, map(str, plan.fold_of.tolist()), strict=True)), videos)
    assert again.digest(videos.ids) == plan.digest(videos.ids)


def test_videos_without_a_fold_are_counted_and_the_first_three_named(videos, fold_file):
    path = fold_file(*everyone(videos)[:-5])
    with pytest.raises(DataError) as refused:
        plan_from(path, videos)
    assert str(refused.value) == f"{path} must give every video a fold, however 5 have none: 'v19', 'v20', 'v21'"


def test_an_id_that_occurs_again_is_refused_with_its_line_even_where_the_folds_agree(videos, fold_file):
    path = fold_file(*everyone(videos), ("v3", "0"))
    with pytest.raises(DataError) as refused:
        plan_from(path, videos)
    assert str(refused.value) == f"{path}, line 26, 'v3': the id occurs again"


@pytest.mark.parametrize("cell", ["", "1.0", "one", "--1", "-", "1e0", "²", "0x1", "1_0", "+1", "nan"])
def test_a_fold_that_is_no_whole_number_is_refused_with_its_line(videos, fold_file, cell):
    path = fold_file(("v0", "0"), ("v1", cell))
    with pytest.raises(DataError) as refused:
        plan_from(path, videos)
    assert str(refused.value) == f"{path}, line 3, 'v1': a fold is a whole number, however: {cell!r}"


@pytest.mark.parametrize("cell", ["2147483648", "-2147483649", "4294967296", "9" * 30, "9" * 5000])
def test_a_fold_beyond_every_count_is_refused_like_any_other_gap(videos, fold_file, cell):
    path = fold_file(*everyone(videos)[:-1], ("v23", cell))
    with pytest.raises((DataError, UnfitDataError), match="fold"):
        plan_from(path, videos)


@pytest.mark.parametrize("fold", ["4", "-2"])
def test_a_gap_in_the_numbers_of_the_folds_is_refused(videos, fold_file, fold):
    with pytest.raises(UnfitDataError, match="without a gap, or -1"):
        plan_from(fold_file(*everyone(videos)[:-1], ("v23", fold)), videos)


@pytest.mark.parametrize("header", [("id", "split"), ("video", "fold"), ("ID", "Fold")])
def test_a_table_of_other_columns_is_refused_with_their_names(videos, fold_file, header):
    path = fold_file(*everyone(videos), header=header)
    with pytest.raises(DataError, match=f"must have the columns 'id' and 'fold', however .*'{header[0]}'"):
        plan_from(path, videos)


def test_a_file_that_is_not_there_is_named(videos, tmp_path):
    with pytest.raises(DataError, match=r"nowhere\.csv does not exist: --fold-file names it, relative"):
        plan_from(tmp_path / "nowhere.csv", videos)


@pytest.mark.parametrize(("split", "path"), [("file", None), ("kfold", "folds.csv"), ("time", "folds.csv")])
def test_a_file_of_folds_and_the_split_by_file_belong_together(videos, split, path):
    config = replace(CONFIG, split=split, fold_file=path and Path(path))
    with pytest.raises(UsageError, match="belong together"):
        make_plan(config, split, videos, LOG_VIEWS)


def test_another_split_than_that_of_the_run_is_made_as_if_the_run_had_asked_for_it(videos):
    expected = make_plan(replace(CONFIG, split="group"), "group", videos, LOG_VIEWS)
    aside = make_plan(replace(CONFIG, split="file"), "group", videos, LOG_VIEWS)
    assert aside.digest(videos.ids) == expected.digest(videos.ids)


# Equal videos on both sides of a fold


class Told(Silent):
    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, text: str) -> None:
        self.warnings.append(text)


def halves(n_videos: int) -> FoldPlan:
    """The first half of the rows in fold 0, the others in fold 1."""
    return from_table(np.arange(n_videos) * 2 // n_videos)


def titled(folder: Path, *titles: str) -> VideoTable:
    return read_table(folder, list(titles), ["c"] * len(titles), ["2024-01-01"] * len(titles))


def test_titles_and_thumbnails_on_both_sides_of_a_fold_are_told_with_who_has_them(tmp_path):
    videos = titled(tmp_path, "one", "Vlog", "  ", " two", "two ", "Vlog", "", "vlog")
    thumbnails = np.repeat(np.array([[1], [2], [0], [4], [2], [6], [0], [2]], dtype=np.uint8), 16, axis=1)
    told = Told()
    assert tell_duplicates(halves(8), videos, thumbnails, told) == {"title": 2, "thumbnail": 1}
    titles, pictures = told.warnings
    remedy = ": --split group keeps a channel together"
    assert (
        titles == f"2 titles occur on both sides of a fold, which flatters the score ('v1', 'v5'; 'v3', 'v4'){remedy}"
    )
    assert pictures == (
        f"1 thumbnails occur on both sides of a fold, which flatters the score ('v1', 'v4', 'v7'){remedy}"
    )


def test_of_many_equal_titles_the_first_three_are_told_and_all_are_counted(tmp_path):
    videos = titled(tmp_path, *"abcdefg" * 2)
    told = Told()
    assert tell_duplicates(halves(14), videos, None, told) == {"title": 7}
    (warning,) = told.warnings
    assert "7 titles" in warning
    assert "('v0', 'v7'; 'v1', 'v8'; 'v2', 'v9')" in warning


def test_equal_videos_within_one_fold_are_no_cause_to_warn(tmp_path):
    videos = titled(tmp_path, "a", "a", "b", "b")
    told = Told()
    thumbnails = np.repeat(np.array([[1], [1], [2], [2]], dtype=np.uint8), 16, axis=1)
    assert tell_duplicates(halves(4), videos, thumbnails, told) == {"title": 0, "thumbnail": 0}
    assert told.warnings == []


def test_nearly_equal_vectors_on_both_sides_of_a_fold_are_told_with_what_the_search_cost():
    values = np.eye(6, dtype=np.float32)
    values[4] = values[1] + 0.05 * values[5]
    everywhere = np.ones(6, dtype=bool)
    blocks = (
        Block.embedding("image", values, everywhere),
        Block.embedding("text", np.eye(6), everywhere),
        Block.scalar("age", np.zeros(6)),
    )
    told = Told()
    found = tell_near_duplicates(halves(6), [f"v{row}" for row in range(6)], Inputs(blocks), told)
    (warning,) = told.warnings
    assert warning == (
        "2 of 6 image vectors are nearly the same as one on the other side of a fold (cosine above 0.97), "
        "which flatters the score ('v1', 'v4')"
    )
    assert (found["image"]["rows"], found["image"]["compared"], found["text"]["rows"]) == (2, 6, 0)
    assert [(pair["id"], pair["like"]) for pair in found["image"]["closest"]] == [("v1", "v4"), ("v4", "v1")]
    assert found["cosine_above"] == 0.97
    assert found["seconds"] >= 0
    assert "age" not in found
