"""Tuned towers in a file: what an encoder wears after loading it is what was kept, member after member."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from features.encoders import resolve_encoder
from features.errors import CacheError
from features.families import load_encoder
from pipeline.runs import open_run, seal
from pipeline.tuning.tuned_towers import ChangingEncoder, changed_towers, write_towers


@pytest.fixture
def encoder(tmp_path):
    return resolve_encoder("tiny", tmp_path / "models")


def changing(encoder):
    return ChangingEncoder(load_encoder(encoder, ["image", "text"], "cpu", "fp32"), encoder)


def parameters(changing):
    return {
        f"{kind}.{name}": parameter.detach().clone()
        for kind, tower in changing.encoder.towers.items()
        for name, parameter in tower.named_parameters()
    }


@pytest.fixture
def run(tmp_path, encoder):
    """A sealed folder with the towers of two members; the second changes other tensors than the first."""
    start = parameters(changing(encoder))
    for number, kind in enumerate(["image", "text"]):
        tuned = {name: value + 0.01 * (number + 1) if name.startswith(kind) else value for name, value in start.items()}
        kept, _ = changed_towers(start, tuned)
        facts = {"fold": number, "weights_sha256": encoder.weights_sha256}
        write_towers(tmp_path / "run" / f"{kind}.safetensors", kept, facts)
    seal(tmp_path / "run", {"name": "run"})
    return open_run(tmp_path / "run")


def test_only_what_changed_is_kept():
    start = {"image.a": torch.ones(3), "image.b": torch.ones(3), "heads.c": torch.zeros(1)}
    tuned = start | {"image.b": torch.tensor([1.0, 1.5, 1.0]), "heads.c": torch.ones(1)}
    kept, as_loaded = changed_towers(start, tuned)
    assert {name: value.tolist() for name, value in kept.items()} == {"image.b": [0.0, 0.5, 0.0]}
    assert kept["image.b"].dtype == torch.float16
    assert as_loaded.keys() == {"image.a", "image.b"}
    assert torch.equal(as_loaded["image.b"], tuned["image.b"])


def test_a_difference_is_rounded_and_the_rounded_one_is_what_counts():
    start, tuned = {"image.a": torch.tensor([1.0])}, {"image.a": torch.tensor([1.0003001])}
    kept, as_loaded = changed_towers(start, tuned)
    assert as_loaded["image.a"] == start["image.a"] + kept["image.a"].float()
    assert as_loaded["image.a"] != tuned["image.a"]
    assert as_loaded["image.a"].item() == pytest.approx(tuned["image.a"].item(), abs=1e-6)


def test_an_encoder_wears_one_member_after_the_other_and_nothing_of_the_one_before(run, encoder):
    worn, start = changing(encoder), parameters(changing(encoder))
    for towers, kind, step in [("image", "image", 0.01), ("text", "text", 0.02), ("image", "image", 0.01)]:
        worn.wear(run, f"{towers}.safetensors")
        for name, value in parameters(worn).items():
            expected = start[name] + (step if name.startswith(kind) else 0)
            torch.testing.assert_close(value, expected, rtol=0, atol=1e-5)
    twice = parameters(worn)
    fresh = changing(encoder)
    fresh.wear(run, "image.safetensors")
    assert all(torch.equal(value, twice[name]) for name, value in parameters(fresh).items())


def test_towers_of_another_encoder_are_refused(run, encoder):
    worn = ChangingEncoder(changing(encoder).encoder, replace(encoder, weights_sha256="0" * 64))
    with pytest.raises(CacheError, match="give the encoder that the run was made with"):
        worn.wear(run, "image.safetensors")


def test_a_file_that_was_changed_is_refused(run, encoder):
    path = run.folder / "image.safetensors"
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(CacheError, match="is not the file that the run was saved with"):
        changing(encoder).wear(run, "image.safetensors")


@pytest.mark.parametrize(
    ("facts", "said"),
    [({"format": "other", "weights_sha256": ""}, r"has format \('other', 1\)"), ({}, "is missing or damaged")],
)
def test_a_file_of_another_kind_is_refused(tmp_path, encoder, facts, said):
    folder: Path = tmp_path / "run"
    write_towers(folder / "odd.safetensors", {"image.a": torch.ones(1)}, facts)
    seal(folder, {"name": "run"})
    assert json.loads((folder / "run.json").read_text())["name"] == "run"
    with pytest.raises(CacheError, match=said):
        changing(encoder).wear(open_run(folder), "odd.safetensors")
