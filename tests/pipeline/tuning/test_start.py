"""Runs, videos, folds and encoders that a fine-tuning can begin with, and those that it refuses."""

import hashlib
import json
from pathlib import Path

import pandas as pd
import pytest

from pipeline.tuning.start import START_WITHIN
from tests.command_line import copy_to_work_in, vp
from tests.pipeline.tuning.world import make_frozen, prepared

AGAIN = (
    "vp train-heads --name clip_multimodal --model tiny --modalities image,text,age,channel --no-diagnostics "
    "--epochs 2 --hidden-dim 16"
)
"""What made the run, with its own options."""


@pytest.fixture(scope="module")
def frozen(tmp_path_factory):
    return make_frozen(tmp_path_factory.mktemp("frozen"))


@pytest.fixture
def job(frozen, tmp_path, monkeypatch):
    return copy_to_work_in(frozen, tmp_path, monkeypatch)


def refused(code, *options):
    result = vp("finetune", "--device", "cpu", *options)
    assert result.exit_code == code, result.output
    assert not list(Path("work/runs").glob("*_finetuned"))
    return result.output


def test_the_start_is_the_run(job):
    start = prepared().start
    assert start.run.name == "clip_multimodal"
    assert start.kind_of == {"image": "image", "text": "text"}
    assert [source.modality for source in start.from_table] == ["age", "channel"]
    assert start.frozen == ["channel"]
    assert start.cached_precision == "fp32"
    assert START_WITHIN[start.cached_precision] == 0.01


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--modalities", "age,channel"), "a run with one encoder, however other has none"),
        (("--head", "trees"), "takes an additive head"),
        (("--head", "mlp", "--epochs", 1, "--seeds", 2), "takes a run with one seed"),
        (("--head", "hybrid", "--epochs", 1, "--joint"), "takes an additive head"),
    ],
)
def test_a_run_that_cannot_be_tuned_is_refused(job, options, told):
    assert vp("train-heads", "--no-diagnostics", "--name", "other", *options).exit_code == 0
    assert told in refused(2, "--init", "other")


def test_a_run_must_be_named_where_there_are_several(job):
    heads = ("--head", "linear", "--no-search", "--no-diagnostics", "--modalities", "age")
    assert vp("train-heads", "--name", "other", *heads).exit_code == 0
    assert "choose with --init, one of clip_multimodal, other" in refused(2)
    assert "no run in" in refused(7, "--work", "elsewhere")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--name", "clip_multimodal"), "is the run that this starts from"),
        (("--unfreeze", "first:1"), "all, or last:N"),
        (("--lora", 2, "--freeze-clip"), "--lora and --freeze-clip exclude each other"),
        (("--lora", -1), "--lora takes a rank of at least 1"),
        (("--lr", 0), "--lr and --head-lr must be above 0"),
        (("--layer-decay", 1.5), "--layer-decay must be above 0 and at most 1"),
    ],
)
def test_options_that_make_no_sense_are_refused(job, options, told):
    assert told in refused(2, *options)


def test_other_rows_are_refused(job):
    path = Path("dataset/train_val.csv")
    path.write_text("\n".join([*path.read_text().splitlines()[:-1], ""]))
    told = refused(7)
    assert "was trained on 48 videos that are not the 47" in told
    assert told.endswith(f": run `{AGAIN}` again\n")


def test_other_views_are_refused(job):
    path = Path("dataset/train_val.csv")
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    table.loc[0, "views"] = "7"
    table.to_csv(path, index=False)
    told = refused(7)
    assert "views in the dataset are not those" in told
    assert told.endswith(f": run `{AGAIN}` again\n")


def test_other_folds_are_refused(job):
    path = Path("work/runs/clip_multimodal/oof.csv")
    path.write_text(path.read_text().replace(",0,", ",1,", 1))
    assert "oof.csv is not the file that the run was saved with" in refused(7)
    record = json.loads(path.with_name("run.json").read_text())
    record["files"]["oof.csv"] = hashlib.sha256(path.read_bytes()).hexdigest()
    path.with_name("run.json").write_text(json.dumps(record))
    told = refused(7)
    assert "the folds of run clip_multimodal are not those that its run.json names" in told
    assert told.endswith(f": run `{AGAIN}` again\n")


def test_a_run_that_is_not_there_is_told_with_those_that_are(job):
    assert "; there is: clip_multimodal: run `vp train-heads --name nope`, or name one of these" in refused(
        7, "--init", "nope"
    )


def test_another_encoder_is_refused(job):
    weights = Path("work/models/tiny/model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\0")
    assert "weights_sha256" in refused(7)
