"""One writer at a time: the others are told who it is, and nobody waits for a process that is dead."""

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.errors import LockedError, StorageError
from features.lock import Part, part_lock, writer_lock

HOLD = """
import sys
from pathlib import Path
from features.lock import writer_lock
with writer_lock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.readline()
    Path(sys.argv[1] + ".done").touch()
"""


@pytest.fixture
def path(tmp_path):
    return tmp_path / "cache" / ".part.lock"


@contextlib.contextmanager
def another_holder(path):
    """Another process that holds the lock; a line sent to it ends its work."""
    command = [sys.executable, "-c", HOLD, path]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


def refusal(path, **options):
    """What somebody is told who wants the lock now."""
    with pytest.raises(LockedError) as caught, writer_lock(path, **options):
        pytest.fail("two hold the lock")
    return str(caught.value)


TAKE_TURNS = """
import os, sys, time
from pathlib import Path
from features.lock import writer_lock
inside = Path(sys.argv[1] + ".inside")
for _ in range(4):
    with writer_lock(Path(sys.argv[1]), wait_seconds=60.0):
        os.close(os.open(inside, os.O_CREAT | os.O_EXCL))  # fails if somebody else is inside
        time.sleep(0.002)
        inside.unlink()
"""


def test_processes_that_wait_for_each_other_are_never_inside_together(path):
    command = [sys.executable, "-c", TAKE_TURNS, path]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    for process in processes:
        _, told = process.communicate(timeout=60)
        assert (process.returncode, told) == (0, "")


def test_whoever_comes_second_is_told_process_machine_and_start_of_the_first(path):
    before = datetime.now(UTC).replace(microsecond=0)
    with another_holder(path) as process:
        told = refusal(path)
    beginning = f"{path.parent} is being written by process {process.pid} on {socket.gethostname()} since "
    assert told.startswith(beginning)
    assert told.endswith(": wait until it has ended")
    since = datetime.fromisoformat(told.removeprefix(beginning).removesuffix(": wait until it has ended"))
    assert before <= since <= datetime.now(UTC) + timedelta(seconds=1)


def test_the_lock_of_a_killed_process_is_free_and_its_name_forgotten(path):
    with another_holder(path) as dead:
        dead.kill()
        dead.wait()
        with writer_lock(path):
            told = refusal(path)
    assert told.startswith(f"{path.parent} is being written by process {os.getpid()} on ")


def test_waiting_lasts_until_the_first_has_finished_its_work(path):
    with another_holder(path) as process:
        process.stdin.write("\n")
        process.stdin.flush()
        with writer_lock(path, wait_seconds=60.0):
            assert path.with_name(f"{path.name}.done").exists()


def test_waiting_ends_after_the_time_that_was_given(path):
    with writer_lock(path):
        start = time.monotonic()
        refusal(path, wait_seconds=0.3)
        waited = time.monotonic() - start
    assert 0.3 <= waited < 10


def test_the_lock_can_be_taken_again_after_work_that_ended_or_failed(path):
    with writer_lock(path):
        pass
    with pytest.raises(RuntimeError, match="half way"), writer_lock(path):
        raise RuntimeError("half way")
    with writer_lock(path):
        pass


def test_an_error_of_the_work_inside_is_not_taken_for_one_of_the_lock(path):
    with pytest.raises(FileNotFoundError), writer_lock(path):
        (path.parent / "nothing").read_bytes()


def test_locks_of_different_parts_do_not_exclude_each_other(path):
    with writer_lock(path), writer_lock(path.with_name(".other.lock")):
        assert "process" in refusal(path)


@pytest.mark.parametrize("record", [None, "", "{", "[]", "3", '{"pid": 1}', b"\xff\xfe"])
def test_a_holder_whose_record_cannot_be_read_is_another_process(path, record):
    with writer_lock(path):
        (written,) = path.parent.glob("*.json")
        written.unlink()
        if record is not None:
            written.write_bytes(record if isinstance(record, bytes) else record.encode())
        assert refusal(path) == f"{path.parent} is being written by another process: wait until it has ended"


def test_nothing_but_the_lock_file_is_left(path):
    with writer_lock(path):
        pass
    assert {left.name for left in path.parent.iterdir()} <= {path.name}


def test_a_file_in_place_of_the_folder_is_a_storage_error(tmp_path):
    (tmp_path / "cache").write_text("")
    with pytest.raises(StorageError, match=r"cannot write .*cache"), writer_lock(tmp_path / "cache" / ".part.lock"):
        pass


def test_a_folder_in_place_of_the_lock_file_is_a_storage_error(path):
    path.mkdir(parents=True)
    with pytest.raises(StorageError, match=r"cannot write .*part\.lock"), writer_lock(path):
        pass


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is read-only for root")
def test_a_read_only_folder_is_a_storage_error(path):
    path.parent.mkdir()
    path.parent.chmod(0o500)
    with pytest.raises(StorageError, match="Permission denied"), writer_lock(path):
        pass


WITHOUT_ROOM = """
import resource, sys
from pathlib import Path
from features.errors import StorageError
from features.lock import writer_lock
path, limits = Path(sys.argv[1]), resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
try:
    with writer_lock(path):
        pass
except StorageError as error:
    print(error)
resource.setrlimit(resource.RLIMIT_FSIZE, limits)
with writer_lock(path):
    print("free again")
"""


def test_a_disk_without_room_for_a_single_byte_is_a_storage_error_and_leaves_the_lock_free(path):
    command = [sys.executable, "-c", WITHOUT_ROOM, path]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert process.stderr == ""
    first, second = process.stdout.splitlines()
    assert first.startswith("cannot write ")
    assert second == "free again"


# Parts


@settings(deadline=None, derandomize=True)
@given(parts=st.tuples(*[st.integers(1, 12).flatmap(lambda of: st.builds(Part, st.integers(1, of), st.just(of)))] * 2))
def test_parts_overlap_just_if_some_shard_belongs_to_both(parts):
    one, other = parts
    shared = any(one.holds(index) and other.holds(index) for index in range(one.of * other.of))
    assert one.overlaps(other) == other.overlaps(one) == shared


@given(of=st.integers(1, 9), index=st.integers(0, 200))
def test_every_shard_belongs_to_one_part(of, index):
    assert sum(Part(number, of).holds(index) for number in range(1, of + 1)) == 1


def test_parts_that_have_nothing_in_common_are_held_together_and_others_are_not(tmp_path):
    with part_lock(tmp_path, Part(1, 4)), part_lock(tmp_path, Part(2, 4)), part_lock(tmp_path, Part(4, 4)):
        for part in (Part(1, 4), Part(1, 1), Part(1, 2), Part(2, 2), Part(1, 3)):
            with pytest.raises(LockedError, match="is being written by process"), part_lock(tmp_path, part):
                pass
        with part_lock(tmp_path, Part(3, 4)):
            pass


def test_a_part_that_was_refused_is_free_again(tmp_path):
    with part_lock(tmp_path, Part(1, 2)), pytest.raises(LockedError), part_lock(tmp_path, Part(1, 1)):
        pass
    with part_lock(tmp_path, Part(1, 1)):
        pass


def test_who_waits_for_an_overlapping_part_gets_it_when_it_is_free(tmp_path):
    held, free = threading.Event(), threading.Event()

    def hold():
        with part_lock(tmp_path, Part(1, 2)):
            held.set()
            free.wait(10)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(10)
    threading.Timer(0.2, free.set).start()
    with part_lock(tmp_path, Part(1, 1), wait_seconds=20.0):
        assert free.is_set()
    thread.join()
