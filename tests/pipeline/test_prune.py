"""`vp prune` removes leftovers and what was named, under the locks, and never what vp did not write."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

import cli
from features import durable
from features.lock import writer_lock
from features.store import EmbeddingStore
from pipeline.outcome import table
from tests.command_line import vp

GONE = 2**22 + 1
"""No process has this number: Linux gives at most 2^22."""


def facts(*arguments):
    return json.loads(vp("prune", "--json", *arguments).stdout.strip().splitlines()[-1])


def tree(folder=Path("work")):
    """Every file but locks, which come and go."""
    return {path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"}


@pytest.fixture
def littered(job, monkeypatch):
    """A work folder with leftovers of every kind, and files that are none; returns the leftovers."""
    monkeypatch.setattr(durable, "_HOST", "here")
    (job.cache / "quarantine").mkdir()
    leftovers = {
        job.cache / "image-000000.0123456789abcdef.h5": 100,
        job.cache / "quarantine" / "text-000001.0123456789abcdef.h5": 200,
        job.cache / f".tmp-elsewhere-1-{'0' * 32}": 300,
        job.work / "runs" / f".tmp-{durable._HOST}-{GONE}-{'0' * 32}": 400,
        job.work / "runs" / ".other.building" / "folds.csv": 500,
    }
    (job.work / "runs" / ".other.building").mkdir()
    for path, size in leftovers.items():
        path.write_bytes(bytes(size))
    (job.cache / "notes.txt").write_text("mine")
    (job.work / "runs" / f".tmp-elsewhere-1-{'0' * 32}").write_text("of another machine")
    return set(leftovers)


def test_a_clean_work_folder_has_nothing_to_remove(job):
    result = vp("prune")
    assert result.stdout == "0 files, 0 B to remove; nothing is removed without --yes\n"
    assert result.exit_code == 0


def test_leftovers_are_listed_and_nothing_is_removed(littered, job):
    before = tree()
    result = vp("prune")
    zeros = 32 * "0"
    listed = [
        ["file", "why", "bytes"],
        [f"work/embeddings/fake/train_val/.tmp-elsewhere-1-{zeros}", "temporary file", 300],
        ["work/embeddings/fake/train_val/image-000000.0123456789abcdef.h5", "superseded shard", 100],
        ["work/embeddings/fake/train_val/quarantine/text-000001.0123456789abcdef.h5", "quarantine", 200],
        ["work/runs/.other.building", "abandoned run", 500],
        [f"work/runs/.tmp-here-{GONE}-{zeros}", "temporary file", 400],
    ]
    assert result.stdout.splitlines() == [
        *table(listed),
        "left alone: work/embeddings/fake/train_val/notes.txt was not written by vp",
        "5 files, 1.5 kB to remove; nothing is removed without --yes",
    ]
    assert "next: vp prune --yes\n" in result.stderr
    assert tree() == before
    assert facts()["size_bytes"] == 1500
    assert facts()["left"] == ["work/embeddings/fake/train_val/notes.txt was not written by vp"]


def test_with_yes_leftovers_go_and_nothing_else(littered, job):
    before = tree()
    assert vp("prune", "--yes").exit_code == 0
    assert before - tree() == littered
    assert not (job.cache / "quarantine").exists()
    assert vp("verify", "--quiet").exit_code == 0


def test_what_is_superseded_goes_and_the_cache_stays_whole(job, fake_encoder):
    old = set(job.shards("text"))
    job.world.rows[0][1] = "another title"
    job.world.write()
    job.world.make(fake_encoder(), folder=job.cache)
    (superseded,) = (Path(file["path"]) for file in facts("--yes")["files"])
    assert superseded in old
    assert not superseded.exists()
    assert EmbeddingStore.open(job.cache).read("text").present.all()
    assert vp("verify", "--quiet").exit_code == 0
    job.world.make(None, folder=job.cache)


@pytest.mark.parametrize("lock", [".part-1-of-1.lock", ".part-2-of-3.lock"])
def test_while_any_part_is_written_nothing_is_removed(littered, job, lock):
    before = tree()
    with writer_lock(job.cache / lock):
        result = vp("prune", "--yes")
        assert "is held by process" in vp("prune").stderr
    assert result.exit_code == 6
    assert tree() == before


def test_a_run_that_is_being_built_is_not_abandoned(littered, job):
    before = tree()
    with writer_lock(job.work / "runs" / ".other.lock"):
        assert vp("prune", "--yes").exit_code == 6
    assert tree() == before


def test_a_temporary_file_of_a_live_process_stays(job):
    path = job.work / "submissions" / f".tmp-{durable._HOST}-{os.getpid()}-{'0' * 32}"
    path.parent.mkdir()
    path.write_text("x")
    vp("prune", "--yes")
    assert path.exists()


def test_a_folder_that_was_never_finished_goes_and_one_behind_a_link_stays(job, monkeypatch):
    monkeypatch.setattr(durable, "_HOST", "here")
    mine, models = Path("mine"), job.work / "models"
    unfinished, link = (models / f".tmp-here-{GONE}-{digit * 32}" for digit in "01")
    for folder in (mine, unfinished):
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
    link.symlink_to(mine.resolve())
    assert [(file["path"], file["why"]) for file in facts("--yes")["files"]] == [(str(unfinished), "unfinished folder")]
    assert (unfinished.exists(), link.is_symlink(), (mine / "config.json").exists()) == (False, True, True)


@pytest.mark.parametrize("text", ["", '{"format": "vp-cache", "schema": 2}'])
def test_shards_beside_a_manifest_that_cannot_be_read_stay(littered, job, text):
    (job.cache / "manifest.json").write_text(text)
    result = vp("prune", "--yes")
    assert result.exit_code == 7
    assert (job.cache / "image-000000.0123456789abcdef.h5").exists()
    assert len(job.shards("text")) == 3


def test_shards_without_a_manifest_stay(job):
    (job.cache / "manifest.json").unlink()
    vp("prune", "--yes")
    assert len(job.shards("text")) == 3


def test_a_whole_cache_goes_with_a_warning_of_who_needs_it(job):
    result = vp("prune", "--cache", "fake")
    assert "run lines needs the cache fake" in result.stderr
    assert "next: vp prune --yes --cache fake\n" in result.stderr
    assert job.cache.exists()
    assert vp("prune", "--cache", "fake", "--yes").exit_code == 0
    assert not (job.work / "embeddings" / "fake").exists()
    assert job.run.exists()


def test_a_file_of_mine_in_a_removed_cache_stays(littered, job):
    vp("prune", "--cache", "fake", "--yes")
    assert tree(job.cache) == {job.cache / "notes.txt"}


def test_a_damaged_cache_can_be_removed_by_name(job):
    (job.cache / "manifest.json").write_text("")
    assert vp("prune", "--cache", "fake", "--yes").exit_code == 0
    assert not job.cache.exists()


def test_a_run_goes_with_everything_it_holds_but_files_of_mine(job):
    (job.run / "checkpoints" / "mine.txt").write_text("x")
    (job.run / "report.html").write_text("x")
    assert vp("prune", "--run", "lines", "--yes").exit_code == 0
    assert tree(job.run) == {job.run / "checkpoints" / "mine.txt"}
    assert len(job.shards("text")) == 3


def test_removing_a_run_and_its_cache_needs_no_warning(job):
    result = vp("prune", "--cache", "fake", "--run", "lines", "--yes")
    assert "warning" not in result.stderr
    assert tree() == set()


@pytest.mark.parametrize("arguments", [("--cache", "nothing"), ("--run", "nothing"), ("--run", "../dataset")])
def test_a_name_that_is_not_there_is_a_usage_error(job, arguments):
    result = vp("prune", "--yes", *arguments)
    assert result.exit_code == 2
    assert "there is:" in result.stderr


def test_a_link_is_never_followed_out_of_the_work_folder(job, tmp_path):
    outside = tmp_path / "outside"
    (outside / "quarantine").mkdir(parents=True)
    precious = outside / "quarantine" / "text-000001.0123456789abcdef.h5"
    precious.write_text("precious")
    (job.work / "embeddings" / "fake" / "test").symlink_to(outside)
    (job.cache / "quarantine").symlink_to(outside / "quarantine")
    (job.cache / "image-000000.0123456789abcdef.h5").symlink_to(precious)
    (job.work / "runs" / ".linked.building").symlink_to(outside)
    (job.run / "linked").symlink_to(outside)
    assert "lies outside of the work folder" in vp("prune").stdout
    for arguments in ((), ("--cache", "fake"), ("--run", "lines")):
        vp("prune", "--yes", *arguments)
    assert precious.read_text() == "precious"
    assert (job.run / "linked").is_symlink()


def test_runs_that_lie_elsewhere_are_left_alone(job, tmp_path):
    (job.work / "runs").rename(tmp_path / "runs")
    (job.work / "runs").symlink_to(tmp_path / "runs")
    (tmp_path / "runs" / ".other.building").mkdir()
    vp("prune", "--yes")
    vp("prune", "--yes", "--run", "lines")
    assert (tmp_path / "runs" / ".other.building").exists()
    assert (tmp_path / "runs" / "lines" / "run.json").exists()


AS_NOBODY = """
import contextlib, os, sys
import cli
for command in (["status", "--hash"], ["verify"], ["prune"]):  # loads every module, while they can be read
    with contextlib.suppress(SystemExit):
        cli.app([*command, "--quiet"])
if os.geteuid() == 0:  # nothing is read-only for root
    os.setuid(65534)
cli.app(sys.argv[1:])
"""


@pytest.fixture
def read_only(littered, job):
    """A copy of the littered job that nobody may write to, at a place that everybody may read."""
    with tempfile.TemporaryDirectory() as place:
        Path(place).chmod(0o755)
        root = Path(shutil.copytree(Path.cwd(), Path(place) / "job", copy_function=shutil.copy2))
        for path in (root, *root.rglob("*")):
            path.chmod(0o555 if path.is_dir() else 0o444)
        yield root
        for path in (root, *root.rglob("*")):
            path.chmod(0o755)


@pytest.mark.parametrize(
    ("command", "code"),
    [(["status", "--hash"], 0), (["verify"], 0), (["prune"], 0), (["prune", "--yes"], 5)],
    ids=["status", "verify", "prune", "prune --yes"],
)
def test_a_read_only_folder_can_be_looked_at_and_verified_but_not_pruned(read_only, command, code):
    environment = {"PYTHONPATH": str(Path(cli.__file__).parent), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", AS_NOBODY, *command],
        cwd=read_only, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, "Traceback" in done.stderr) == (code, False), done.stderr
    assert ("cannot write" in done.stderr) == (code == 5)
