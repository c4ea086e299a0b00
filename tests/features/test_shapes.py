import json
import shutil
from pathlib import Path

import pytest

from features.encoders import resolve_encoder
from features.errors import UsageError
from features.hub import KINDS
from features.shapes import read_shape


def shape_of(folder: Path, **config: object):
    return read_shape(folder, config)[1]


def tokenizer_config(folder: Path, **options: object) -> Path:
    (folder / "tokenizer_config.json").write_text(json.dumps(options))
    return folder


def test_what_published_siglip_files_leave_out_has_the_value_of_transformers(tmp_path: Path):
    from transformers import SiglipConfig

    published = {"text_config": {"model_type": "siglip_text_model"}, "vision_config": {}}
    shape, reference = shape_of(tmp_path, model_type="siglip", **published), SiglipConfig(**published)
    assert shape.dim == {"image": reference.vision_config.hidden_size, "text": reference.text_config.projection_size}
    assert shape.image_size == reference.vision_config.image_size
    assert shape.text.max_tokens == reference.text_config.max_position_embeddings


@pytest.mark.parametrize(
    ("options", "letters", "padding"),
    [
        ({}, "lower-case, no punctuation", "right"),
        ({"tokenizer_class": "SiglipTokenizer"}, "lower-case, no punctuation", "right"),
        ({"tokenizer_class": "SiglipTokenizer", "do_lower_case": False}, "as written", "right"),
        ({"tokenizer_class": "GemmaTokenizer", "padding_side": "right"}, "lower-case", "right"),
        ({"tokenizer_class": "Siglip2Tokenizer"}, "lower-case", "left"),
        ({"tokenizer_class": "TokenizersBackend"}, "as written", "right"),
        ({"tokenizer_class": "TokenizersBackend", "do_lower_case": True}, "lower-case", "right"),
    ],
)
def test_how_siglip_reads_a_text_follows_its_tokenizer(tmp_path: Path, options: dict, letters: str, padding: str):
    policy = shape_of(tokenizer_config(tmp_path, **options), model_type="siglip").text
    assert (policy.letters, policy.padding, policy.max_tokens) == (letters, padding, 64)


def test_lower_casing_equals_that_of_the_tokenizer_of_siglip_2():
    from transformers import Siglip2Tokenizer

    from features.texts import TextPolicy

    normalizer = Siglip2Tokenizer().backend_tokenizer.normalizer
    policy = TextPolicy(max_tokens=64, letters="lower-case")
    for text in ["The BEST Cake, Ever?!", "ÀÉÎ Straße ΑΒΓ ДЖ İ", "日本 123"]:
        assert normalizer.normalize_str(text) == policy.prepared(text).replace(" ", "▁")


def test_dino_takes_any_multiple_of_its_patches(tmp_path: Path):
    second, third = (shape_of(tmp_path, model_type=family) for family in ("dinov2", "dinov3_vit"))
    assert (second.dim, second.patch_size, second.image_size) == ({"image": 768}, 14, None)
    assert (third.dim, third.patch_size, third.image_size) == ({"image": 384}, 16, None)


def test_a_picture_that_is_no_multiple_of_the_patches_is_refused(dino_folder, tmp_path: Path):
    folder = Path(shutil.copytree(dino_folder("dinov2"), tmp_path / "copy"))
    path = folder / "preprocessor_config.json"
    path.write_text(path.read_text().replace("28", "30"))
    with pytest.raises(UsageError, match="multiples of 14 pixels, however its preprocessing makes 30 x 30"):
        resolve_encoder(str(folder), tmp_path)


def test_a_siglip_without_its_pooling_head_is_refused(tmp_path: Path):
    with pytest.raises(UsageError, match="vision_use_head"):
        shape_of(tmp_path, model_type="siglip", vision_config={"vision_use_head": False})


def test_naflex_is_refused_with_a_variant_that_works(tmp_path: Path):
    with pytest.raises(UsageError, match=r"NaFlex .* siglip2-base"):
        shape_of(tmp_path, model_type="siglip2")


@pytest.mark.parametrize("model_type", ["resnet", "siglip_vision_model", None])
def test_an_unknown_family_is_refused_with_those_that_work(tmp_path: Path, model_type: str | None):
    with pytest.raises(UsageError, match=f"{', '.join(KINDS)}, however: {model_type}"):
        shape_of(tmp_path, model_type=model_type)


@pytest.mark.parametrize("family", list(KINDS))
def test_code_from_a_repository_is_never_run(tmp_path: Path, family: str):
    with pytest.raises(UsageError, match="never run"):
        shape_of(tmp_path, model_type=family, auto_map={"AutoModel": "evil.Evil"})
