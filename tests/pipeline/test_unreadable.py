"""What this user may not read is told as such: never taken for nothing, and never the end of everything else."""

import os
import shutil
from pathlib import Path

import pytest

from tests.command_line import vp

WORK = Path("work")
TOLD = "cannot be read: Permission denied"


@pytest.fixture
def other(job):
    """A second run, which some user may not read."""
    return Path(shutil.copytree(job.run, job.run.with_name("other")))


def lines_of(result, name):
    return [line for line in result.stdout.splitlines() if line.startswith(f"{name} ")]


@pytest.mark.parametrize("spoil", ["forbid", "chmod"])
def test_beside_a_run_that_cannot_be_read_all_others_are_told(other, request, spoil):
    if spoil == "chmod" and os.geteuid() == 0:
        pytest.skip("root may read everything")
    if spoil == "chmod":
        other.chmod(0)
        request.addfinalizer(lambda: other.chmod(0o755))
    else:
        request.getfixturevalue("forbid")(other)
    told = vp("status")
    assert told.exit_code == 7
    assert lines_of(told, "lines")[0].endswith("whole")
    assert lines_of(told, "other")[0].endswith("damaged")
    assert told.stdout.endswith(f"\nother\n  run other {TOLD}: let this user read {other}\n")
    verified = vp("verify", "--quiet")
    assert verified.exit_code == 7
    assert f"{other}: run other {TOLD}\n" in verified.stdout
    assert verified.stderr == f"error: 1 fault; to repair: let this user read {other}\n"
    for command in ("submit", "report"):
        assert "choose with --run, one of lines, other" in vp(command).stderr
        refused = vp(command, "--run", "other")
        assert (refused.exit_code, f"run other {TOLD}" in refused.stderr) == (7, True)


def test_a_part_of_a_run_that_cannot_be_read_is_a_fault_of_that_run(job, forbid):
    forbid(job.run / "checkpoints")
    told = vp("status")
    assert (told.exit_code, f"run lines {TOLD}" in told.stdout) == (7, True)
    verified = vp("verify", "--quiet")
    assert verified.exit_code == 7
    assert f"{job.run}/checkpoints/lines_fold0_best.safetensors: {TOLD}\n" in verified.stdout


@pytest.mark.parametrize("folder", ["runs", "embeddings", "embeddings/fake"])
@pytest.mark.parametrize("command", ["status", "verify", "prune"])
def test_a_folder_that_cannot_be_read_is_never_an_empty_one(job, forbid, folder, command):
    forbid(WORK / folder)
    result = vp(command)
    assert result.exit_code == 7
    assert result.stderr.endswith(f"error: {WORK / folder} {TOLD}: let this user read {WORK / folder}\n")


@pytest.mark.parametrize(
    ("folder", "command"),
    [
        ("runs", ("submit",)),
        ("runs", ("submit", "--run", "lines")),
        ("runs", ("report",)),
        ("embeddings", ("train-heads",)),
        ("embeddings/fake", ("train-heads",)),
        ("embeddings/fake", ("train-heads", "--model", "fake")),
    ],
)
def test_what_needs_such_a_folder_says_that_it_cannot_be_read(job, forbid, folder, command):
    forbid(WORK / folder)
    result = vp(*command)
    assert result.exit_code == 7
    assert TOLD in result.stderr
    assert f"let this user read {WORK / folder}" in result.stderr
    assert "vp extract" not in result.stderr


def test_a_cache_that_cannot_be_read_is_a_fault_and_the_rest_goes_on(job, forbid):
    forbid(job.cache)
    told = vp("status")
    assert told.exit_code == 7
    assert lines_of(told, "fake/train_val")[0].endswith("damaged")
    assert f"  {job.cache} {TOLD}: let this user read {job.cache}\n" in told.stdout
    assert "it was trained on the cache" not in told.stdout  # nobody can tell whether it still is that cache
    verified = vp("verify", "--quiet")
    assert (verified.exit_code, f"{job.cache} {TOLD}" in verified.stdout) == (7, True)


def test_what_was_set_aside_and_cannot_be_read_is_told(job, forbid):
    (job.cache / "quarantine").mkdir()
    forbid(job.cache / "quarantine")
    told = vp("status")
    assert (told.exit_code, f"  {job.cache / 'quarantine'} {TOLD}" in told.stdout) == (7, True)


def test_a_run_that_was_being_built_and_cannot_be_read_is_left_alone(job, forbid):
    (job.work / "runs" / ".other.building").mkdir()
    forbid(job.work / "runs" / ".other.building")
    told = vp("status")
    assert (told.exit_code, ".other" in told.stdout) == (0, False)
    assert vp("submit", "--run", "other").exit_code == 7


def test_a_work_folder_that_nobody_can_look_at_is_refused(job, forbid):
    Path("locked").mkdir()
    forbid(Path("locked"))
    result = vp("status", "--work", "locked/work")
    assert (result.exit_code, "--work must be a folder that can be read" in result.stderr) == (2, True)
