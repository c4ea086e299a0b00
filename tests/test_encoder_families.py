"""Encoders that read only pictures or only texts, through the command line."""

import json
from pathlib import Path

import pytest

from pipeline.drawn_dataset import draw_dataset
from tests.command_line import vp

pytestmark = pytest.mark.usefixtures("in_this_process")


@pytest.fixture
def places(tmp_path: Path) -> list[str]:
    draw_dataset(tmp_path / "dataset", n_train=24, n_test=6)
    return ["--data", str(tmp_path / "dataset"), "--work", str(tmp_path / "work")]


@pytest.fixture
def encoders(dino_folder, sentence_folder) -> dict[str, Path]:
    return {"image": dino_folder("dinov2"), "text": sentence_folder("bert")}


@pytest.mark.parametrize(("kind", "other"), [("image", "text"), ("text", "image")])
def test_an_encoder_of_one_kind_says_once_what_it_leaves_out(encoders, places: list[str], kind: str, other: str):
    folder = encoders[kind]
    done = vp("extract", "--model", str(folder), "--json", *places)
    assert done.exit_code == 0
    assert done.stderr.count(f"{folder.name} makes vectors of {kind} only: no {other}") == 1
    facts = json.loads(done.stdout.splitlines()[-1])
    assert list(facts["splits"]["train_val"]["statuses"]) == [kind]
    trained = vp("train-heads", "--modalities", f"{kind},age", "--head", "linear", "--json", *places)
    assert set(json.loads(trained.stdout.splitlines()[-1])["weights"]) == {kind, "age"}


def test_a_kind_that_was_asked_for_and_is_not_made_is_refused(encoders, places: list[str]):
    refused = vp("extract", "--model", str(encoders["image"]), "--modalities", "image,text", *places)
    assert refused.exit_code == 2
    assert "dinov2 makes vectors of image, not of text" in refused.stderr


def test_an_encoder_that_reads_nothing_of_the_dataset_is_refused(encoders, places: list[str], tmp_path: Path):
    for split in ("train_val", "test"):
        (tmp_path / "dataset" / split).rename(tmp_path / split)
    refused = vp("extract", "--model", str(encoders["image"]), *places)
    assert refused.exit_code == 2
    assert "not of text" in refused.stderr


def test_two_encoders_of_one_kind_each_train_together(encoders, places: list[str]):
    for folder in encoders.values():
        assert vp("extract", "--model", str(folder), *places).exit_code == 0
    trained = vp("train-heads", "--model", "dinov2", "--model", "bert", "--head", "linear", "--json", *places)
    assert set(json.loads(trained.stdout.splitlines()[-1])["weights"]) == {"image@dinov2", "text@bert", "age"}
