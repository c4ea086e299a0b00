"""Every command, stopped or failed at every single call to the disk, and then run again.

Whatever happens: each file that a reader finds is the old one or the new one, whole; the exit code and the last line of
stdout say how it ended; and the same command, run again, makes what an undisturbed one makes and leaves nothing else.
"""

import contextlib
import csv
import errno
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

import cli
from features import durable
from features.errors import CacheError
from features.store import EmbeddingStore
from pipeline.runs import open_run
from tests.command_line import last_json, vp
from tests.faulty_disk import (
    CountingDisk,
    CrowdedDisk,
    Died,
    DyingProcess,
    FailingDisk,
    PowerCut,
    ReadOnlyDisk,
    SteppedDisk,
)
from tests.undrawn import leave_charts_out
from tests.workers_here import workers_here

pytestmark = pytest.mark.timeout(1800)  # a job that is stopped everywhere runs hundreds of times

CODES = (errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EROFS)
TRAIN, TEST = 6, 4


# What a reader finds, by name; equal only if all of it is. Reading it fails if it is not whole.


def caches() -> dict[str, object]:
    found = {}
    for folder in sorted(Path("work/embeddings/tiny").glob("*")):
        if (folder / "manifest.json").exists():
            store = EmbeddingStore.open(folder)
            for kind in store.plan.dims:
                store.read(kind)
            found[folder.name] = (folder / "manifest.json").read_bytes()
    return found


def run(name: str) -> dict[str, object]:
    try:
        found = open_run(Path("work/runs") / name)
    except CacheError as error:
        assert "no run in" in str(error)  # noqa: PT017 - anything else than an absent run is a failure
        return {}
    return {"run": [(found.folder / "run.json").read_bytes(), *map(found.verified, found.part("files"))]}


def files(pattern: str) -> dict[str, object]:
    return {str(path): path.read_bytes() for path in sorted(Path().glob(pattern))}


@dataclass(frozen=True)
class Command:
    """How it is typed, what takes a folder in which all commands have run to the state before it, and its results."""

    words: str
    before: Callable[[], object]
    found: Callable[[], dict[str, object]]


HEADS = "train-heads --name lines --head linear --modalities age --folds 2 --no-search --no-diagnostics"
WORDS = HEADS.replace("lines", "words").replace("age", "text,age")
TUNED = "finetune --init words --name tuned --epochs 1 --device cpu"
SLOW = pytest.mark.slow
COMMANDS = {
    "extract": Command("extract --model tiny", lambda: shutil.rmtree("work/embeddings"), caches),
    "extract again": Command("extract --model tiny", lambda: write_dataset(Path("dataset"), TRAIN + 3), caches),
    "train-heads": Command(HEADS, lambda: shutil.rmtree("work/runs"), lambda: run("lines")),
    "train-heads again": Command(f"{HEADS} --seed 7", lambda: None, lambda: run("lines")),
    "finetune": Command(TUNED, lambda: None, lambda: run("tuned")),
    "submit": Command(
        "submit --run lines", lambda: shutil.rmtree("work/submissions"), lambda: files("work/submissions/[!.]*")
    ),
    "submit again": Command("submit --run lines --space views", lambda: None, lambda: files("work/submissions/[!.]*")),
    "report": Command(
        "report --run lines",
        lambda: Path("work/runs/lines/report.html").write_text("the old page"),
        lambda: files("work/runs/lines/report.*"),
    ),
    "predict": Command(
        "predict --run lines --csv dataset/test.csv --out work/predictions.csv",
        lambda: Path("work/predictions.csv").write_text("the old predictions"),
        lambda: files("work/predictions.csv"),
    ),
}
"""A command that comes to publish something is one line here."""


def write_dataset(data: Path, n_train: int) -> None:
    for split, n_rows in (("train_val", n_train), ("test", TEST)):
        (data / split).mkdir(parents=True, exist_ok=True)
        for row in range(n_rows):
            shade = np.full((9, 12, 3), 20 * row + len(split), np.uint8)
            path = data / split / f"{split}-{row}.jpg"
            Image.fromarray(shade).save(path, "PNG")
            os.utime(path, (1e9, 1e9))
        rows = [[f"{split}-{row}", f"title {row}", 2010 + row % 4, 10**row] for row in range(n_rows)]
        with (data / f"{split}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([["id", "title", "year", "views"], *rows])


class Noon(datetime):
    """A clock that stands still, so that equal results are equal bytes."""

    @classmethod
    def now(cls, tz=None):
        return cls(2026, 1, 1, 12, tzinfo=tz)


def stop_the_clock(patch: pytest.MonkeyPatch) -> None:
    for module in ("features.cache", "pipeline.run_files", "pipeline.submit"):
        patch.setattr(f"{module}.datetime", Noon)
    patch.setattr("pipeline.train_heads.time", SimpleNamespace(monotonic=lambda: 0.0))


def stop_the_clock_of_finetune(patch: pytest.MonkeyPatch) -> None:
    """Apart, as its modules import torch."""
    for module in ("pipeline.finetune", "pipeline.tuning.loop"):
        patch.setattr(f"{module}.time", SimpleNamespace(monotonic=lambda: 0.0))


@pytest.fixture(scope="module", autouse=True)
def small_and_still():
    """Shards of a few rows, workers in this process, where the disk can fail them, and no time that passes."""
    with workers_here(), pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.extract.CPU_ROWS_PER_SHARD", 4)
        stop_the_clock(patch)
        stop_the_clock_of_finetune(patch)
        leave_charts_out(patch)
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory, small_and_still):
    """A folder in which every command has run once."""
    root = tmp_path_factory.mktemp("finished")
    write_dataset(root / "dataset", TRAIN)
    with contextlib.chdir(root):
        for words in ("extract --model tiny", HEADS, WORDS, "submit --run lines", "report --run lines"):
            result = vp(*words.split(), "--quiet")
            assert result.exit_code == 0, result.output
    return root


