import dataclasses
import hashlib
import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from features import hub
from features.encoders import resolve_encoder
from features.errors import UsageError
from features.tiny import build_tiny

COMMIT = "a" * 40


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "tiny"
    build_tiny(folder)
    return folder


@pytest.fixture
def folder(checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoint, tmp_path / "my clip"))


@pytest.fixture
def asked(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    """What is asked of a hub that has the tiny checkpoint under every id."""
    calls: list[tuple] = []

    def fetch(hub_id: str, revision: str | None, *, allow_bin_weights: bool, on_progress) -> tuple[Path, str]:
        calls.append((hub_id, revision, allow_bin_weights))
        return checkpoint, revision or COMMIT

    monkeypatch.setattr(hub, "fetch", fetch)
    return calls


def edit_config(folder: Path, **changes: object) -> None:
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(content | changes))


def test_a_folder_is_used_in_place(folder: Path, tmp_path: Path):
    config = resolve_encoder(str(folder), tmp_path / "models")
    assert (config.tag, config.source, config.revision, config.family) == ("my-clip", "my clip", None, "clip")
    assert config.folder == folder
    assert (config.dim, config.image_size, config.text.max_tokens) == ({"image": 64, "text": 64}, 64, 77)
    assert config.preprocess.output == (64, 64)
    assert config.weights_sha256 == hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert config.notices == ()


@pytest.mark.parametrize("name", ["ViT-L-14", "ViT-L/14", "vit-l/14", "VIT-L-14"])
def test_a_short_name_can_be_written_in_several_ways(asked: list, tmp_path: Path, name: str):
    config = resolve_encoder(name, tmp_path)
    assert (config.tag, config.source) == ("ViT-L-14", "openai/clip-vit-large-patch14")
    assert config.revision == COMMIT
    assert asked == [("openai/clip-vit-large-patch14", None, True)]


@pytest.mark.parametrize("name", ["ViT-L-14-336", "ViT-L/14@336px", "vit-l-14@336px"])
def test_the_larger_input_has_names_of_its_own(asked: list, tmp_path: Path, name: str):
    assert resolve_encoder(name, tmp_path).tag == "ViT-L-14-336"


def test_a_hub_id_is_fetched_and_its_pickles_need_permission(asked: list, tmp_path: Path):
    assert resolve_encoder("some/clip.v2", tmp_path).tag == "some--clip.v2"
    resolve_encoder("some/clip.v2", tmp_path, allow_bin_weights=True)
    resolve_encoder("openai/clip-vit-base-patch32", tmp_path)
    assert [allowed for _, _, allowed in asked] == [False, True, True]


def test_the_commit_of_a_cache_is_asked_for_again(asked: list, tmp_path: Path):
    assert resolve_encoder("ViT-B-32", tmp_path, expected_revision="b" * 40).revision == "b" * 40
    assert asked[0][1] == "b" * 40


def test_a_folder_has_no_commit_and_is_known_by_its_hashes(folder: Path, checkpoint: Path, tmp_path: Path):
    config = resolve_encoder(str(folder), tmp_path, expected_revision=COMMIT)
    assert config.revision is None
    assert config.semantic() == resolve_encoder(str(checkpoint), tmp_path).semantic()


@pytest.mark.parametrize("name", ["ViT-L-15", "vit-l", "/no/such/folder", "./missing", "a/b/c", "", "CLIP"])
def test_an_unknown_name_is_refused_with_the_forms_that_work(asked: list, tmp_path: Path, name: str):
    with pytest.raises(UsageError, match=r"short name .* hub id .* folder"):
        resolve_encoder(name, tmp_path)
    assert asked == []


def test_an_unknown_name_is_answered_with_close_ones(tmp_path: Path):
    with pytest.raises(UsageError, match=r"Close: .*ViT-L-14[,.]"):
        resolve_encoder("ViT-L-15", tmp_path)


def test_tiny_is_built_once_and_says_what_it_is(tmp_path: Path):
    first = resolve_encoder("tiny", tmp_path / "models")
    built = first.folder.stat().st_mtime_ns
    assert resolve_encoder("tiny", tmp_path / "models") == first
    assert first.folder.stat().st_mtime_ns == built
    assert first.folder == tmp_path / "models" / "tiny"
    assert "random weights" in first.notices[0]


def test_the_same_files_mean_the_same_vectors_wherever_they_lie(folder: Path, checkpoint: Path, tmp_path: Path):
    here, there = (resolve_encoder(str(place), tmp_path).semantic() for place in (folder, checkpoint))
    assert here == there
    assert str(tmp_path) not in json.dumps(here)
    assert json.loads(json.dumps(here)) == here


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors", "processor_config.json"])
def test_every_file_counts_for_the_meaning_of_a_vector(folder: Path, tmp_path: Path, name: str):
    before = resolve_encoder(str(folder), tmp_path).semantic()
    if name == "processor_config.json":
        text = (folder / name).read_text()
        (folder / name).write_text(text.replace('"resample": 3', '"resample": 2'))
    else:
        (folder / name).write_bytes((folder / name).read_bytes() + b"\n")
    assert resolve_encoder(str(folder), tmp_path).semantic() != before


def test_an_encoder_travels_to_worker_processes(folder: Path, tmp_path: Path):
    config = resolve_encoder(str(folder), tmp_path)
    assert pickle.loads(pickle.dumps(config)) == config
    assert dataclasses.replace(config, tag="other") != config


