import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from features.errors import UsageError
from features.hub import missing_files, wanted_files, weights_files

MAIN = "a" * 40
OLDER = "b" * 40
USABLE = {
    "config.json": b'{"model_type": "clip"}',
    "preprocessor_config.json": b"{}",
    "vocab.json": b'{"a": 0}',
    "merges.txt": b"#version: 0.2",
    "model.safetensors": b"weights" * 30_000,
    "pytorch_model.bin": b"the same weights again",
    "modeling_evil.py": b"raise SystemExit",
}

FETCH = """
import json, sys
from features.errors import FeatureError
from features.hub import fetch
progress = []
try:
    folder, commit = fetch(
        sys.argv[1],
        sys.argv[2] or None,
        allow_bin_weights=sys.argv[3] == "bin",
        on_progress=lambda done, total: progress.append((done, total)),
    )
    answer = {"files": sorted(path.name for path in folder.iterdir()), "commit": commit, "progress": progress}
except FeatureError as error:
    answer = {"error": type(error).__name__, "says": str(error)}
print(json.dumps(answer))
"""


@dataclass
class SmallHub:
    """The part of the hub's protocol that a download needs, on loopback."""

    repositories: dict[str, dict[str, dict[str, bytes]]]  # id -> revision -> file name -> content
    requests: list[str] = field(default_factory=list)
    url: str = ""

    def find(self, repository: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """Commit and files of a revision."""
        commit = MAIN if revision == "main" else revision
        files = self.repositories.get(repository, {}).get(commit)
        return None if files is None else (commit, files)


class Handler(BaseHTTPRequestHandler):
    """Answers for `server.hub`."""

    def log_message(self, *_args: object) -> None:
        """Stay quiet."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.hub.requests.append(f"{self.command} {path}")
        parts = path.removeprefix("/api/models").strip("/").split("/")
        if len(parts) < 4:
            return self.answer(404, b"")
        repository, what, revision, file = "/".join(parts[:2]), parts[2], parts[3], "/".join(parts[4:])
        found = self.server.hub.find(repository, revision)
        if found is None:
            known = repository in self.server.hub.repositories
            return self.answer(404, b"", X_Error_Code="RevisionNotFound" if known else "RepoNotFound")
        return self.serve(what, repository, *found, file)

    def serve(self, what: str, repository: str, commit: str, files: dict[str, bytes], file: str) -> None:
        if what == "resolve":
            self.send_file(commit, files[file])
        elif what == "tree":
            self.answer(200, json.dumps([entry(*item) for item in files.items()]).encode())
        else:
            self.answer(200, json.dumps({"id": repository, "sha": commit}).encode())

    def send_file(self, commit: str, content: bytes) -> None:
        etag = hashlib.sha256(content).hexdigest()
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0])
        self.answer(206 if start else 200, content[start:], X_Repo_Commit=commit, ETag=f'"{etag}"')

    def answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def entry(path: str, content: bytes) -> dict[str, object]:
    return {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha256(content).hexdigest()}


@pytest.fixture
def hub() -> Iterator[SmallHub]:
    only_pickles = {name: content for name, content in USABLE.items() if name != "model.safetensors"}
    small = SmallHub(
        {"some/clip": {MAIN: USABLE, OLDER: USABLE}, "old/clip": {MAIN: only_pickles}, "no/model": {MAIN: {"a": b""}}}
    )
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.hub = small
    small.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield small
    server.shutdown()
    server.server_close()
    thread.join()


def fetched(url: str, home: Path, hub_id: str, revision: str = "", weights: str = "", **environment: str) -> dict:
    inherited = {name: os.environ[name] for name in ("PATH", "PYTHONPATH", "VIRTUAL_ENV") if name in os.environ}
    settings = {"HF_ENDPOINT": url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "HF_HUB_DOWNLOAD_TIMEOUT": "2"}
    done = subprocess.run(
        [sys.executable, "-W", "error::ResourceWarning", "-c", FETCH, hub_id, revision, weights],
        env=inherited | settings | environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    assert "%|" not in done.stderr  # no bar of somebody else
    return json.loads(done.stdout)


def test_a_first_use_downloads_only_what_an_encoder_needs_and_reports_its_bytes(hub: SmallHub, tmp_path: Path):
    answer = fetched(hub.url, tmp_path, "some/clip")
    kept = sorted(set(USABLE) - {"pytorch_model.bin", "modeling_evil.py"})
    assert (answer["files"], answer["commit"]) == (kept, MAIN)
    done, total = answer["progress"][-1]
    assert done == total == sum(len(USABLE[name]) for name in kept)
    assert answer["progress"] == sorted(answer["progress"])


def test_a_second_use_asks_no_network(hub: SmallHub, tmp_path: Path):
    first = fetched(hub.url, tmp_path, "some/clip")
    hub.requests.clear()
    again = fetched(hub.url, tmp_path, "some/clip")
    pinned = fetched(hub.url, tmp_path, "some/clip", MAIN)
    unplugged = fetched("http://127.0.0.1:9", tmp_path, "some/clip")
    offline = fetched(hub.url, tmp_path, "some/clip", HF_HUB_OFFLINE="1")
    assert hub.requests == []
    assert all(answer == first | {"progress": []} for answer in (again, pinned, unplugged, offline))


def test_an_interrupted_download_is_completed(hub: SmallHub, tmp_path: Path):
    fetched(hub.url, tmp_path, "some/clip")
    weights = next(tmp_path.rglob("snapshots/*/model.safetensors"))
    weights.resolve().unlink()
    weights.unlink()
    assert "model.safetensors" in fetched(hub.url, tmp_path, "some/clip")["files"]


def test_an_older_commit_is_used_if_it_is_asked_for(hub: SmallHub, tmp_path: Path):
    assert fetched(hub.url, tmp_path, "some/clip")["commit"] == MAIN
    assert fetched(hub.url, tmp_path, "some/clip", OLDER)["commit"] == OLDER


def test_a_commit_that_is_nowhere_is_refused(hub: SmallHub, tmp_path: Path):
    answer = fetched(hub.url, tmp_path, "some/clip", "c" * 40)
    assert answer["error"] == "CacheError"
    assert "neither on this machine nor on the hub" in answer["says"]


def test_an_unknown_repository_is_refused(hub: SmallHub, tmp_path: Path):
    answer = fetched(hub.url, tmp_path, "some/typo")
    assert answer["error"] == "UsageError"
    assert "there is no model some/typo" in answer["says"]


def test_a_repository_without_a_model_is_refused(hub: SmallHub, tmp_path: Path):
    assert "must hold config.json" in fetched(hub.url, tmp_path, "no/model")["says"]


@pytest.mark.parametrize("environment", [{"HF_ENDPOINT": "http://127.0.0.1:9"}, {"HF_HUB_OFFLINE": "1"}])
def test_a_missing_model_without_network_says_how_to_get_it(hub: SmallHub, tmp_path: Path, environment: dict[str, str]):
    answer = fetched(hub.url, tmp_path, "some/clip", **environment)
    assert answer["error"] == "UsageError"
    assert "`vp extract --model some/clip`" in answer["says"]
    assert "--model /path/to/folder" in answer["says"]


def test_pickled_weights_are_refused_before_they_are_downloaded(hub: SmallHub, tmp_path: Path):
    answer = fetched(hub.url, tmp_path, "old/clip")
    assert answer["error"] == "UsageError"
    assert "--allow-bin-weights" in answer["says"]
    assert not any("pytorch_model.bin" in request for request in hub.requests)


def test_pickled_weights_are_fetched_if_they_are_allowed_and_still_refused_if_not(hub: SmallHub, tmp_path: Path):
    assert "pytorch_model.bin" in fetched(hub.url, tmp_path, "old/clip", weights="bin")["files"]
    assert "--allow-bin-weights" in fetched(hub.url, tmp_path, "old/clip")["says"]


def test_a_name_that_cannot_be_a_repository_is_refused(hub: SmallHub, tmp_path: Path):
    assert "cannot be the name" in fetched(hub.url, tmp_path, "some/cl--ip")["says"]


def test_shards_are_wanted_with_their_index_and_nothing_else():
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    listing = [*shards, "model.safetensors.index.json", "model.fp16.safetensors", "pytorch_model.bin", "config.json"]
    assert wanted_files(listing) == ["config.json", *shards, "model.safetensors.index.json"]


def test_a_folder_says_what_it_lacks(tmp_path: Path):
    (tmp_path / "vocab.json").write_text("{}")
    assert missing_files(tmp_path) == [
        "config.json",
        "preprocessor_config.json",
        "tokenizer.json (or vocab.json and merges.txt)",
        "model.safetensors",
    ]


def test_a_missing_shard_is_missed(tmp_path: Path):
    for name in ("config.json", "processor_config.json", "tokenizer.json", "model-00001-of-00002.safetensors"):
        (tmp_path / name).write_text("{}")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert len(weights_files(tmp_path)) == 3
    assert missing_files(tmp_path) == ["model-00002-of-00002.safetensors"]


@pytest.mark.parametrize("content", ["", "[1]", "{"])
def test_an_index_that_is_no_json_object_is_refused(tmp_path: Path, content: str):
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(UsageError, match="JSON"):
        weights_files(tmp_path)


def test_a_sentence_encoder_needs_its_pooling_and_nothing_of_other_runtimes():
    sentence = ["1_Pooling/config.json", "config_sentence_transformers.json", "modules.json"]
    sentence += ["sentence_bert_config.json", "tokenizer.json"]
    others = ["onnx/model.onnx", "openvino/openvino_model.xml", "vocab.txt", "2_Dense/model.safetensors", "README.md"]
    listing = ["config.json", "model.safetensors", *sentence, *others]
    assert sorted(wanted_files(listing)) == sorted(["config.json", "model.safetensors", *sentence])


@pytest.mark.parametrize(
    ("model_type", "lacks"),
    [
        ("clip", ["preprocessor_config.json", "tokenizer.json (or vocab.json and merges.txt)"]),
        ("siglip", ["preprocessor_config.json", "tokenizer.json"]),
        ("dinov2", ["preprocessor_config.json"]),
        ("bert", ["tokenizer.json", "modules.json", "1_Pooling/config.json"]),
        ("resnet", []),
    ],
)
def test_a_folder_lacks_what_its_family_needs(tmp_path: Path, model_type: str, lacks: list[str]):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    assert missing_files(tmp_path) == [*lacks, "model.safetensors"]


def test_a_sentence_encoder_is_downloaded_with_its_pooling(hub: SmallHub, tmp_path: Path):
    usable = dict.fromkeys(("tokenizer.json", "modules.json", "1_Pooling/config.json"), b"{}")
    usable |= {"config.json": b'{"model_type": "bert"}', "model.safetensors": b"weights"}
    hub.repositories["some/sentences"] = {MAIN: usable | {"onnx/model.onnx": b"no"}}
    answer = fetched(hub.url, tmp_path, "some/sentences")
    assert answer["files"] == sorted({name.partition("/")[0] for name in usable})
    hub.requests.clear()
    assert fetched(hub.url, tmp_path, "some/sentences")["commit"] == MAIN
    assert hub.requests == []