class Job:
    """A command in a folder of its own, which can be had anew, and what it finds and makes undisturbed.

    It is stopped at every call to the disk, or at one of each kind: the middle one.
    """

    def __init__(self, command: Command, finished: Path, root: Path, *, at_every_call: bool = True) -> None:
        self.command, self._finished, self.root = command, finished, root
        self.anew()
        self._finished_from: set[object] = set()
        self.old = command.found()
        disk = CountingDisk()
        assert self.run(disk).exit_code == 0
        self.stops = list(enumerate(disk.calls, start=1))
        if not at_every_call:
            kinds = [[stop for stop in self.stops if stop[1] == kind] for kind in sorted(set(disk.calls))]
            self.stops = [stops[len(stops) // 2] for stops in kinds]
        self.new, self.names = command.found(), self.published()
        assert self.new
        assert self.new != self.old

    def anew(self) -> None:
        """The state before the command."""
        shutil.rmtree(self.root, ignore_errors=True)
        shutil.copytree(self._finished, self.root, copy_function=shutil.copy2)
        os.chdir(self.root)
        self.command.before()

    def run(self, disk: durable.DiskCalls | None = None):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(durable, "calls", disk or SteppedDisk())
            return vp(*self.command.words.split(), "--json", "--quiet")

    def published(self) -> set[str]:
        """The names of everything in the work folder but locks, and what tells how fast the last shards were made."""
        return {
            str(path)
            for path in Path("work").rglob("*")
            if not path.name.startswith(".part-") and path.suffix != ".lock" and path.name != "timing.json"
        }

    def check(self) -> None:
        """What a reader finds is the old state or the new one, file by file."""
        found = self.command.found()
        assert found.keys() <= self.old.keys() | self.new.keys()
        for name in self.old.keys() | self.new.keys():
            assert found.get(name) in (self.old.get(name), self.new.get(name)), name
        if (Path("work/submissions/lines_ensemble_mean.csv")).exists():
            check_ids()

    def finish(self) -> None:
        """The same command, run again, makes what an undisturbed one makes, and leaves nothing else.

        What it makes depends on the work folder alone, so it is run once from each state of it.
        """
        state = work_folder()
        if state in self._finished_from:
            return
        self._finished_from.add(state)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(durable, "is_alive", lambda _pid: False)  # the process that died was this one
            result = self.run()
        assert result.exit_code == 0, result.output
        assert self.command.found() == self.new
        assert self.published() == self.names


def work_folder() -> frozenset[tuple[str, bytes | None]]:
    """Everything in it; one temporary name is as good as another, and who held a lock does not matter."""
    paths = [path for path in Path("work").rglob("*") if not path.name.endswith(".holder.json")]
    return frozenset(
        (re.sub(r"\.tmp-[\w-]+", ".tmp", str(path)), path.read_bytes() if path.is_file() else None) for path in paths
    )


def check_ids() -> None:
    """A submission has the ids of the test table, in their order."""
    with Path("work/submissions/lines_ensemble_mean.csv").open(newline="") as file:
        ids = [row[0] for row in csv.reader(file)]
    assert ids == ["ID", *(f"test-{row}" for row in range(TEST))]


ALWAYS = ["extract again", "train-heads again", "submit again", "report", "predict"]


@pytest.fixture(
    params=[
        *(pytest.param((name, False), id=name) for name in ALWAYS),
        *(pytest.param((name, True), id=f"{name}, every call", marks=SLOW) for name in COMMANDS),
    ]
)
def job(request, finished, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name, at_every_call = request.param
    return Job(COMMANDS[name], finished, tmp_path / "job", at_every_call=at_every_call)


@pytest.fixture(params=[name for name in COMMANDS if name != "finetune"])
def short_job(request, finished, tmp_path, monkeypatch):
    """One that takes no minutes to be stopped everywhere."""
    monkeypatch.chdir(tmp_path)
    return Job(COMMANDS[request.param], finished, tmp_path / "job")


def stopped_at_each(job: Job, disk_at: Callable[[int], Any], but: str = "") -> Iterator[tuple[Any, Any]]:
    """The disk and the result (None for a process that died) of each run that is stopped at some call to the disk."""
    for at, call in job.stops:
        if call != but:
            job.anew()
            disk = disk_at(at)
            try:
                result = job.run(disk)
            except Died:
                result = None
            assert disk.happened
            yield disk, result


def test_a_process_that_dies_before_any_call_to_the_disk_loses_nothing(job):
    for _, result in stopped_at_each(job, DyingProcess, but="sync"):  # which changes nothing that can be seen
        assert result is None
        job.check()
        job.finish()


def assert_told(result, job: Job) -> None:
    """A failure is one message, one line of JSON and exit code 5; or it did not matter, and everything is new."""
    facts = last_json(result)
    if result.exit_code == 0:
        assert job.command.found() == job.new
        return
    assert (result.exit_code, facts["exit_code"]) == (5, 5), result.output
    assert facts["error"].startswith("cannot write ")
    assert facts["error"].endswith("run the same command again.")
    assert f"error: {facts['error']}\n" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_disk_that_fails_at_any_call_is_told_and_loses_nothing(job):
    for disk, result in stopped_at_each(job, lambda at: FailingDisk(CODES[at % len(CODES)], at)):
        assert_told(result, job)
        job.check()
        assert disk.failed == "remove_tree" or not list(Path("work").rglob(".tmp-*"))
        job.finish()


@pytest.mark.slow
@pytest.mark.parametrize("code", CODES)
def test_a_disk_that_fails_for_any_reason_at_any_call_is_told_and_loses_nothing(short_job, code):
    for _, result in stopped_at_each(short_job, lambda at: FailingDisk(code, at)):
        assert_told(result, short_job)
        short_job.check()
        short_job.finish()


@pytest.mark.slow
@pytest.mark.parametrize("names_lost", [False, True])
def test_a_machine_that_stops_before_any_call_to_the_disk_loses_nothing(short_job, tmp_path, names_lost):
    (tmp_path / "spare").mkdir()
    for disk, _ in stopped_at_each(short_job, lambda at: PowerCut(at, tmp_path / "spare", names_lost=names_lost)):
        disk.happen(short_job.root)
        short_job.check()
        short_job.finish()


def test_on_a_disk_that_cannot_be_written_what_is_finished_can_be_used_and_nothing_else_is_begun(finished, monkeypatch):
    monkeypatch.chdir(finished)
    monkeypatch.setattr(durable, "calls", ReadOnlyDisk())
    before = work_folder()
    for words in ("extract --model tiny", "status", "verify", "prune", "predict --run lines --year 2014 --title x"):
        assert vp(*words.split(), "--quiet").exit_code == 0, words
    for words in (HEADS, "submit --run lines", "report --run lines", "prune --yes --run lines"):
        result = vp(*words.split(), "--quiet")
        assert (result.exit_code, "Read-only file system" in result.stderr) == (5, True), words
    assert work_folder() == before


DIE = """
import os, sys
import cli, pytest
from features import durable
from tests.faulty_disk import DyingProcess
from tests.test_faults import stop_the_clock

class Ending(DyingProcess):
    def before(self, call):
        self.left -= 1
        if self.left == 0:
            os._exit(137)

stop_the_clock(pytest.MonkeyPatch())
for line in sys.stdin:
    folder, at, *words = line.split()
    child = os.fork()
    if child == 0:
        os.chdir(folder)
        durable.calls = Ending(int(at))
        cli.app([*words, "--quiet"])
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.mark.parametrize("name", [pytest.param("train-heads again", marks=SLOW), "submit again"])
def test_a_process_that_is_really_gone_leaves_what_the_next_one_needs(finished, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    job = Job(COMMANDS[name], finished, tmp_path / "job")
    environment = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parent)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": environment}
    with subprocess.Popen([sys.executable, "-c", DIE], **pipes) as forking:
        for at, _ in job.stops[:: max(1, len(job.stops) // 6)]:
            job.anew()
            print(job.root, at, job.command.words, file=forking.stdin, flush=True)
            assert forking.stdout.readline() == "137\n"
            job.check()
            assert job.run().exit_code == 0
            assert job.command.found() == job.new
            assert job.published() == job.names
        forking.stdin.close()


def test_signals_and_short_writes_are_not_noticed(job):
    job.anew()
    result = job.run(CrowdedDisk())
    assert result.exit_code == 0, result.output
    assert job.command.found() == job.new
    assert job.published() == job.names
