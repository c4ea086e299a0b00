"""A run is there whole or not at all, whenever a process dies; what was changed since is never used."""

import dataclasses
import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import pipeline
from features import durable
from features.errors import CacheError, LockedError, UsageError
from features.lock import writer_lock
from pipeline.runs import abandoned, building, only_run, open_run, read_run, run_names, seal

SOURCE = Path(pipeline.__file__).parent.parent

MAKE = """
import os, sys
from pathlib import Path

from pipeline.runs import building, seal


def make(folder, text):
    with building(folder) as aside:
        (aside / "checkpoints").mkdir()
        for name in ("checkpoints/0", "a.csv", "m.json", "z.csv"):
            (aside / name).write_text(text)
        seal(aside, {"text": text})


def die_at(last):
    calls = iter(range(last + 1))

    def counted(call):
        def count(*arguments, **options):
            if next(calls) == last:
                os._exit(9)
            return call(*arguments, **options)

        return count

    for name in ("mkdir", "open", "write", "fsync", "replace", "rename", "unlink", "rmdir"):
        setattr(os, name, counted(getattr(os, name)))


root = Path(sys.argv[1])
for step in range(500):
    folder = root / f"{step:03d}" / "run"
    if sys.argv[2] == "again":
        make(folder, "old")
    child = os.fork()
    if child == 0:
        die_at(step)
        make(folder, "new")
        os._exit(0)
    if os.waitpid(child, 0)[1] == 0:
        break
"""


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """Folders of runs; in each the process that made the run died one system call later than in the one before."""
    roots = {}
    for which in ("first", "again"):
        roots[which] = tmp_path_factory.mktemp(which)
        subprocess.run([sys.executable, "-c", MAKE, roots[which], which], check=True, cwd=SOURCE, timeout=60)
    return roots


def folders_of(root, tmp_path):
    """Copies of them, to go on with."""
    shutil.copytree(root, tmp_path / "runs")
    folders = sorted((tmp_path / "runs").iterdir())
    assert 10 < len(folders) < 500
    return [folder / "run" for folder in folders]


def make(folder, text, others=()):
    """A run whose every file holds the same text."""
    with building(folder) as aside:
        for name in ("data.txt", *others):
            (aside / name).write_text(text)
        seal(aside, {"text": text})


def text_of(folder):
    """What a reader gets, every file checked; "" if there is no run."""
    try:
        run = open_run(folder)
    except CacheError:
        return ""
    assert {run.verified(name).read_text() for name in run.record["files"]} == {run.record["text"]}
    return run.record["text"]


def fail(folder, error):
    """Half a run."""

    def run():
        with building(folder) as aside:
            (aside / "data.txt").write_text("half")
            raise error

    with pytest.raises(error):
        run()


def left_beside(folder):
    return {path.name for path in folder.parent.iterdir()} - {folder.name, f".{folder.name}.lock"}


def test_a_reader_finds_the_old_run_or_the_new_one_whenever_the_writer_was_killed(killed, tmp_path):
    found = [text_of(folder) for folder in folders_of(killed["again"], tmp_path)]
    assert found == sorted(found, reverse=True)
    assert set(found) == {"old", "new"}


def test_a_first_run_is_there_or_not_whenever_the_writer_was_killed(killed, tmp_path):
    found = [text_of(folder) for folder in folders_of(killed["first"], tmp_path)]
    assert found == sorted(found)
    assert set(found) == {"", "new"}


@pytest.mark.parametrize("which", ["again", "first"])
def test_the_next_run_is_made_and_the_rest_cleared_away_whenever_the_last_was_killed(killed, tmp_path, which):
    for folder in folders_of(killed[which], tmp_path):
        make(folder, "next")
        assert text_of(folder) == "next"
        assert left_beside(folder) == set()
        assert {path.name for path in folder.iterdir()} == {"run.json", "data.txt"}


@pytest.mark.parametrize("which", ["again", "first"])
def test_what_was_finished_outlives_a_next_run_that_fails_whenever_the_last_was_killed(killed, tmp_path, which):
    for folder in folders_of(killed[which], tmp_path):
        was_sealed = (folder.parent / ".run.building" / "run.json").is_file()
        expected = "new" if was_sealed else text_of(folder)
        fail(folder, ValueError)
        assert text_of(folder) == expected
        assert left_beside(folder) == set()


