"""A small drawn dataset with a run on the untrained tiny encoder, and what trains one of its folds in this process."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from features.families import load_encoder
from features.progress import Silent
from pipeline.config import FinetuneConfig
from pipeline.dataset import read_dataset
from pipeline.drawn_dataset import draw_dataset
from pipeline.finetune import Stage
from pipeline.tuning import begun
from pipeline.tuning.fold import FoldOnDevice
from pipeline.tuning.towers import TrainedTowers
from pipeline.tuning.worker import FinetuneSetup
from pipeline.workspace import Workspace
from tests.command_line import vp
from tests.workers_here import workers_here

EPOCHS = 2
OPTIONS = {"epochs": EPOCHS, "lr": 3e-4, "head_lr": 1e-3, "batch_size": 8, "device": "cpu"}
FLAGS = ("--epochs", EPOCHS, "--lr", 3e-4, "--head-lr", 1e-3, "--batch-size", 8, "--device", "cpu")


def make_frozen(root, text="joined", modalities="image,text,age,channel"):
    """A dataset of 48 and 6 videos, its cache and a run on it."""
    draw_dataset(root / "dataset", n_train=48, n_test=6)
    places = ("--data", root / "dataset", "--work", root / "work", "--quiet")
    heads = ("--no-diagnostics", "--epochs", 2, "--hidden-dim", 16, "--modalities", modalities)
    with workers_here():
        of_vectors = ("--model", "tiny", "--precision", "fp32", "--device", "cpu", "--text", text)
        for command in (("extract", *of_vectors), ("train-heads", *heads)):
            result = vp(*command, *places)
            assert result.exit_code == 0, result.output
    return root


def finetuned(*options):
    """Fine-tune in the current folder.

    One thread computes: several that wait for each other crawl on a machine that does something else as well.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(begun, "own_threads", lambda: 1)
        result = vp("finetune", *FLAGS, *options)
    assert result.exit_code == 0, result.output
    return result


def make_tuned(frozen, root):
    """A copy of a frozen world with a fine-tuned run beside the other; `facts.json` is what the command told."""
    shutil.copytree(frozen, root)
    here = Path.cwd()
    os.chdir(root)
    try:
        told = finetuned("--quiet", "--json").stdout
    finally:
        os.chdir(here)
    (root / "facts.json").write_text(told.strip().splitlines()[-1])
    return root


def prepared(**changes):
    """A fine-tuning in the current folder, read and checked."""
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
    """The inside of a worker: one fold and the towers that it trains."""
    context = replace(stage.context, precision=precision)
    towers = TrainedTowers(load_encoder(context.encoder, context.kinds, "cpu", "fp32"), context.kinds, context.config)
    return FoldOnDevice(context, towers, fold, "cpu", lambda _units: None), towers
