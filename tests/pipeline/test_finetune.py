"""Fine-tuning on a drawn dataset with the untrained tiny encoder, on a CPU."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import cli
from features.encoders import resolve_encoder
from features.errors import CacheError, UsageError
from features.progress import Silent
from heads.inputs import Block, Inputs
from pipeline import finetune as stage_module
from pipeline.config import FinetuneConfig
from pipeline.dataset import read_dataset
from pipeline.finetune import Stage
from pipeline.finetune_batches import RowFeed
from pipeline.finetune_fold import MakeMember, TrainFold
from pipeline.finetune_loop import FACTORS, chosen_factor
from pipeline.finetune_state import FoldState
from pipeline.finetune_worker import FinetuneSetup
from pipeline.finetuned import load_tuned_encoder, stored_predictions, towers_name
from pipeline.inputs import Source, gather
from pipeline.runs import open_run
from pipeline.workspace import Workspace
from tests.command_line import copy_to_work_in, vp
from tests.pipeline.spawned_finetune import DiesOnce

EPOCHS = 2
OPTIONS = {"epochs": EPOCHS, "lr": 3e-4, "head_lr": 1e-3, "batch_size": 8, "device": "cpu"}


@pytest.fixture(scope="session")
def frozen(tmp_path_factory):
    """A folder with a drawn dataset, its cache and a run on it."""
    from pipeline.drawn_dataset import draw_dataset

    root = tmp_path_factory.mktemp("finetune")
    draw_dataset(root / "dataset", n_train=48, n_test=6)
    places = ("--data", root / "dataset", "--work", root / "work", "--quiet")
    for command in (
        ("extract", "--model", "tiny", "--precision", "fp32", "--device", "cpu"),
        (
            "train-heads",
            "--no-diagnostics",
            "--epochs",
            2,
            "--hidden-dim",
            16,
            "--modalities",
            "image,text,age,channel",
        ),
    ):
        result = vp(*command, *places)
        assert result.exit_code == 0, result.output
    return root


@pytest.fixture
def job(frozen, tmp_path, monkeypatch):
    """A copy of it, to work in."""
    return copy_to_work_in(frozen, tmp_path, monkeypatch)


def prepared(**changes):
    config = FinetuneConfig(**OPTIONS | changes)
    stage = Stage.prepared(config, Workspace(config.work), read_dataset(config, Silent()), Silent())
    (stage.tuning / "fold0").mkdir(parents=True, exist_ok=True)
    return stage


def worker_of(stage, tell=lambda _units: None):
    """A worker in this process; returns what does a job."""
    worker = FinetuneSetup(1)("cpu")
    worker.share(stage.context)
    return lambda job: worker.work(job, tell).result()


def fold_of(stage, fold=0, precision="fp32"):
    """The inside of a worker: the model of one fold and its rows."""
    from pipeline.finetune_worker import _Fold

    return _Fold(replace(stage.context, precision=precision), fold, "cpu", lambda _units: None)


@pytest.mark.parametrize(("precision", "within"), [("fp32", 0.01), ("bf16", 0.1)])
def test_before_training_the_model_predicts_what_its_run_predicts(job, precision, within):
    stage = prepared()
    inside = fold_of(stage, precision=precision)
    rows = stage.start.plan.val_rows(0)
    embedded = inside._model.embed(inside._feed(stage.context.train).batches(rows, 5), lambda _rows: None)
    z = inside._model.predict(embedded, inside._known.take(rows, torch.device("cpu")))
    run = open_run(Path("work/runs/clip_multimodal"))
    sources = [Source(**source) for source in run.part("sources")]
    inputs = gather(Workspace(Path("work")), sources, stage.context.train, np.datetime64(run.part("reference_date")))
    heads = run.checkpoint(0, "final").heads
    expected = heads.standardisation.apply(heads.predict(inputs.inputs.take(rows)))
    assert np.abs(z - expected).max() <= within
    assert expected.std() > 0.2


def test_training_lowers_the_loss_and_keeps_a_state(job):
    stage = prepared(epochs=3)
    result = worker_of(stage)(TrainFold(0))
    losses = [record.train_loss for record in result.records]
    assert [record.epoch for record in result.records] == [0, 1, 2, 3]
    assert losses[0] is None
    assert losses[3] < losses[1]
    assert {moment: len(errors) for moment, errors in result.errors.items()} == {"best": 6, "final": 6}
    assert FoldState.read(stage.tuning / "fold0").epoch == 3
    assert sum(result.records[3].weights.values()) == pytest.approx(1)


def test_the_first_factor_is_the_frozen_model(job):
    result = worker_of(prepared())(TrainFold(0))
    start = result.records[0]
    n_rows = 16
    assert FACTORS[0] == 0
    assert result.errors["final"][0] / n_rows == pytest.approx(start.val_loss, rel=1e-6)
    assert result.errors["final"][-1] / n_rows == pytest.approx(result.records[-1].val_loss, rel=1e-6)


def test_a_member_at_factor_0_is_the_frozen_one(job):
    stage = prepared()
    work = worker_of(stage)
    work(TrainFold(0))
    made = work(MakeMember(0, {"best": 0.0, "final": 1.0}, job))
    rows = stage.start.plan.val_rows(0)
    assert made.validation["best"].log_views == pytest.approx(stage.start.expected[rows], abs=0.02)
    assert np.abs(made.validation["final"].log_views - stage.start.expected[rows]).max() > 0.02
    files = [Path(towers_name("clip_multimodal_finetuned", 0, moment)) for moment in ("best", "final")]
    assert files[0].stat().st_size < 1000 < files[1].stat().st_size


def test_frozen_towers_stay_as_they_are_to_the_last_bit(job):
    stage = prepared(freeze_clip=True)
    inside = fold_of(stage)
    before = {
        f"{kind}.{name}": parameter.detach().clone()
        for kind, tower in inside._encoder.towers.items()
        for name, parameter in tower.named_parameters()
    }
    result = inside.trained()
    for kind, tower in inside._encoder.towers.items():
        for name, parameter in tower.named_parameters():
            assert torch.equal(parameter, before[f"{kind}.{name}"])
    assert result.records[-1].train_loss < result.records[1].train_loss + 1e-9
    inside.made(MakeMember(0, {"best": 1.0, "final": 1.0}, job))
    assert Path(towers_name("clip_multimodal_finetuned", 0, "final")).stat().st_size < 1000


def test_only_the_last_block_moves_if_only_that_is_unfrozen(job):
    inside = fold_of(prepared(unfreeze="last:1"))
    names = [name for name in inside._model.parameters if not name.startswith("heads.")]
    assert names
    assert not any("layers.0." in name or "embeddings" in name for name in names)


def test_checkpointing_and_accumulation_give_the_same_training(job):
    """Rows per step are the same, so only rounding differs."""
    plain = worker_of(prepared(epochs=1, name="plain"))(TrainFold(0))
    parts = worker_of(prepared(epochs=1, name="parts", batch_size=4, accumulate=2, gradient_checkpointing=True))(
        TrainFold(0)
    )
    assert parts.records[-1].val_loss == pytest.approx(plain.records[-1].val_loss, rel=1e-2)


class StoppedError(Exception):
    """The training was stopped."""


def test_a_stopped_training_ends_where_an_undisturbed_one_does(job):
    undisturbed, stage = prepared(name="undisturbed"), prepared(name="stopped")
    worker_of(undisturbed)(TrainFold(0))
    told = []

    def tell(units):
        told.append(units)
        if sum(told) > 40:  # in the second epoch, of 32 rows each
            raise StoppedError

    with pytest.raises(StoppedError):
        worker_of(stage, tell)(TrainFold(0))
    assert FoldState.read(stage.tuning / "fold0").epoch == 1
    result = worker_of(stage)(TrainFold(0))
    states = [FoldState.read(which.tuning / "fold0") for which in (undisturbed, stage)]
    for part in ("values", "average", "first", "second", "best"):
        first, second = (getattr(state, part) for state in states)
        assert all(torch.equal(first[name], second[name]) for name in first)
    assert states[0].errors == states[1].errors == result.errors


def test_a_training_that_diverges_is_stopped_with_advice(job):
    with pytest.raises(UsageError, match=r"fold 0 in epoch 1: lower --lr \(now 1e\+30\)"):
        worker_of(prepared(lr=1e30, head_lr=1e30))(TrainFold(0))


def test_a_fold_stops_early_if_asked_to(job):
    result = worker_of(prepared(epochs=9, lr=1e-2, head_lr=0.1, patience=1))(TrainFold(0))
    assert len(result.records) < 10
    assert result.records[-1].epoch == result.best_epoch + 1


def test_thumbnails_that_have_changed_are_noticed(job):
    for path in Path("dataset/train_val").iterdir():
        shutil.copy("dataset/train_val.csv", path)
    with pytest.raises(CacheError, match="must predict what its run predicted"):
        worker_of(prepared())(TrainFold(0))


def finetuned(*options):
    """One thread computes: several that wait for each other crawl on a machine that does something else as well."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage_module, "cores", lambda: 1)
        return _finetuned(*options)


