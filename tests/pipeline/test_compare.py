"""Two runs held against each other, through the command line."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from features import durable
from heads.bootstrap import mean_interval
from pipeline.runs import building, seal
from tests.command_line import vp

HEADER = ["id", "fold", "log_views", "log_pred_best", "log_pred_final"]
N_VIDEOS = 120


def facts_of(*arguments):
    result = vp("compare", *arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout.splitlines()[-1]), result


@pytest.fixture
def world(tmp_path, monkeypatch):
    """A dataset of 120 videos of 30 channels, ten of them without one, and a way to write runs over it."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    log_views = rng.normal(9, 2, N_VIDEOS)
    channels = [f"channel {row % 30}" if row >= 10 else "" for row in range(N_VIDEOS)]
    Path("dataset").mkdir()
    with Path("dataset/train_val.csv").open("w", newline="", encoding="utf-8") as file:
        rows = [[f"v{row}", "a title", 2015 + row % 5, 100 + row, channels[row]] for row in range(N_VIDEOS)]
        csv.writer(file).writerows([["id", "title", "year", "views", "channel"], *rows])

    def make(name, errors, *, split="kfold", target="log1p", n_folds=3, rows=range(N_VIDEOS), best=None):
        table = [
            [f"v{row}", row % n_folds, log_views[row], log_views[row] + (errors if best is None else best)[row]]
            for row in rows
        ]
        lines = [[*cells, log_views[row] + errors[row]] for cells, row in zip(table, rows, strict=True)]
        with building(Path("work/runs") / name) as aside:
            text = "".join(f"{','.join(map(str, line))}\n" for line in [HEADER, *lines])
            durable.publish(aside / "oof.csv", text)
            for fold in range(n_folds):
                durable.publish(
                    aside / "checkpoints" / f"fold{fold}.safetensors", "heads, which a comparison never reads"
                )
            seal(aside, {"folds": {"split": split, "n": n_folds}, "target": target})

    return make, channels


def test_the_difference_is_that_of_the_errors_with_an_interval_over_videos_and_over_channels(world):
    make, channels = world
    rng = np.random.default_rng(1)
    one, other = rng.normal(0, 1.5, N_VIDEOS), rng.normal(0, 1.0, N_VIDEOS)
    make("a", one)
    make("b", other)
    facts, result = facts_of("a", "b")
    squares = one**2 - other**2
    assert facts["difference"] == pytest.approx(squares.mean())
    assert facts["msle"] == pytest.approx({"a": (one**2).mean(), "b": (other**2).mean()})
    keys = [name or f"video {row}" for row, name in enumerate(channels)]
    cluster_of = np.unique(keys, return_inverse=True)[1]
    for what, found in (("videos", mean_interval(squares)), ("channels", mean_interval(squares, cluster_of))):
        assert facts[f"interval_over_{what}"]["clusters"] == found.clusters
        assert facts[f"interval_over_{what}"]["mean"] == pytest.approx(found.mean)
    low, high = (facts["interval_over_channels"][end] for end in ("lower", "upper"))
    assert facts["verdict"] == f"b is better by {squares.mean():.2f} (95 %: {low:.2f} to {high:.2f})"
    assert result.stdout.splitlines()[-2] == facts["verdict"]
    assert facts["same_folds"] is True
    assert "next: vp submit --run a --run b --method weighted_mean" in result.stderr


def test_exchanging_the_runs_exchanges_the_verdict(world):
    make, _ = world
    rng = np.random.default_rng(2)
    make("a", rng.normal(0, 3.0, N_VIDEOS))
    make("b", rng.normal(0, 1.0, N_VIDEOS))
    one, other = facts_of("a", "b")[0], facts_of("b", "a")[0]
    assert one["difference"] == -other["difference"]
    assert one["verdict"].startswith("b is better by ")
    assert other["verdict"].startswith("b is better by ")


def test_runs_that_are_as_good_cannot_be_told_apart(world):
    make, _ = world
    rng = np.random.default_rng(3)
    make("a", rng.normal(size=N_VIDEOS))
    make("b", rng.normal(size=N_VIDEOS))
    assert facts_of("a", "b")[0]["verdict"].startswith("a and b cannot be told apart (95 %: -")


def test_equal_runs_are_called_equal(world):
    make, _ = world
    for name in "ab":
        make(name, np.ones(N_VIDEOS))
    assert facts_of("a", "b")[0]["verdict"] == "a and b are equally far off on every video"


