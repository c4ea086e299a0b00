"""What SECURITY.md promises: no file that is read runs code, nothing leads out of its folder, no secret is kept."""

import ast
import hashlib
import io
import json
import os
import pickle
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest

from features.encoders import TINY, resolve_encoder
from features.errors import FeatureError
from features.families import load_encoder
from tests.command_line import train, vp

ROOT = Path(__file__).parents[2]
SOURCES = [
    ROOT / "cli.py",
    *(path for floor in ("features", "heads", "pipeline") for path in (ROOT / floor).glob("*.py")),
]
FORBIDDEN_CALLS = {
    *("eval", "exec", "compile", "__import__"),
    *("pickle.load", "pickle.loads", "pickle.Unpickler", "joblib.load", "dill.load", "cloudpickle.load"),
    *("torch.load", "torch.hub.load", "np.load", "numpy.load", "pd.read_pickle", "pd.read_hdf", "yaml.load"),
    *("os.system", "os.popen", "importlib.import_module"),
}
EXPECTED_EXITS = {0, 2, 3, 4, 5, 7}


def calls_in(path):
    """Every call in a source file: its dotted name, and the names of its keyword arguments."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), {keyword.arg: keyword.value for keyword in node.keywords}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_source_file_calls_what_runs_the_content_of_a_file(path):
    for name, keywords in calls_in(path):
        assert name not in FORBIDDEN_CALLS, name
        assert "trust_remote_code" not in keywords
        assert "allow_pickle" not in keywords
        assert "shell" not in keywords


def test_every_loader_of_a_checkpoint_looks_at_local_files_alone():
    loaders = [(name, keywords) for path in SOURCES for name, keywords in calls_in(path) if "from_pretrained" in name]
    assert len(loaders) >= 4
    assert all("local_files_only" in keywords or None in keywords for _, keywords in loaders)


class Bomb:
    """Unpickling it creates a file in the current folder."""

    def __reduce__(self):
        return Path("exploded").touch, ()


def payloads():
    raw = pickle.dumps(Bomb())
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:  # what torch.save writes
        file.writestr("archive/data.pkl", raw)
        file.writestr("archive/version", "3\n")
    objects = io.BytesIO()
    np.save(objects, np.array([Bomb()], dtype=object), allow_pickle=True)
    return {"pickle": raw, "torch": archive.getvalue(), "numpy": objects.getvalue(), "joblib": zlib.compress(raw)}


def plant(path, raw):
    """Put bytes in the place of a file, and make every digest that is known of it fit."""
    if path.suffix == ".h5":
        planted = path.with_name(f"{path.name.split('.')[0]}.{hashlib.sha256(raw).hexdigest()[:16]}.h5")
        manifest = path.parent / "manifest.json"
        manifest.write_text(manifest.read_text().replace(path.name, planted.name))
        path.unlink()
        planted.write_bytes(raw)
        return
    path.write_bytes(raw)
    record = Path("work/runs/lines/run.json")
    if path.is_relative_to(record.parent) and path != record:
        document = json.loads(record.read_text())
        document["files"][path.relative_to(record.parent).as_posix()] = hashlib.sha256(raw).hexdigest()
        record.write_text(json.dumps(document))


COMMANDS = (
    ("status",),
    ("verify",),
    ("report", "--run", "lines"),
    ("submit", "--run", "lines", "--sample", "sample.csv"),
    ("submit", "--run", "lines", "--method", "weighted_mean"),
    ("predict", "--run", "lines", "--title", "a title"),
    ("train-heads", "--head", "linear", "--model", "fake", "--name", "other", "--no-diagnostics", "--no-search"),
)
VICTIMS = (
    *("dataset/train_val.csv", "dataset/train_val/id-001.jpg", "vp.toml", "sample.csv"),
    *("work/embeddings/fake/train_val/manifest.json", "work/embeddings/fake/train_val/image-*.h5"),
    *("work/runs/lines/run.json", "work/runs/lines/oof.csv", "work/runs/lines/metrics.json"),
    *("work/runs/lines/folds.csv", "work/runs/lines/metrics.jsonl", "work/runs/lines/fold_info.csv"),
    "work/runs/lines/checkpoints/lines_fold0_best.safetensors",
)


KINDS = sorted(payloads())
PLANTED = [(victim, KINDS[at % len(KINDS)]) for at, victim in enumerate(VICTIMS)]
PLANTED += [(victim, kind) for victim in VICTIMS for kind in KINDS if victim.endswith((".h5", ".safetensors"))]


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(("victim", "kind"), sorted(set(PLANTED)))
def test_a_pickle_in_the_place_of_any_file_is_never_run(job, victim, kind):
    Path("dataset/test.csv").write_text("id,title,year\nid-001,a title,2020\n")
    Path("sample.csv").write_text("ID,views\nid-001,0\n")
    Path("vp.toml").write_text("")
    plant(next(Path().glob(victim)), payloads()[kind])
    for command in COMMANDS:
        result = vp(*command)
        assert result.exit_code in EXPECTED_EXITS, result.output
    assert not Path("exploded").exists()


EVIL = "from pathlib import Path\nPath('exploded').touch()\nclass Evil: pass\n"


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory):
    return resolve_encoder(TINY, tmp_path_factory.mktemp("tiny")).folder


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "processor_config.json"])
def test_code_in_the_folder_of_a_model_is_never_run(tiny_folder, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "model"
    folder.mkdir()
    for path in tiny_folder.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    for module in ("modeling_evil", "tokenization_evil", "processing_evil", "sitecustomize", "torch", "transformers"):
        (folder / f"{module}.py").write_text(EVIL)
    document = json.loads((folder / name).read_text())
    classes = ("AutoModel", "AutoConfig", "AutoTokenizer", "AutoProcessor", "AutoImageProcessor")
    document["auto_map"] = dict.fromkeys(classes, "modeling_evil.Evil")
    (folder / name).write_text(json.dumps(document))
    try:
        encoder = load_encoder(resolve_encoder(str(folder), tmp_path), ["image", "text"], "cpu", "fp32")
        encoder.tokenize(["a text"])
    except FeatureError as error:
        assert name == "config.json" or "auto_map" in str(error)  # noqa: PT017 - it may as well be left unread
    assert not Path("exploded").exists()
    assert not any("evil" in name for name in sys.modules)


SECRETS = {"WANDB_API_KEY": "wandb-5ecret-" + "a" * 27, "HF_TOKEN": "hf_5ecret" + "b" * 28}


def written_bytes():
    return b"".join(path.read_bytes() for path in Path().rglob("*") if path.is_file())


def test_no_secret_of_the_environment_is_kept_or_told(job, monkeypatch):
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    train("other", "hybrid", "age", "--epochs", "2")
    Path("dataset/test.csv").write_text("id,title,year\nid-001,a title,2020\n")
    told = [vp(*command).output for command in COMMANDS if "--sample" not in command]
    told += [vp("extract", "--model", "no/such-model").output, vp("train-heads", "--folds", "x").output]
    for value in SECRETS.values():
        assert value not in "".join(told)
        assert value.encode() not in written_bytes()


CRASH = """
import sys
import pipeline.status
def status(config, progress):
    import os
    secrets = dict(os.environ)
    raise ZeroDivisionError("a bug")
