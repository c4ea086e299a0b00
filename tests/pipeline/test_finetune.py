"""`vp finetune` as a command, with the untrained tiny encoder, and what other commands do with its run."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import cli
from pipeline import finetune as stage_module
from pipeline.runs import open_run
from pipeline.tuning import begun
from tests.command_line import copy_to_work_in, last_json, vp
from tests.pipeline.tuning.spawned import DiesOnce
from tests.pipeline.tuning.world import EPOCHS, FLAGS, finetuned, make_frozen, make_tuned
from tests.workers_here import workers_here

NAME = "clip_multimodal_finetuned"
AGAIN = ("--init", "clip_multimodal", "--name", "again")


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """A tuned run, its folds trained in this process; slow tests train the same ones in processes of their own."""
    frozen = make_frozen(tmp_path_factory.mktemp("frozen"))
    with workers_here():
        return make_tuned(frozen, tmp_path_factory.mktemp("tuned") / "job")


@pytest.fixture(scope="module")
def apart(tmp_path_factory):
    """A tuned run on titles and descriptions apart, its folds trained in this process."""
    root = make_frozen(tmp_path_factory.mktemp("apart"), "separate", "title,description,age")
    with workers_here():
        return make_tuned(root, tmp_path_factory.mktemp("apart_tuned") / "job")


@pytest.fixture
def job(tuned, tmp_path, monkeypatch):
    return copy_to_work_in(tuned, tmp_path, monkeypatch)


def test_the_run_is_like_any_other_and_its_rest_is_gone(job):
    run = open_run(Path("work/runs") / NAME)
    facts = json.loads(Path("facts.json").read_text())
    assert facts.keys() >= {"run", "oof_msle", "oof_msle_final", "fold_msle", "weights", "before_tuning", "seconds"}
    frozen_run = open_run(Path("work/runs/clip_multimodal"))
    assert run.part("folds") == frozen_run.part("folds")
    assert facts["before_tuning"]["oof_msle"] == frozen_run.read_json("metrics.json")["oof_msle"]
    assert not list(Path("work/runs").glob(".*.tuning"))
    assert vp("verify").exit_code == 0


def test_every_epoch_and_result_is_logged_under_its_key(job):
    lines = [json.loads(line) for line in (Path("work/runs") / NAME / "metrics.jsonl").read_text().splitlines()]
    assert [sum(f"fold_{fold}/val/msle" in line for line in lines) for fold in range(3)] == [EPOCHS + 1] * 3
    keys = {key for line in lines for key in line}
    for fold in range(3):
        expected = {"train/loss_epoch", "learning_rate", "best_epoch", "best_val_loss", "best_msle"}
        expected |= {f"val/{each}" for each in ("loss_epoch", "msle", "mae", "rmse")}
        expected |= {f"weights/{each}" for each in ("image", "text", "age", "channel")}
        assert keys >= {f"fold_{fold}/{each}" for each in expected}
    assert {"ensemble/oof_msle", "ensemble/weights/image"} <= keys


def test_it_is_submitted_alone_and_with_the_run_it_came_from(job):
    assert vp("submit", "--run", "clip_multimodal", "--run", NAME).exit_code == 0
    both = pd.read_csv(f"work/submissions/clip_multimodal+{NAME}_ensemble_mean.csv")
    assert len(both) == 6
    assert vp("submit", "--run", NAME, "--checkpoint", "final").exit_code == 0
    alone = pd.read_csv(f"work/submissions/{NAME}_ensemble_mean.csv")
    stored = pd.read_csv(Path("work/runs") / NAME / "test_predictions.csv")
    expected = np.expm1(stored.groupby("id", sort=False)["log_pred_final"].mean())
    assert alone["views"].to_numpy() == pytest.approx(expected.to_numpy())
    shutil.rmtree("work/embeddings")
    assert vp("submit", "--run", NAME).exit_code == 0


@pytest.mark.parametrize("moment", ["best", "final"])
def test_predicting_wears_the_towers_of_each_fold(job, moment):
    assert_predictions_are_those_stored(moment, within=5e-3)


@pytest.mark.parametrize("moment", ["best", "final"])
def test_titles_and_descriptions_apart_are_tuned_by_one_tower(apart, tmp_path, monkeypatch, moment):
    copy_to_work_in(apart, tmp_path, monkeypatch)
    run = open_run(Path("work/runs") / NAME)
    assert [source["kind"] for source in run.part("sources")] == ["title", "description", "age"]
    assert_predictions_are_those_stored(moment, within=5e-3)
    assert "$ vp extract --model tiny --text separate\n" in run.verified("model_card.md").read_text()


def assert_predictions_are_those_stored(moment, within):
    """The test videos as candidates get what was stored when the members were made."""
    from features.progress import Silent
    from pipeline.candidates import Candidate
    from pipeline.config import FinetuneConfig
    from pipeline.dataset import read_dataset
    from pipeline.predictor import Predictor
    from pipeline.tuning.finetuned import stored_predictions

    videos = read_dataset(FinetuneConfig(), Silent()).test
    predictor = Predictor.open(run=NAME, device="cpu")
    texts = videos.texts(0, len(videos))
    candidates = [
        Candidate(
            image=videos.thumbnail(row),
            title=texts[row].title,
            description=texts[row].description,
            published=videos_published(videos, row),
            channel=videos.channel[row],
        )
        for row in range(len(videos))
    ]
    inputs, statuses = predictor._seen(candidates)
    run = open_run(Path("work/runs") / NAME)
    found = [run.checkpoint(fold, moment).heads.predict(inputs[moment][fold]) for fold in range(3)]
    stored = stored_predictions(run, videos, moment)
    assert np.stack(found) == pytest.approx(stored.log_views, abs=within)
    assert stored.log_views.std(axis=0).min() > 2e-2  # so one fold's towers cannot pass for another's
    assert statuses == [0] * 6


def videos_published(videos, row):
    from features.dates import Published

    second = videos.published[row].astype("datetime64[s]").astype(np.int64)
    return Published(int(second), int(videos.year[row]), "")


def test_new_videos_are_predicted_and_ranked(job):
    images = sorted(Path("dataset/test").iterdir())[:2]
    given = ("--image", images[0], "--image", images[1], "--title", "How I made a cake", "--json", "--device", "cpu")
    results = {name: last_json(vp("predict", "--run", name, *given))["results"] for name in ("clip_multimodal", NAME)}
    assert [len(found) for found in results.values()] == [2, 2]
    for one in results[NAME]:
        assert one["log_views"] == pytest.approx(np.log1p(one["baseline"]) + sum(one["contributions"].values()))
        assert 0 <= one["percentile"] <= 100
    views = [{one["image"]: one["views"] for one in found} for found in results.values()]
    assert views[0] != pytest.approx(views[1], rel=1e-3)


def test_a_table_gets_what_the_command_line_gives_one_by_one(job):
    image = min(Path("dataset/test").iterdir())
    Path("c.csv").write_text(f"image,title\n{image},How I made a cake\n,How I made a cake\n")
    table = last_json(vp("predict", "--run", NAME, "--csv", "c.csv", "--json", "--device", "cpu"))["results"]
    given = ("--image", image, "--title", "How I made a cake")
    (one,) = last_json(vp("predict", "--run", NAME, *given, "--json", "--device", "cpu"))["results"]
    assert [row["status"] for row in table] == ["ok", "ok"]
    assert table[0]["views"] == pytest.approx(one["views"], rel=1e-4)


def test_it_is_compared_and_reported(job):
    compared = vp("compare", "clip_multimodal", NAME)
    assert compared.exit_code == 0, compared.output
    reported = vp("report", "--run", NAME, "--data", "dataset")
    assert reported.exit_code == 0, reported.output
    page = (Path("work/runs") / NAME / "report.html").read_text()
    assert NAME in page
    assert "tuned for each fold" in page


def test_its_card_says_what_it_is_and_how_to_make_it_again(job):
    run = open_run(Path("work/runs") / NAME)
    card = run.verified("model_card.md").read_text()
    metrics = run.read_json("metrics.json")
    for number in (metrics["oof_msle_final"], metrics["before_tuning"]["oof_msle_final"], *metrics["weights"].values()):
        assert f"{number:.4f}" in card
    assert "Encoder: tiny, tuned for each fold" in card
    assert "- As they were in that run: channel" in card
    commands = [line for line in card.splitlines() if line.startswith("$ vp ")]
    assert [line.split()[2] for line in commands] == ["extract", "train-heads", "finetune"]
    assert f"vp finetune --init clip_multimodal --name {NAME} --device cpu --epochs {EPOCHS}" in commands[2]


def test_other_test_videos_are_refused(job):
    path = Path("dataset/test.csv")
    path.write_text("\n".join(path.read_text().splitlines()[:-1]) + "\n")
    result = vp("submit", "--run", NAME)
    assert result.exit_code == 7
    assert "has predicted other videos" in result.output
    for command, code in (("status", 0), ("verify", 7)):
        told = vp(command)
        assert (told.exit_code, "it has predicted other videos" in told.output) == (code, True)
        assert f"vp finetune --name {NAME} --init clip_multimodal --device cpu --epochs {EPOCHS}" in told.output


def test_verify_finds_towers_that_were_damaged(job):
    path = next((Path("work/runs") / NAME / "checkpoints").glob("*_towers.safetensors"))
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    result = vp("verify")
    assert result.exit_code == 7
    assert path.name in result.output
    assert f"vp finetune --name {NAME} --init clip_multimodal" in result.output


def test_a_tuned_run_whose_record_is_damaged_is_never_to_be_replaced_by_a_plain_one(job):
    path = Path("work/runs") / NAME / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"encoders": 7}))
    result = vp("verify")
    assert (result.exit_code, "vp train-heads" in result.output) == (7, False)
    assert f"to repair: `vp finetune --name {NAME} --init clip_multimodal" in result.stderr


def metrics(name):
    found = json.loads(Path(f"work/runs/{name}/metrics.json").read_text())
    return {key: value for key, value in found.items() if key not in {"run", "seconds"}}


@pytest.mark.slow
def test_a_fold_whose_worker_dies_is_handed_out_again(job, monkeypatch):
    mark = job / "died"
    folder = Path("work/runs/.again.tuning")
    monkeypatch.setattr(stage_module, "FinetuneSetup", partial(DiesOnce, mark=mark, folder=folder))
    result = finetuned(*AGAIN)
    assert mark.exists()
    assert "died of SIGKILL; what it held" in result.output
    assert metrics("again") == metrics(NAME)


@pytest.mark.slow
def test_a_killed_command_goes_on_at_its_last_epoch_with_as_many_threads(job, monkeypatch):
    script = "from pipeline.tuning import begun; begun.own_threads = lambda: 1; from cli import app; app()"
    command = [sys.executable, "-c", script, "finetune", *AGAIN, *map(str, FLAGS)]
    environment = os.environ | {"PYTHONPATH": str(cli.__file__).removesuffix("cli.py")}
    state = Path("work/runs/.again.tuning/fold0/state.json")
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and not (state.is_file() and '"epoch": 1' in state.read_text()):
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert state.is_file()
    assert not Path("work/runs/again").exists()
    refused = vp("finetune", *AGAIN, *FLAGS, "--seed", 7)
    assert refused.exit_code == 2
    assert "seed: 7 here, 42 there" in refused.output
    monkeypatch.setattr(begun, "own_threads", lambda: 2)
    result = vp("finetune", *AGAIN, *FLAGS)
    assert result.exit_code == 0, result.output
    assert "going on with the unfinished again" in result.output
    assert metrics("again") == metrics(NAME)


def test_additions_are_kept_small_and_predict_without_peft(job, monkeypatch):
    with workers_here():
        finetuned(*AGAIN, "--lora", 2, "--lr", 1e-2)
    sizes = [
        sum(path.stat().st_size for path in (Path("work/runs") / name / "checkpoints").glob("*_final_towers.*"))
        for name in ("again", NAME)
    ]
    assert sizes[0] < sizes[1] / 5
    assert metrics("again")["oof_msle"] != metrics(NAME)["oof_msle"]
    monkeypatch.setitem(sys.modules, "peft", None)
    given = ("--title", "How I made a cake", "--device", "cpu")
    assert vp("predict", "--run", "again", *given).exit_code == 0
    refused = vp("finetune", *AGAIN, "--lora", 2, "--device", "cpu")
    assert refused.exit_code == 2
    assert "--lora needs the package peft" in refused.output