def test_what_holds_on_videos_but_not_over_channels_is_told_so(world):
    make, channels = world
    worse = np.array([3.0 if name in {"channel 11", "channel 12", "channel 13"} else 0.5 for name in channels])
    make("a", worse)
    make("b", np.where(worse > 1, 0.5, 0.7))
    verdict = facts_of("a", "b")[0]["verdict"]
    assert verdict.startswith("b is better than a by ")
    assert "on videos of these channels, but over channels the two cannot be told apart (95 %: -" in verdict


def test_years_and_the_largest_channels_are_told(world):
    make, channels = world
    rng = np.random.default_rng(4)
    one, other = rng.normal(size=(2, N_VIDEOS))
    make("a", one)
    make("b", other)
    facts, result = facts_of("a", "b")
    assert sum(entry["rows"] for entry in facts["by_year"]) == N_VIDEOS
    for entry in facts["by_channel"]:
        own = np.array([name == entry["label"] for name in channels])
        assert entry["msle"] == pytest.approx([np.mean(one[own] ** 2), np.mean(other[own] ** 2)])
    assert [entry["rows"] for entry in facts["by_channel"]] == sorted(
        (entry["rows"] for entry in facts["by_channel"]), reverse=True
    )
    assert "by year  rows  MSLE a  MSLE b  b better by" in result.stdout
    assert any(line.startswith("by channel") for line in result.stdout.splitlines())


def test_the_best_epoch_is_compared_if_asked_for(world):
    make, _ = world
    make("a", np.full(N_VIDEOS, 2.0), best=np.zeros(N_VIDEOS))
    make("b", np.full(N_VIDEOS, 1.0))
    assert facts_of("a", "b")[0]["msle"] == pytest.approx({"a": 4.0, "b": 1.0})
    assert facts_of("a", "b", "--checkpoint", "best")[0]["msle"] == pytest.approx({"a": 0.0, "b": 1.0})


def test_other_folds_are_compared_with_a_warning(world):
    make, _ = world
    make("a", np.ones(N_VIDEOS))
    make("b", np.zeros(N_VIDEOS), n_folds=5)
    facts, result = facts_of("a", "b")
    assert facts["same_folds"] is False
    assert "part of the difference is the draw of the folds" in result.stderr


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"split": "group"}, "a was scored with --split kfold, b with group"),
        ({"target": "none"}, "a was scored with --target log1p, b with none"),
        ({"rows": range(N_VIDEOS - 1)}, "1 videos are only in a (first: v119)"),
    ],
)
def test_runs_that_answer_other_questions_are_refused(world, changed, said):
    make, _ = world
    make("a", np.ones(N_VIDEOS))
    make("b", np.zeros(N_VIDEOS), **changed)
    result = vp("compare", "a", "b")
    assert (result.exit_code, said in result.stderr) == (7, True), result.stderr


def test_a_dataset_that_lacks_the_videos_is_named(world):
    make, _ = world
    for name in "ab":
        make(name, np.ones(N_VIDEOS))
    shutil.copytree("dataset", "other")
    lines = Path("other/train_val.csv").read_text().splitlines()
    Path("other/train_val.csv").write_text("\n".join(lines[:50]) + "\n")
    result = vp("compare", "a", "b", "--data", "other")
    assert (result.exit_code, "--data" in result.stderr) == (7, True)


def test_without_channels_there_is_no_interval_over_them(world):
    make, _ = world
    for name, error in (("a", 2.0), ("b", 1.0)):
        make(name, np.full(N_VIDEOS, error))
    text = Path("dataset/train_val.csv").read_text()
    Path("dataset/train_val.csv").write_text(text.replace("channel", "nothing", 1))
    facts, result = facts_of("a", "b")
    assert facts["interval_over_channels"] is None
    assert facts["verdict"] == "b is better by 3.00 (95 %: 3.00 to 3.00)"
    assert "over channels" not in result.stdout


def test_the_videos_to_predict_are_not_asked_for(world):
    make, _ = world
    make("a", np.ones(N_VIDEOS))
    make("b", np.zeros(N_VIDEOS))
    Path("dataset/test.csv").write_text("no table")
    assert facts_of("a", "b")[0]["rows"] == N_VIDEOS


@pytest.mark.parametrize("names", [(), ("a",), ("a", "a"), ("a", "b", "c")])
def test_two_runs_must_be_named(world, names):
    result = vp("compare", *names)
    assert (result.exit_code, "vp compare RUN RUN" in result.stderr) == (2, True)


def test_the_runs_can_stand_in_the_file(world):
    make, _ = world
    make("a", np.ones(N_VIDEOS))
    make("b", np.zeros(N_VIDEOS))
    Path("vp.toml").write_text('[compare]\nruns = ["a", "b"]\n')
    assert facts_of()[0]["runs"] == ["a", "b"]