pipeline.status.status = status
from cli import app
app()
"""


def test_the_traceback_of_a_bug_shows_no_values(job):
    environment = {**os.environ, **SECRETS, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", CRASH, "status"]
    process = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert process.returncode == 1
    assert "ZeroDivisionError: a bug" in process.stderr
    assert "5ecret" not in process.stdout + process.stderr


HOSTILE = "\x1b]0;owned\x07\x1b[31mred\u202e\x9b2J"


def test_ids_and_titles_of_a_dataset_never_steer_the_terminal(job):
    lines = Path("dataset/train_val.csv").read_text().splitlines()
    lines[1:3] = [f'"{HOSTILE}",title,1,2020', f'"{HOSTILE}",title,1,2020']
    Path("dataset/train_val.csv").write_text("\n".join(lines) + "\n")
    told = [vp(*command).output for command in COMMANDS[:3]]
    Path("dataset/train_val.csv").write_text(f'id,title,views,{HOSTILE}\n"{HOSTILE}",{HOSTILE},x,2020\n')
    told += [vp(*command).output for command in COMMANDS]
    told += [vp("status", "--data", HOSTILE, "--work", HOSTILE).output, vp("report", "--run", HOSTILE).output]
    assert not set("".join(told)) & set("\x1b\x07\u202e\x9b")
    assert "\\x1b" in "".join(told)