def test_what_config_files_leave_out_has_the_value_of_transformers(folder: Path, tmp_path: Path):
    from transformers import CLIPConfig

    size = {"shortest_edge": 224}
    options = {"image_processor": {"size": size, "crop_size": 224}}
    (folder / "processor_config.json").write_text(json.dumps(options))
    (folder / "config.json").write_text('{"model_type": "clip"}')
    config, reference = resolve_encoder(str(folder), tmp_path), CLIPConfig.from_pretrained(folder)
    assert config.dim["image"] == config.dim["text"] == reference.projection_dim
    assert config.image_size == reference.vision_config.image_size
    assert config.text.max_tokens == reference.text_config.max_position_embeddings


@pytest.mark.parametrize("name", ["config.json", "processor_config.json", "tokenizer.json", "model.safetensors"])
def test_a_folder_that_lacks_a_file_is_refused_by_its_name(folder: Path, tmp_path: Path, name: str):
    (folder / name).unlink()
    with pytest.raises(UsageError, match="lacks " + name.replace("processor", "preprocessor").replace(".", r"\.")):
        resolve_encoder(str(folder), tmp_path)


def test_another_kind_of_model_is_refused_by_its_name(folder: Path, tmp_path: Path):
    edit_config(folder, model_type="chinese_clip")
    with pytest.raises(UsageError, match="chinese_clip"):
        resolve_encoder(str(folder), tmp_path)


def test_a_model_that_needs_its_own_code_is_refused(folder: Path, tmp_path: Path):
    edit_config(folder, auto_map={"AutoModel": "modeling_evil.Evil"})
    with pytest.raises(UsageError, match="never run"):
        resolve_encoder(str(folder), tmp_path)


def test_a_crop_of_another_size_than_the_encoder_takes_is_refused(folder: Path, tmp_path: Path):
    edit_config(folder, vision_config={"image_size": 96})
    with pytest.raises(UsageError, match="96 x 96"):
        resolve_encoder(str(folder), tmp_path)


def test_pickled_weights_in_a_folder_need_permission_and_give_notice(folder: Path, tmp_path: Path):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UsageError, match="--allow-bin-weights"):
        resolve_encoder(str(folder), tmp_path)
    assert "weights_only=True" in resolve_encoder(str(folder), tmp_path, allow_bin_weights=True).notices[0]


def test_the_name_of_a_blob_in_the_hub_cache_is_its_hash(folder: Path, tmp_path: Path):
    blob = tmp_path / "blobs" / ("0" * 64)
    blob.parent.mkdir()
    (folder / "model.safetensors").rename(blob)
    (folder / "model.safetensors").symlink_to(blob)
    assert resolve_encoder(str(folder), tmp_path).weights_sha256 == "0" * 64


def test_finding_an_encoder_imports_neither_torch_nor_transformers(folder: Path, tmp_path: Path):
    check = (
        "import sys, pathlib; from features.encoders import resolve_encoder;"
        "resolve_encoder(sys.argv[1], pathlib.Path('.'));"
        "sys.exit(bool({'torch', 'transformers', 'huggingface_hub'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", check, str(folder)], check=False).returncode == 0


def test_what_the_vectors_of_a_clip_are_known_by_never_changes(folder: Path, tmp_path: Path):
    semantic = resolve_encoder(str(folder), tmp_path).semantic()
    assert list(semantic) == [
        *("family", "weights_sha256", "config_sha256", "tokenizer_sha256", "image", "text", "dim", "image_size")
    ]
    assert json.dumps(semantic["text"]) == (
        '{"max_tokens": 77, "mode": "joined", "characters": 2000, "html_unescape": 1, "surrogates": "U+FFFD", '
        '"nul": "removed", "unicode": "NFC", "truncation": "keep the end token"}'
    )
    assert {**semantic["image"], "decoder": 0} == {
        "mode": "shortest",
        "size": [64, 64],
        "resample": "bicubic",
        "crop": [64, 64],
        "rescale_factor": 1 / 255,
        "mean": [0.48145466, 0.4578275, 0.40821073],
        "std": [0.26862954, 0.26130258, 0.27577711],
        "decoder": 0,
    }
    assert (semantic["family"], semantic["dim"], semantic["image_size"]) == ("clip", {"image": 64, "text": 64}, 64)


@pytest.mark.parametrize("name", ["tokenizer.json", "modules.json", "1_Pooling/config.json"])
def test_a_sentence_encoder_that_lacks_a_file_is_refused_by_its_name(sentence_folder, tmp_path: Path, name: str):
    folder = Path(shutil.copytree(sentence_folder("bert"), tmp_path / "copy"))
    (folder / name).unlink()
    with pytest.raises(UsageError, match=f"lacks {name}: "):
        resolve_encoder(str(folder), tmp_path)


def test_the_prefix_that_only_a_model_card_tells_is_known_by_the_hub_id(sentence_folder, monkeypatch, tmp_path: Path):
    folder = sentence_folder("xlm-roberta")
    monkeypatch.setattr(hub, "fetch", lambda *_args, **_options: (folder, COMMIT))
    assert resolve_encoder("multilingual-e5-small", tmp_path).text.prepared("cake") == "query: cake"
    assert resolve_encoder(str(folder), tmp_path).text.prepared("cake") == "cake"