def test_the_only_run_is_named_whenever_its_replacement_was_killed(killed, tmp_path):
    assert {only_run(folder.parent) for folder in folders_of(killed["again"], tmp_path)} == {"run"}


def test_a_folder_that_was_not_sealed_is_worthless(tmp_path):
    aside = tmp_path / ".run.building"
    aside.mkdir()
    (aside / "metrics.json").write_text("{}")
    with pytest.raises(CacheError, match=r"no run in .*run: run `vp train-heads --name run`"):
        open_run(tmp_path / "run")
    with pytest.raises(CacheError, match=r"no run in .*: run `vp train-heads` first"):
        only_run(tmp_path)
    with building(tmp_path / "run") as again:
        assert list(again.iterdir()) == []
        seal(again, {})
    assert open_run(tmp_path / "run").record["files"] == {}


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_after_an_error_nothing_has_changed(tmp_path, error):
    make(tmp_path / "run", "old")
    fail(tmp_path / "run", error)
    assert text_of(tmp_path / "run") == "old"
    assert left_beside(tmp_path / "run") == set()


def test_a_run_that_was_set_aside_comes_back_if_the_new_one_is_gone(tmp_path):
    make(tmp_path / "run", "old")
    (tmp_path / "run").rename(tmp_path / ".run.replaced")
    fail(tmp_path / "run", ValueError)
    assert text_of(tmp_path / "run") == "old"


def test_nothing_of_the_old_run_is_left_in_the_new_one(tmp_path):
    make(tmp_path / "run", "old", ["report.html"])
    make(tmp_path / "run", "new")
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["data.txt", "run.json"]


def test_a_reader_needs_no_lock(tmp_path):
    make(tmp_path / "run", "old")
    with writer_lock(tmp_path / ".run.lock"):
        assert text_of(tmp_path / "run") == "old"


def test_a_swap_is_not_finished_under_the_hands_of_another_process(tmp_path):
    make(tmp_path / "run", "new")
    (tmp_path / "run").rename(tmp_path / ".run.building")
    with writer_lock(tmp_path / ".run.lock"), pytest.raises(LockedError):
        open_run(tmp_path / "run")
    assert text_of(tmp_path / "run") == "new"


def test_runs_of_other_names_are_made_side_by_side(tmp_path):
    with building(tmp_path / "one") as one:
        make(tmp_path / "two", "two")
        (one / "data.txt").write_text("one")
        seal(one, {"text": "one"})
    assert (text_of(tmp_path / "one"), text_of(tmp_path / "two")) == ("one", "two")


def test_the_seal_holds_the_digest_of_every_file(tmp_path):
    with building(tmp_path / "run") as aside:
        (aside / "a" / "b").mkdir(parents=True)
        contents = {"z.csv": b"\xff\x00", "a/b/c.json": b"{}", "a/empty": b""}
        for name, content in contents.items():
            (aside / name).write_bytes(content)
        seal(aside, {"name": "Ünï"})
    record = json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    assert record == {"format": "vp-run", "schema": 1, "name": "Ünï", "files": digests}
    assert open_run(tmp_path / "run").record == record


def test_what_a_dead_worker_was_writing_is_no_part_of_the_run(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    with building(tmp_path / "run") as aside:
        (aside / "checkpoints").mkdir()
        (aside / "checkpoints" / "whole").write_text("x")
        (aside / "checkpoints" / f".tmp-{durable._HOST}-{ended.pid}-{'0' * 32}").write_text("half")
        seal(aside, {})
    assert list(open_run(tmp_path / "run").record["files"]) == ["checkpoints/whole"]
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["whole"]


def test_a_file_that_changed_was_lost_or_was_added_is_refused_by_name(tmp_path):
    make(tmp_path / "run", "{}", ["metrics"])
    run = open_run(tmp_path / "run")
    assert run.read_json("metrics") == {}
    (run.folder / "metrics").write_text("[]")
    with pytest.raises(CacheError, match="metrics is not the file that the run was saved with"):
        run.read_json("metrics")
    (run.folder / "metrics").unlink()
    with pytest.raises(CacheError, match=r"metrics is missing: run `vp train-heads --name run` again"):
        run.read_json("metrics")
    tuned = dataclasses.replace(run, record={**run.record, "finetuned_from": {}})
    with pytest.raises(CacheError, match=r"metrics is missing: run `vp finetune --name run` again"):
        tuned.verified("metrics")
    with pytest.raises(CacheError, match="planted is missing"):
        run.read_json("planted")
    (run.folder / "planted").write_text("{}")
    with pytest.raises(CacheError, match="planted is not the file"):
        run.read_json("planted")


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff", b"[]", b"null", b'"run"', b"{}", b'{"format": "vp-run"}', b'{"schema": 1}']
)
def test_a_damaged_record_is_an_expected_error(tmp_path, content):
    make(tmp_path / "run", "text")
    (tmp_path / "run" / "run.json").write_bytes(content)
    with pytest.raises(CacheError, match=r"run\.json is damaged .*`vp train-heads`"):
        open_run(tmp_path / "run")


