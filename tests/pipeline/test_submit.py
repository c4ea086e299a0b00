"""From finished runs to a submission, through the command line; the runs need no encoder."""

import contextlib
import csv
import hashlib
import io
import json
from pathlib import Path

import numpy as np
import pytest

from features.config import DatasetConfig
from features.videos import read_videos
from heads.ensemble import combine
from heads.targets import Target
from pipeline import submit as stage
from pipeline.drawn_dataset import draw_dataset
from pipeline.inputs import Source, gather
from pipeline.runs import open_run
from pipeline.workspace import Workspace
from tests.command_line import copy_to_work_in, train, vp

RUNS = {"all": "linear words,channel,age", "old": "linear age", "trees": "trees words,channel,age"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A drawn dataset and three runs over it."""
    root = tmp_path_factory.mktemp("submit")
    with contextlib.chdir(root):
        draw_dataset(root / "dataset", n_train=180, n_test=40)
        for name, which in RUNS.items():
            train(name, *which.split())
    return root


@pytest.fixture
def job(trained, tmp_path, monkeypatch):
    """A copy of it, to work in."""
    return copy_to_work_in(trained, tmp_path, monkeypatch)


def submitted(*arguments):
    result = vp("submit", *arguments, "--json")
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout.splitlines()[-1])
    return facts, Path(facts["path"]).read_text(), result


def rebuilt(info, work=Path("work")):
    """The submission again, from its _info.json, the runs and the dataset alone."""
    workspace, predictions = Workspace(work), []
    videos = read_videos(DatasetConfig(data=Path(info["config"]["data"])), "test")
    assert hashlib.sha256(videos.path.read_bytes()).hexdigest() == info["test"]["sha256"]
    for name, identity in info["runs"].items():
        run = open_run(workspace.run(name))
        assert hashlib.sha256((run.folder / "run.json").read_bytes()).hexdigest() == identity["sha256"]
        assert identity["checkpoints"] == run.checkpoint_digests
        sources = [Source(**source) for source in run.part("sources")]
        inputs = gather(workspace, sources, videos, np.datetime64(run.part("reference_date"))).inputs
        members = [run.checkpoint(fold, info["checkpoint"]).heads.predict(inputs) for fold in range(run.n_folds)]
        one_run = len(info["runs"]) == 1
        predictions += members if one_run else [combine(np.stack(members), "mean", space=info["space"])]
    weights = None if info["weights"] is None else np.array([info["weights"][name] for name in info["members"]])
    log_views = combine(np.stack(predictions), info["method"], weights=weights, space=info["space"])
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(info["submission"]["header"])
    writer.writerows(zip(videos.ids, Target().from_log(log_views).tolist(), strict=True))
    return text.getvalue()


@pytest.mark.parametrize(
    "arguments",
    [
        ("--run", "all"),
        ("--run", "all", "--method", "weighted_mean", "--checkpoint", "final"),
        ("--run", "trees", "--run", "all", "--method", "median", "--space", "views"),
        ("--run", "trees", "--run", "old", "--run", "all", "--method", "weighted_mean"),
        ("--run", "old", "--run", "all", "--method", "weighted_mean", "--weights", "all=0.7,old=0.3"),
    ],
)
def test_the_info_holds_everything_to_make_the_file_again(job, arguments):
    facts, text, _ = submitted(*arguments)
    info = json.loads(Path(facts["path"]).with_name(f"{Path(facts['path']).stem}_info.json").read_text())
    assert rebuilt(info) == text
    assert hashlib.sha256(text.encode()).hexdigest() == info["submission"]["sha256"]
    assert info["versions"].keys() >= {"vp", "numpy"}
    assert all(run["folds"]["digest"] for run in info["runs"].values())
    assert str(job.parent) not in json.dumps(info)


def test_an_ensemble_is_told_beside_each_of_its_runs(job):
    facts, _, result = submitted("--run", "all", "--run", "old", "--run", "trees", "--method", "weighted_mean")
    scores, lines = facts["out_of_fold"], result.stdout.splitlines()
    metrics = {name: open_run(Path("work/runs") / name).read_json("metrics.json")["oof_msle"] for name in RUNS}
    assert scores["msle_of_each"] == pytest.approx(metrics)
    assert lines[0].split("  ")[0] == "member"
    for line, name in zip(lines[1:4], RUNS, strict=True):
        shown, _, msle, weight = line.split()
        assert (shown, msle) == (name, f"{metrics[name]:.4f}")
        assert weight == f"{facts['weights'][name]:.3f}"
    assert lines[5] == f"together, weights fitted on the other folds (nested)  {scores['msle_nested']:.4f}"
    assert lines[6] == f"together, on the rows the weights were fitted on  {scores['msle_together']:.4f}"
    assert scores["msle_together"] <= scores["msle_nested"]
    assert lines[8].split() == ["submission", "all", "out", "of", "fold", "training", "videos"]
    assert (
        lines[14]
        == "40 videos, weighted_mean of 3 members -> work/submissions/all+old+trees_ensemble_weighted_mean.csv"
    )


def test_runs_with_other_folds_have_a_mean_with_a_score_but_no_fitted_weights(job):
    train("seed", "linear", "age", "--seed", "1")
    facts, _, result = submitted("--run", "all", "--run", "seed")
    assert f"together, out of fold  {facts['out_of_fold']['msle_together']:.4f}" in result.stdout
    refused = vp("submit", "--run", "all", "--run", "seed", "--method", "weighted_mean")
    assert refused.exit_code == 7
    assert "of all and seed" in refused.stderr
    assert "of 180 rows are in another fold" in refused.stderr


def test_runs_over_other_videos_have_a_mean_without_a_score(job):
    rows = Path("dataset/train_val.csv").read_text(encoding="utf-8")
    with Path("dataset/train_val.csv").open(newline="", encoding="utf-8") as file:
        header, *videos = csv.reader(file)
    with Path("dataset/train_val.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *videos[:-1]])
    train("fewer", "linear", "age")
    Path("dataset/train_val.csv").write_text(rows, encoding="utf-8")
    facts, _, result = submitted("--run", "all", "--run", "fewer")
    assert "out_of_fold" not in facts
    assert "warning: no out-of-fold score for this ensemble: runs all and fewer cannot be compared" in result.stderr
    assert "1 videos are only in all" in result.stderr


def test_under_a_split_by_time_the_weights_are_scored_on_later_folds_only(job):
    for name, which in list(RUNS.items())[:2]:
        train(f"{name}_time", *which.split(), "--split", "time")
    _, _, result = submitted("--run", "all_time", "--run", "old_time", "--method", "weighted_mean")
    assert "together, weights fitted on earlier folds (nested)" in result.stdout


def test_two_submissions_of_the_same_runs_are_equal(job):
    texts = [submitted("--run", "all", "--run", "trees", "--method", "weighted_mean")[1] for _ in range(2)]
    assert texts[0] == texts[1]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nothing_is_written_where_a_prediction_is_no_number(job, monkeypatch, bad):
    monkeypatch.setattr(stage, "combine", lambda log_views, *_, **__: np.append(log_views[0][1:], bad))
    monkeypatch.setattr(Target, "from_log", lambda _, log_views: log_views)
    result = vp("submit", "--run", "all")
    assert (result.exit_code, "no usable number" in result.stderr) == (7, True)
    assert not Path("work/submissions").exists()


def test_a_run_that_is_named_twice_is_a_mistake(job):
    assert vp("submit", "--run", "all", "--run", "all").exit_code == 2


def test_many_long_names_still_make_a_file_name():
    names = [f"{number}{'x' * 60}" for number in range(9)]
    path, other = (Workspace(Path("work")).submission(given, "median") for given in (names, names[::-1]))
    assert len(path.name) < 200
    assert path.name.startswith(f"{names[0]}+8-")
    assert path != other
