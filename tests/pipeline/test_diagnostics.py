"""What is told beside a score: the head under harder splits, and where the errors are."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from features.config import DatasetConfig
from features.videos import VideoTable, read_videos
from heads.diagnostics import adversarial_auc
from heads.folds import FoldPlan, from_table, kfold
from heads.inputs import Block, Inputs
from pipeline import diagnostics
from pipeline.config import TrainHeadsConfig
from pipeline.diagnostics import diagnose, error_by, split_scores, told
from pipeline.scores import OutOfFold

N_VIDEOS = 60
CONFIG = TrainHeadsConfig(folds=3, seed=1)


def oof_of(plan: FoldPlan, log_views, final) -> OutOfFold:
    final = np.array(final, dtype=np.float64)
    best = np.full(len(final), 1e6)  # read by nobody here
    return OutOfFold(plan, np.array(log_views, dtype=np.float64), best, final, best, np.zeros((1, len(final))))


def read_table(folder: Path, channels: list[str], dates: list[str]) -> VideoTable:
    rows = [f"v{row},t,{channel},{date},,1" for row, (channel, date) in enumerate(zip(channels, dates, strict=True))]
    (folder / "train_val.csv").write_text("\n".join(["id,title,channel,date,year,views", *rows]))
    return read_videos(DatasetConfig(data=folder), "train_val")


def draw_world(folder: Path, *, one_channel: bool = False, dated: bool = True):
    """Each channel has its own picture and its own views, which nothing else tells."""
    rng = np.random.default_rng(0)
    channel_of = np.arange(N_VIDEOS) % 10
    dates = [f"{2015 + row // 10}-{1 + row % 10:02d}-01" if dated else "" for row in range(N_VIDEOS)]
    videos = read_table(folder, ["one" if one_channel else f"c{channel}" for channel in channel_of], dates)
    pictures, levels = rng.normal(size=(10, 10)), rng.normal(size=10)
    values = pictures[channel_of] + 0.01 * rng.normal(size=(N_VIDEOS, 10))
    inputs = Inputs((Block.embedding("image", values, np.ones(N_VIDEOS, bool)),))
    return videos, inputs, oof_of(kfold(N_VIDEOS, 3, 1), 8 + levels[channel_of], np.full(N_VIDEOS, 8.0))


def test_errors_by_label_by_hand():
    labels = ["b", "a", "b", "", "a", "b", "z"]
    oof = oof_of(from_table(np.array([0, 1, 0, 1, 0, 1, -1])), [1, 2, 3, 4, 5, 6, 7], [2, 2, 0, 4.5, 7, 8, np.nan])
    assert error_by(labels, oof) == [
        {"label": "b", "rows": 3, "msle": pytest.approx((1 + 9 + 4) / 3), "bias": pytest.approx(0)},
        {"label": "a", "rows": 2, "msle": pytest.approx((0 + 4) / 2), "bias": 1.0},
        {"label": "", "rows": 1, "msle": 0.25, "bias": 0.5},
    ]


def test_labels_of_equally_many_rows_stand_in_their_order_and_numbers_stay_numbers():
    oof = oof_of(from_table(np.array([0, 1, 0, 1])), [0, 0, 0, 0], [1, 1, 1, 1])
    assert json.loads(json.dumps([entry["label"] for entry in error_by([2020, 0, 2013, 2013], oof)])) == [2013, 0, 2020]


def test_long_and_strange_labels_are_told_apart():
    oof = oof_of(from_table(np.array([0, 1, 0, 1])), [0, 0, 0, 0], [1, 1, 1, 1])
    labels = ["x" * 500 + "a", "x" * 500 + "b", "nan", "c\0"]
    assert sorted(entry["label"] for entry in error_by(labels, oof)) == sorted(labels)


def test_a_split_that_keeps_channels_whole_is_harder_where_pictures_give_the_channel_away(tmp_path):
    scores = split_scores(CONFIG, *draw_world(tmp_path))
    assert list(scores) == ["kfold", "group", "time"]
    assert scores["kfold"] < 0.1 * scores["group"]
    assert isinstance(scores["time"], float)


def test_a_split_that_is_impossible_gives_the_reason_and_costs_the_others_nothing(tmp_path):
    scores = split_scores(CONFIG, *draw_world(tmp_path, one_channel=True, dated=False))
    assert isinstance(scores["kfold"], float)
    assert "the videos form 1 groups" in scores["group"]
    assert "less than the number of different times, 0" in scores["time"]


def test_the_split_of_the_run_itself_changes_nothing(tmp_path):
    world = draw_world(tmp_path)
    by_file = replace(CONFIG, split="file", fold_file=tmp_path / "never_read.csv")
    assert split_scores(by_file, *world) == split_scores(CONFIG, *world)


def test_years_stand_in_order_and_channels_by_size(tmp_path):
    dates = ["2021-01-01", "", "2019-01-01", "2021-06-01", "2021-07-01", "2019-02-02"]
    videos = read_table(tmp_path, ["a", "b", "b", "", "b", "a"], dates)
    inputs = Inputs((Block.scalar("age", np.array([1.0, 2, 3, 4, 5, 6])),))
    oof = oof_of(from_table(np.arange(6) % 2), [1, 2, 3, 4, 5, 6], [2, 2, 2, 2, 2, 2])
    found = json.loads(json.dumps(diagnose(CONFIG, videos, inputs, None, oof), allow_nan=False))
    assert [(entry["label"], entry["rows"]) for entry in found["error_by_year"]] == [(0, 1), (2019, 2), (2021, 3)]
    assert [(entry["label"], entry["rows"]) for entry in found["error_by_channel"]] == [("b", 3), ("a", 2), ("", 1)]
    assert found["test_against_train_auc"] == {}


def test_test_videos_are_compared_by_modality(tmp_path):
    videos, inputs, oof = draw_world(tmp_path)
    elsewhere = Inputs((Block.embedding("image", np.tile(np.eye(10)[0], (20, 1)), np.ones(20, bool)),))
    assert diagnose(CONFIG, videos, inputs, elsewhere, oof)["test_against_train_auc"]["image"] > 0.95


def test_a_single_test_video_does_not_cost_the_run(tmp_path):
    videos, inputs, oof = draw_world(tmp_path)
    found = diagnose(CONFIG, videos, inputs, inputs.take(slice(0, 1)), oof)
    assert found["linear_msle_by_split"].keys() == {"kfold", "group", "time"}


ERRORS = {
    "linear_msle_by_split": {"kfold": 1.23456, "group": "the videos form 1 groups", "time": 12.5},
    "test_against_train_auc": {"image": 0.512, "age": 1.0},
    "error_by_year": [
        {"label": 0, "rows": 3, "msle": 0.5, "bias": -0.125},
        {"label": 2019, "rows": 1234, "msle": 10.0, "bias": 0.0},
    ],
    "error_by_channel": [
        {"label": "UC-long-name", "rows": 40, "msle": 1.0, "bias": 0.25},
        {"label": "", "rows": 10, "msle": 2.0, "bias": -1.5},
        {"label": "few", "rows": 9, "msle": 3.0, "bias": 0.0},
    ],
}


def test_what_is_told_is_aligned_in_columns():
    assert "\n".join(told(ERRORS)) == (
        "linear head, MSLE by split  kfold  group    time\n"
        "                            1.235      -  12.500\n"
        "\n"
        "test against train, AUC  image   age\n"
        "                          0.51  1.00\n"
        "\n"
        "error by year  rows   MSLE   bias\n"
        "-                 3   0.50  -0.12\n"
        "2019           1234  10.00  +0.00\n"
        "\n"
        "error by channel  rows  MSLE   bias\n"
        "UC-long-name        40  1.00  +0.25\n"
        "-                   10  2.00  -1.50"
    )


def test_without_test_videos_and_with_one_channel_their_tables_are_left_out():
    few = ERRORS | {"test_against_train_auc": {}, "error_by_channel": ERRORS["error_by_channel"][:1]}
    firsts = [line.split("  ")[0] for line in told(few)]
    assert firsts == ["linear head, MSLE by split", "", "", "error by year", "-", "2019"]


def test_six_channels_are_told_at_most():
    many = [{"label": f"c{index}", "rows": 50 - index, "msle": 1.0, "bias": 0.0} for index in range(9)]
    lines = told(ERRORS | {"error_by_channel": many})
    assert [line.split()[0] for line in lines[-6:]] == ["c0", "c1", "c2", "c3", "c4", "c5"]
    assert lines[-7].startswith("error by channel")


@dataclass(frozen=True, eq=False)
class OnDisk:
    """Chunks that give some rows at most, and remember which."""

    whole: Inputs
    taken: list

    @property
    def outline(self):
        return self.whole

    def __iter__(self):
        return iter(self.whole)

    def take(self, rows):
        self.taken.append(rows)
        return self.whole.take(rows)


def test_vectors_that_are_not_in_memory_are_told_apart_by_some_of_their_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(diagnostics, "AUC_ROWS", 40)
    videos, inputs, oof = draw_world(tmp_path)
    test = Inputs((Block.embedding("image", np.random.default_rng(1).normal(size=(30, 10)), np.ones(30, bool)),))
    train, others = OnDisk(inputs, []), OnDisk(test, [])
    found = diagnose(CONFIG, videos, train, others, oof)
    (rows,), (all_rows,) = train.taken, others.taken
    assert (len(rows), rows[0], rows[-1]) == (40, 0, N_VIDEOS - 1)
    assert all_rows.tolist() == list(range(30))
    assert found["test_against_train_auc"] == adversarial_auc(inputs.take(rows), test, CONFIG.seed)
    assert found["linear_msle_by_split"] == diagnose(CONFIG, videos, inputs, None, oof)["linear_msle_by_split"]
