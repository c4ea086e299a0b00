import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

import cli
from features import quantised
from pipeline.drawn_dataset import draw_dataset


@pytest.fixture
def places(tmp_path: Path) -> list[str]:
    draw_dataset(tmp_path / "dataset", n_train=24, n_test=6)
    return ["--data", str(tmp_path / "dataset"), "--work", str(tmp_path / "work"), "--device", "cpu"]


def extract(*arguments: str):
    return CliRunner().invoke(cli.app, ["extract", "--model", "tiny", *arguments], catch_exceptions=False)


def manifest(tmp_path: Path, split: str) -> dict:
    return json.loads((tmp_path / "work/embeddings/tiny" / split / "manifest.json").read_text())


def measurements(tmp_path: Path) -> dict:
    environment = manifest(tmp_path, "train_val")["environment"]
    return {name: value for name, value in environment.items() if name.startswith("int8")}


@pytest.fixture(params=["here", pytest.param("in workers", marks=pytest.mark.slow)])
def anywhere(request):
    if request.param == "here":
        request.getfixturevalue("in_this_process")


@pytest.mark.usefixtures("anywhere")
def test_int8_is_measured_told_and_kept_in_the_manifest(places: list[str], tmp_path: Path):
    done = extract("--precision", "int8", *places)
    assert done.exit_code == 0
    assert done.stderr.count("int8: image vectors have a cosine of 0.99") == 1
    assert done.stderr.count("int8: text vectors have a cosine of 0.99") == 1
    for split in ("train_val", "test"):
        written = manifest(tmp_path, split)
        assert written["semantic"]["precision"] == "int8"
        for kind in ("image", "text"):
            assert json.loads(written["environment"][f"int8_agreement_{kind}"])["centred_mean"] > 0.99


@pytest.mark.usefixtures("in_this_process")
def test_a_cache_in_int8_is_measured_once_and_gone_on_with(places: list[str], tmp_path: Path, monkeypatch):
    extract("--precision", "int8", *places)
    first = manifest(tmp_path, "train_val")
    monkeypatch.delattr(quantised, "measured_agreement")
    for precision in ("int8", "auto"):
        assert extract("--precision", precision, *places).exit_code == 0
    assert manifest(tmp_path, "train_val") == first


@pytest.mark.usefixtures("in_this_process")
def test_a_kind_that_comes_later_is_measured_and_what_was_measured_stays(places: list[str], tmp_path: Path):
    extract("--precision", "int8", "--modalities", "text", *places)
    first = measurements(tmp_path)
    assert list(first) == ["int8_agreement_text"]
    done = extract(*places)
    assert (done.exit_code, done.stderr.count("int8: image vectors have"), done.stderr.count("int8: text")) == (0, 1, 0)
    both = measurements(tmp_path)
    assert both == first | {"int8_agreement_image": both["int8_agreement_image"]}
    assert extract(*places).stderr.count("have a cosine") == 0


def test_an_encoder_that_8_bits_change_too_much_is_refused_before_anything_is_written(
    places: list[str], tmp_path: Path, monkeypatch
):
    monkeypatch.setattr(quantised, "MIN_MEAN_COSINE", 1.0)
    refused = extract("--precision", "int8", *places)
    assert refused.exit_code == 2
    assert "use --precision fp32" in refused.stderr
    assert not (tmp_path / "work" / "embeddings").exists()


@pytest.mark.usefixtures("in_this_process")
def test_int8_and_fp32_are_never_mixed_in_one_cache(places: list[str]):
    extract("--precision", "int8", *places)
    refused = extract("--precision", "fp32", *places)
    assert refused.exit_code == 7
    assert "precision" in refused.stderr