def _finetuned(*options):
    result = vp("finetune", "--epochs", EPOCHS, "--lr", 3e-4, "--batch-size", 8, "--device", "cpu", *options)
    assert result.exit_code == 0, result.output
    return result


@pytest.fixture(scope="session")
def tuned(frozen, tmp_path_factory):
    """The same folder with a fine-tuned run."""
    root = tmp_path_factory.mktemp("tuned") / "job"
    shutil.copytree(frozen, root)
    here = Path.cwd()
    os.chdir(root)
    try:
        result = finetuned("--quiet", "--json")
    finally:
        os.chdir(here)
    (root / "facts.json").write_text(result.stdout.strip().splitlines()[-1])
    return root


@pytest.fixture
def tuned_job(tuned, tmp_path, monkeypatch):
    return copy_to_work_in(tuned, tmp_path, monkeypatch)


def test_the_run_is_like_any_other_and_its_rest_is_gone(tuned_job):
    run = open_run(Path("work/runs/clip_multimodal_finetuned"))
    facts = json.loads(Path("facts.json").read_text())
    assert facts.keys() >= {"run", "oof_msle", "oof_msle_final", "fold_msle", "weights", "frozen", "seconds"}
    frozen_run = open_run(Path("work/runs/clip_multimodal"))
    assert run.part("folds") == frozen_run.part("folds")
    assert facts["frozen"]["oof_msle"] == frozen_run.read_json("metrics.json")["oof_msle"]
    assert not list(Path("work/runs").glob(".*.tuning"))
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert [sum(f"fold_{fold}/val/msle" in line for line in lines) for fold in range(3)] == [EPOCHS + 1] * 3
    assert any("fold_2/weights/text" in line and "fold_2/learning_rate" in line for line in lines)
    assert vp("verify").exit_code == 0