@pytest.mark.parametrize("lost", ["files", "folds", "modalities"])
def test_a_record_that_lacks_a_part_is_an_expected_error(tmp_path, lost):
    with building(tmp_path / "run") as aside:
        seal(aside, {"folds": {"n": 2}, "modalities": ["age"]})
    record = tmp_path / "run" / "run.json"
    record.write_text(json.dumps({name: part for name, part in json.loads(record.read_text()).items() if name != lost}))
    read = {
        "files": lambda run: run.verified("x"),
        "folds": lambda run: run.n_folds,
        "modalities": lambda run: run.modalities,
    }
    with pytest.raises(CacheError, match=rf"run\.json lacks '{lost}'"):
        read[lost](open_run(tmp_path / "run"))


@pytest.mark.parametrize(("changes", "found"), [({"schema": 2}, "('vp-run', 2)"), ({"format": "x"}, "('x', 1)")])
def test_a_record_of_another_version_is_refused_with_both_versions(tmp_path, changes, found):
    make(tmp_path / "run", "text")
    record = tmp_path / "run" / "run.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | changes))
    with pytest.raises(CacheError) as told:
        open_run(tmp_path / "run")
    assert f"run.json has format {found}, this vp reads vp-run 1" in str(told.value)


def test_the_only_run_is_taken_whatever_lies_beside_it(tmp_path):
    make(tmp_path / "b.1", "text")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / ".other.replaced").mkdir()
    (tmp_path / ".other.replaced" / "run.json").touch()
    assert only_run(tmp_path) == "b.1"


def test_a_run_whose_first_swap_was_interrupted_counts(tmp_path):
    make(tmp_path / "run", "new")
    (tmp_path / "run").rename(tmp_path / ".run.building")
    assert only_run(tmp_path) == "run"
    assert text_of(tmp_path / "run") == "new"


def test_of_several_runs_the_user_chooses(tmp_path):
    for name in ("b", "a", "c"):
        make(tmp_path / name, name)
    (tmp_path / "c").rename(tmp_path / ".c.building")
    with pytest.raises(UsageError, match=r"choose with --run, one of a, b, c$"):
        only_run(tmp_path)


def test_a_name_that_no_run_has_is_told_with_those_that_there_are(tmp_path):
    for name in ("b", "a"):
        make(tmp_path / name, name)
    with pytest.raises(CacheError) as told:
        open_run(tmp_path / "nope")
    advice = "run `vp train-heads --name nope`, or name one of these"
    assert str(told.value) == f"no run in {tmp_path / 'nope'}; there is: a, b: {advice}"


def test_without_any_run_the_command_that_makes_one_is_named(tmp_path):
    with pytest.raises(CacheError, match="run `vp train-heads` first"):
        only_run(tmp_path / "nowhere")


@pytest.mark.parametrize("which", ["first", "again"])
def test_reading_changes_nothing_and_what_is_abandoned_is_never_a_run(killed, tmp_path, which):
    told = set()
    for folder in folders_of(killed[which], tmp_path):
        before = sorted(folder.parent.rglob("*"))
        left, names = abandoned(folder.parent), run_names(folder.parent)
        try:
            told.add(read_run(folder).part("text"))
        except CacheError:
            told.add("none")
        assert sorted(folder.parent.rglob("*")) == before
        for path in left:
            shutil.rmtree(path)
        assert run_names(folder.parent) == names
        if names:
            assert open_run(folder).part("text") in ("old", "new")
    assert told == ({"none", "new"} if which == "first" else {"none", "old", "new"})
