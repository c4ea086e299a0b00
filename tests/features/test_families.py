import subprocess
import sys
from pathlib import Path

import pytest

from features.embed import Encoder
from features.encoders import resolve_encoder
from features.errors import UsageError
from features.families import load_encoder
from features.hub import KINDS
from features.tiny import build_tiny


@pytest.fixture(scope="module")
def folder_of(siglip_folder: Path, dino_folder, sentence_folder, tmp_path_factory: pytest.TempPathFactory):
    def folder(family: str) -> Path:
        if family == "siglip":
            return siglip_folder
        if family == "clip":
            build_tiny(tmp_path_factory.mktemp("clip") / "tiny")
            return next(tmp_path_factory.getbasetemp().glob("clip*/tiny"))
        return dino_folder(family) if family.startswith("dino") else sentence_folder(family)

    return folder


@pytest.mark.parametrize("family", list(KINDS))
def test_every_family_is_found_from_its_folder_and_makes_the_vectors_it_announces(folder_of, family: str):
    import numpy as np

    folder = folder_of(family)
    config = resolve_encoder(str(folder), folder.parent)
    assert (config.family, tuple(config.dim)) == (family, KINDS[family])
    encoder = load_encoder(config, KINDS[family], "cpu", "fp32")
    assert isinstance(encoder, Encoder)
    if config.preprocess:
        pixels = np.zeros((2, 3, *config.preprocess.output), np.uint8)
        assert encoder.encode_images(pixels).shape == (2, config.dim["image"])
    if config.text:
        tokens, _ = encoder.tokenize(["the best", ""])
        assert encoder.encode_tokens(tokens, encoder.text_layout.max_tokens).shape == (2, config.dim["text"])


@pytest.mark.parametrize(("family", "kind"), [("dinov2", "text"), ("bert", "image")])
def test_a_kind_that_the_encoder_does_not_make_is_refused(folder_of, family: str, kind: str):
    folder = folder_of(family)
    with pytest.raises(UsageError, match=f"not of {kind}"):
        load_encoder(resolve_encoder(str(folder), folder.parent), [kind], "cpu", "fp32")


def test_choosing_a_family_imports_no_other():
    check = "import sys; import features.families; sys.exit(bool({'torch', 'transformers'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


def test_only_the_tower_of_images_is_compiled_because_its_batches_have_one_shape(folder_of, monkeypatch):
    import torch

    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda tower, **options: compiled.append((tower, options)))
    folder = folder_of("clip")
    encoder = load_encoder(resolve_encoder(str(folder), folder.parent), ["image", "text"], "cpu", "fp32", compiled=True)
    assert compiled == [(encoder.towers["image"], {"dynamic": False})]