def test_runs_are_submitted_together(tuned_job):
    names = ("--run", "clip_multimodal", "--run", "clip_multimodal_finetuned")
    assert vp("submit", *names).exit_code == 0
    both = pd.read_csv("work/submissions/clip_multimodal+clip_multimodal_finetuned_ensemble_mean.csv")
    assert len(both) == 6
    assert vp("submit", "--run", "clip_multimodal_finetuned", "--checkpoint", "final").exit_code == 0


@pytest.mark.parametrize("moment", ["best", "final"])
def test_stored_predictions_are_those_of_the_stored_towers_and_heads(tuned_job, moment):
    config = FinetuneConfig(**OPTIONS)
    videos = read_dataset(config, Silent()).test
    run = open_run(Path("work/runs/clip_multimodal_finetuned"))
    stored = stored_predictions(run, videos, moment)
    encoder = resolve_encoder("tiny", Path("work/models"))
    for fold in range(3):
        loaded = load_tuned_encoder(
            run, fold, moment, encoder=encoder, kinds=["image", "text"], device="cpu", precision="fp32"
        )
        feed = RowFeed(loaded, encoder, ["image", "text"], videos, 1)
        (batch,) = feed.batches(np.arange(6), 6)
        images = loaded.encode_images(batch.pixels)
        texts = loaded.encode_tokens(batch.tokens, batch.pad_to)
        table = [source for source in map(_source, run.part("sources")) if not source.tag]
        others = gather(Workspace(Path("work")), table, videos, np.datetime64(run.part("reference_date"))).inputs
        blocks = (
            Block.embedding("image", images, batch.present["image"]),
            Block.embedding("text", texts, batch.present["text"]),
        )
        heads = run.checkpoint(fold, moment).heads
        assert heads.predict(Inputs((*blocks, *others.blocks))) == pytest.approx(stored.log_views[fold], abs=1e-3)


def _source(facts):
    return Source(**facts)


def test_predicting_other_videos_names_the_run_that_can(tuned_job):
    result = vp("predict", "--run", "clip_multimodal_finetuned", "--title", "A cake")
    assert result.exit_code == 2
    assert "predict with clip_multimodal, which it was made from" in result.output


def test_runs_are_compared_and_reported(tuned_job):
    assert vp("compare", "clip_multimodal", "clip_multimodal_finetuned").exit_code == 0
    assert vp("report", "--run", "clip_multimodal_finetuned").exit_code == 0


def test_other_test_videos_are_refused(tuned_job):
    path = Path("dataset/test.csv")
    path.write_text(path.read_text().replace(" the ", " a ", 1).replace(",20", ", 20", 1))
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[:-1]) + "\n")
    result = vp("submit", "--run", "clip_multimodal_finetuned")
    assert result.exit_code == 7
    assert "has predicted other videos" in result.output


def test_a_tower_of_another_encoder_is_refused(tuned_job):
    run = open_run(Path("work/runs/clip_multimodal_finetuned"))
    other = replace(resolve_encoder("tiny", Path("work/models")), weights_sha256="0" * 64)
    with pytest.raises(CacheError, match="give the encoder that the run was made with"):
        load_tuned_encoder(run, 0, "best", encoder=other, kinds=["text"], device="cpu", precision="fp32")


def metrics(name):
    found = json.loads(Path(f"work/runs/{name}/metrics.json").read_text())
    return {key: value for key, value in found.items() if key not in {"run", "seconds"}}


def test_a_fold_whose_worker_dies_is_handed_out_again(tuned_job, monkeypatch):
    mark = tuned_job / "died"
    folder = Path("work/runs/.again.tuning")
    monkeypatch.setattr(stage_module, "FinetuneSetup", partial(DiesOnce, mark=mark, folder=folder))
    result = finetuned("--init", "clip_multimodal", "--name", "again")
    assert mark.exists()
    assert "died of SIGKILL; what it held" in result.output
    assert metrics("again") == metrics("clip_multimodal_finetuned")


def test_a_killed_command_goes_on_at_its_last_epoch(tuned_job):
    script = "from pipeline import finetune; finetune.cores = lambda: 1; from cli import app; app()"
    options = ("--epochs", EPOCHS, "--lr", 3e-4, "--batch-size", 8, "--device", "cpu", "--name", "again")
    command = [sys.executable, "-c", script, "finetune", "--init", "clip_multimodal", *map(str, options)]
    environment = os.environ | {"PYTHONPATH": str(cli.__file__).removesuffix("cli.py")}
    state = Path("work/runs/.again.tuning/fold0/state.json")
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and not (state.is_file() and '"epoch": 1' in state.read_text()):
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert state.is_file()
    assert not Path("work/runs/again").exists()
    result = finetuned("--init", "clip_multimodal", "--name", "again")
    assert "going on with the unfinished again" in result.output
    assert metrics("again") == metrics("clip_multimodal_finetuned")


def test_an_unfinished_training_is_not_continued_otherwise(job):
    stage = prepared()
    stage._check_unfinished()
    with pytest.raises(UsageError, match=r"begun otherwise \(lr: 0.5 here, 0.0003 there\)"):
        prepared(lr=0.5)._check_unfinished()


@pytest.mark.parametrize(
    ("options", "code", "told"),
    [
        (("--modalities", "age,channel"), 2, "a run with one encoder, however other has none"),
        (("--head", "trees"), 2, "takes an additive head"),
    ],
)
def test_a_run_that_cannot_be_tuned_is_refused(job, options, code, told):
    assert vp("train-heads", "--no-diagnostics", "--name", "other", *options).exit_code == 0
    result = vp("finetune", "--init", "other", "--device", "cpu")
    assert (result.exit_code, told in result.output) == (code, True), result.output


def test_other_rows_views_or_folds_are_refused(job):
    path = Path("dataset/train_val.csv")
    whole = path.read_text()
    lines = whole.splitlines()
    path.write_text("\n".join([*lines[:-1], ""]))
    assert vp("finetune", "--device", "cpu").exit_code == 7
    table = pd.read_csv(path.parent / "train_val.csv")
    path.write_text(whole)
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    table.loc[0, "views"] = "7"
    table.to_csv(path, index=False)
    result = vp("finetune", "--device", "cpu")
    assert (result.exit_code, "views in the dataset are not those" in result.output) == (7, True)
    path.write_text(whole)
    folds = Path("work/runs/clip_multimodal/folds.csv")
    folds.write_text(folds.read_text().replace(",0", ",1", 1))
    assert vp("finetune", "--device", "cpu").exit_code == 7


def test_another_encoder_is_refused(job):
    weights = Path("work/models/tiny/model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\0")
    result = vp("finetune", "--device", "cpu")
    assert result.exit_code == 7
    assert "weights_sha256" in result.output


def test_the_factor_is_chosen_by_the_other_folds():
    errors = {0: {"best": [9.0] * 5 + [8.0]}, 1: {"best": [5.0, 1.0, 5.0, 5.0, 5.0, 9.0]}}
    errors[2] = {"best": [5.0, 5.0, 1.0, 5.0, 5.0, 9.0]}
    assert [chosen_factor(errors, fold, "best") for fold in range(3)] == [0.2, 0.4, 0.2]
