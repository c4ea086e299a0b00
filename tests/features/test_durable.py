"""Files appear whole or not at all, whatever fails, stops or kills the process that writes them."""

import errno
import inspect
import itertools
import os
import random
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from features import durable
from features.errors import StorageError

OLD, NEW = b"old " * 1_000, b"the new content " * 1_000
TORN = b"torn"


class Crash(BaseException):
    """The process dies here."""


class SteppedCalls(durable.DiskCalls):
    """Announces every call to the disk before it happens; every write is short."""

    def __init__(self, step):
        self._step = step

    def create(self, path):
        self._step()
        return super().create(path)

    def write(self, descriptor, data):
        self._step()
        return super().write(descriptor, data[: len(data) // 2 + 1])

    def sync(self, descriptor):
        self._step()
        super().sync(descriptor)

    def replace(self, source, target):
        self._step()
        super().replace(source, target)


def at_every_call(monkeypatch, failure, attempt):
    """Attempt again and again, with the failure at the 1st, 2nd, ... call to the disk, until one gets through.

    Gives, after each attempt, the message of its failure, or None for the one that got through.
    """

    def failing_at(number):
        countdown = itertools.count(number, -1)

        def step():
            if next(countdown) == 1:
                raise failure

        return SteppedCalls(step)

    for number in itertools.count(1):
        with monkeypatch.context() as patch:
            patch.setattr(durable, "calls", failing_at(number))
            try:
                attempt()
            except (Crash, StorageError) as error:
                message = str(error)
            else:
                yield None
                return
        yield message


@pytest.fixture
def file(tmp_path):
    """Where tests publish: the only file of its folder."""
    folder = tmp_path / "folder"
    folder.mkdir()
    return folder / "file"


def content(path):
    return path.read_bytes() if path.exists() else None


def names(folder):
    return {path.name for path in folder.iterdir()}


def temporary_name(file, monkeypatch, pid):
    """The name under which a process of this machine would begin to write."""
    names = []

    class Spy(durable.DiskCalls):
        def create(self, path):
            names.append(path.name)
            return super().create(path)

    with monkeypatch.context() as patch:
        patch.setattr(durable, "calls", Spy())
        durable.publish(file, NEW)
    return names[0].replace(f"-{os.getpid()}-", f"-{pid}-")


@pytest.mark.parametrize("old", [None, OLD])
@pytest.mark.parametrize(
    "failure", [Crash(), OSError(errno.ENOSPC, "full"), OSError(errno.EIO, "failed")], ids=["crash", "full", "failing"]
)
def test_wherever_publishing_fails_the_file_is_the_old_or_the_new_one_and_nothing_else_is_left(
    file, monkeypatch, failure, old
):
    seen = []

    def attempt():
        if old is None:
            file.unlink(missing_ok=True)
        else:
            file.write_bytes(old)
        durable.publish(file, NEW)

    for _ in at_every_call(monkeypatch, failure, attempt):
        seen.append(content(file))
        assert names(file.parent) <= {"file"}
    assert set(seen) == {old, NEW}
    assert seen == sorted(seen, key=lambda found: found == NEW)  # once it is there, it stays
    assert len(seen) > 10  # or the writes were not short


def test_any_other_error_of_the_disk_reaches_the_user_as_a_storage_error(file, monkeypatch):
    file.write_bytes(OLD)
    for code in (errno.EDQUOT, errno.EROFS, errno.EACCES, errno.ENODEV):
        *messages, last = at_every_call(
            monkeypatch, OSError(code, os.strerror(code)), lambda: durable.publish(file, NEW)
        )
        assert (len(messages) > 10, last) == (True, None)
        assert all(message.startswith(f"cannot write {file}: {os.strerror(code)}") for message in messages)


def test_writes_of_any_length_add_up_to_the_whole_file(file, monkeypatch):
    lengths = random.Random(1)

    class Scraps(durable.DiskCalls):
        def write(self, descriptor, data):
            return super().write(descriptor, data[: lengths.randint(1, 700)])

    monkeypatch.setattr(durable, "calls", Scraps())
    data = random.Random(2).randbytes(40_000)
    durable.publish(file, data)
    assert file.read_bytes() == data


def test_signals_that_interrupt_writing_are_not_noticed(file, monkeypatch):
    """Linux never interrupts writing to a regular file, hence a pipe, whose reader sends a signal with every piece."""
    data = random.Random(3).randbytes(1_000_000)
    lengths, received, handled = [], bytearray(), []
    reading, writing = os.pipe()

    class IntoPipe(durable.DiskCalls):
        def create(self, path):
            path.touch()
            return writing

        def write(self, descriptor, data):
            lengths.append(super().write(descriptor, data))
            return lengths[-1]

        def sync(self, descriptor):
            if descriptor != writing:
                super().sync(descriptor)

    def read():
        while piece := os.read(reading, 20_000):
            received.extend(piece)
            signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR1)
            time.sleep(0.0002)

    monkeypatch.setattr(durable, "calls", IntoPipe())
    before = signal.signal(signal.SIGUSR1, lambda *_: handled.append(1))
    reader = threading.Thread(target=read)
    reader.start()
    try:
        durable.publish(file, data)
    finally:
        reader.join()
        signal.signal(signal.SIGUSR1, before)
        os.close(reading)
    assert bytes(received) == data
    assert len(lengths) > 1, "no write was cut short"
    assert handled


DIE_AT_EVERY_CALL = """
import itertools, os, sys
from pathlib import Path
from features import durable
{SteppedCalls}
file = Path(sys.argv[1])

def write_and_die_at(number):
    countdown = itertools.count(number, -1)
    durable.calls = SteppedCalls(lambda: next(countdown) == 1 and os._exit(137))
    durable.publish(file, b"new" * 20)
    os._exit(0)

for number in itertools.count(1):
    file.write_bytes(b"old" * 10)
    child = os.fork() or write_and_die_at(number)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(status, file.read_bytes()[:3].decode(), len(file.read_bytes()), durable.remove_leftovers(file.parent))
    assert os.listdir(file.parent) == ["file"]
    if status == 0:
        break
"""


def test_a_process_that_dies_at_any_call_leaves_old_or_new_and_one_leftover_that_the_next_one_removes(file):
    script = DIE_AT_EVERY_CALL.replace("{SteppedCalls}", inspect.getsource(SteppedCalls))
    told = subprocess.run([sys.executable, "-c", script, file], capture_output=True, text=True, check=True).stdout
    writes = 5  # 60 bytes, half of the rest and one at a time: 31 + 15 + 8 + 4 + 2
    expected = ["137 old 30 0", *["137 old 30 1"] * (writes + 2), "137 new 60 0", "0 new 60 0"]
    assert told.splitlines() == expected


PUBLISH_FOR_EVER = """
import itertools, sys
from pathlib import Path
from features.durable import publish
for number in itertools.count(int(sys.argv[2])):
    publish(Path(sys.argv[1]), bytes([number % 256]) * (50_000 + 7_000 * (number % 5)))
    print(number, flush=True)
"""


def test_a_kill_at_a_random_moment_never_loses_what_was_published_and_never_leaves_a_part(file):
    moments, number = random.Random(4), 0
    for _ in range(10):
        command = [sys.executable, "-c", PUBLISH_FOR_EVER, file, str(number)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            process.stdout.readline()
            time.sleep(moments.uniform(0, 0.04))
            process.kill()
            told = process.stdout.read().split()
        number = int(told[-1]) if told else number
        versions = [bytes([n % 256]) * (50_000 + 7_000 * (n % 5)) for n in (number, number + 1)]
        assert file.read_bytes() in versions
        number += 2
    durable.remove_leftovers(file.parent)
    assert names(file.parent) == {"file"}


class PowerCut(durable.DiskCalls):
    """Knows what a power cut may leave of one file: what was flushed for sure, and any mixture of what was not."""

    def __init__(self, file):
        self._file = file
        self._flushed, self._paths = {}, {}  # inode -> content, open descriptor -> path
        self._kept = file.stat().st_ino if file.exists() else None  # the inode that the folder on the disk names
        if self._kept is not None:
            self._flushed[self._kept] = file.read_bytes()
        self.seen = [self.possible()]

    def possible(self):
        named = {self._kept, self._file.stat().st_ino if self._file.exists() else None}
        return {None if inode is None else self._flushed.get(inode, TORN) for inode in named}

    def create(self, path):
        descriptor = super().create(path)
        self._paths[descriptor] = path
        self.seen.append(self.possible())
        return descriptor

    def write(self, descriptor, data):
        self._flushed.pop(os.fstat(descriptor).st_ino, None)
        written = super().write(descriptor, data)
        self.seen.append(self.possible())
        return written

    def sync(self, descriptor):
        super().sync(descriptor)
        facts = os.fstat(descriptor)
        if not stat.S_ISDIR(facts.st_mode):
            self._flushed[facts.st_ino] = self._paths[descriptor].read_bytes()
        elif os.path.samestat(facts, self._file.parent.stat()):
            self._kept = self._file.stat().st_ino if self._file.exists() else None
        self.seen.append(self.possible())

    def replace(self, source, target):
        super().replace(source, target)
        self.seen.append(self.possible())


@pytest.mark.parametrize("old", [None, OLD])
def test_a_power_cut_leaves_the_old_or_the_new_file_and_after_publishing_only_the_new_one(file, monkeypatch, old):
    if old is not None:
        file.write_bytes(old)
    disk = PowerCut(file)
    monkeypatch.setattr(durable, "calls", disk)
    durable.publish(file, NEW)
    assert set().union(*disk.seen) == {old, NEW}
    assert disk.seen[-1] == {NEW}


@pytest.mark.parametrize("change", ["move here", "remove"])
def test_a_power_cut_after_moving_or_removing_does_not_bring_the_old_file_back(file, monkeypatch, change):
    file.write_bytes(OLD)
    disk = PowerCut(file)
    monkeypatch.setattr(durable, "calls", disk)
    if change == "remove":
        durable.remove(file)
        assert disk.possible() == {None}
    else:
        durable.publish(file.with_name("other"), NEW)
        durable.move(file.with_name("other"), file)
        assert disk.possible() == {NEW}


def test_new_folders_are_flushed_into_their_parents(tmp_path, monkeypatch):
    """A folder whose own name is lost in a power cut takes every file in it along."""
    flushed = set()

    class Spy(durable.DiskCalls):
        def sync(self, descriptor):
            super().sync(descriptor)
            flushed.add(os.fstat(descriptor).st_ino)

    monkeypatch.setattr(durable, "calls", Spy())
    durable.publish(tmp_path / "cache" / "image" / "file", NEW)
    assert {path.stat().st_ino for path in (tmp_path, tmp_path / "cache", tmp_path / "cache" / "image")} <= flushed


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_where_there_is_no_room_the_message_says_how_much_is_needed_and_how_much_is_free(tmp_path, monkeypatch, code):
    free = {tmp_path: 1_234}
    monkeypatch.setattr(durable.shutil, "disk_usage", lambda folder: SimpleNamespace(free=free[folder]))
    path = tmp_path / "not yet" / "there" / "file"
    message = str(durable.storage_error(path, OSError(code, os.strerror(code)), needed_bytes=5_000_000))
    assert message == (
        f"cannot write {path}: {os.strerror(code)} (5,000,000 bytes needed, 1,234 free). Everything finished before is "
        "kept: make room or choose another folder, then run the same command again."
    )


def test_publishing_says_how_many_bytes_it_needs(file, monkeypatch):
    full = OSError(errno.ENOSPC, "No space left on device")
    *messages, _ = at_every_call(monkeypatch, full, lambda: durable.publish(file, "é" * 1_000))
    assert messages
    assert all("No space left on device (2,000 bytes needed, " in message for message in messages)


def test_a_failing_disk_is_not_said_to_be_full(file):
    error = OSError(errno.EIO, os.strerror(errno.EIO))
    assert str(durable.storage_error(file, error, needed_bytes=5)).startswith(
        f"cannot write {file}: Input/output error. Everything"
    )


def test_an_error_without_a_text_is_named_by_its_kind(file):
    assert str(durable.storage_error(file, TimeoutError())).startswith(f"cannot write {file}: TimeoutError. ")


def test_a_file_where_a_folder_should_be_is_a_storage_error(file):
    file.write_bytes(OLD)
    for work in (lambda: durable.publish(file / "inside", NEW), lambda: durable.move(file, file / "inside")):
        with pytest.raises(StorageError, match=r"cannot write .*inside"):
            work()
    assert file.read_bytes() == OLD


@pytest.mark.parametrize("kind", ["a folder", "a device, a pipe or a socket"])
@pytest.mark.parametrize("linked", [False, True])
def test_what_is_no_file_is_never_replaced_by_one(file, kind, linked):
    """For root, a rename over /dev/null puts a file there, and breaks the machine."""
    place = file.with_name("place") if linked else file
    place.mkdir() if kind == "a folder" else os.mkfifo(place)
    if linked:
        file.symlink_to(place.name)
    before = {path.name: path.lstat() for path in file.parent.iterdir()}
    with pytest.raises(StorageError, match=f"cannot write .*/file: it is {kind}, and must be a file or not be there"):
        durable.publish(file, NEW)
    assert {path.name: path.lstat() for path in file.parent.iterdir()} == before


def test_a_name_that_no_disk_takes_is_a_storage_error(tmp_path):
    with pytest.raises(StorageError, match="File name too long"):
        durable.publish(tmp_path / ("x" * 300), NEW)


def test_calls_that_a_signal_interrupts_are_made_again(file, monkeypatch):
    """As renames on network file systems are, which Python itself does not repeat."""
    turns = itertools.count()

    def interrupted_every_other_time():
        if next(turns) % 2 == 0:
            raise InterruptedError

    monkeypatch.setattr(durable, "calls", SteppedCalls(interrupted_every_other_time))
    durable.publish(file, NEW)
    assert file.read_bytes() == NEW
    assert names(file.parent) == {"file"}


# Folders that appear whole, and files that grow


def fill(folder):
    (folder / "a").write_bytes(NEW)
    (folder / "deeper").mkdir()
    (folder / "deeper" / "b").write_bytes(OLD)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_wherever_making_a_folder_fails_it_is_there_whole_or_not_at_all(tmp_path, monkeypatch, code):
    folder = tmp_path / "above" / "folder"
    seen = []

    def attempt():
        with durable.whole_folder(folder) as aside:
            fill(aside)

    for message in at_every_call(monkeypatch, OSError(code, os.strerror(code)), attempt):
        seen.append(sorted(path.name for path in folder.rglob("*")) if folder.exists() else None)
        assert message is None or message.startswith(f"cannot write {folder}: {os.strerror(code)}")
        assert not list(tmp_path.rglob(".tmp-*"))
        if folder.exists() and message is not None:
            folder.rename(tmp_path / "seen")
    assert [names for names in seen if names is not None] == [["a", "b", "deeper"]] * 2  # before and after its flush
    assert seen[0] is None


def test_every_file_of_a_folder_is_flushed_before_the_folder_gets_its_name(tmp_path, monkeypatch):
    steps = []

    class Spy(durable.DiskCalls):
        def sync(self, descriptor):
            super().sync(descriptor)
            steps.append(os.fstat(descriptor).st_ino)

        def replace(self, source, target):
            super().replace(source, target)
            steps.append("named")

    monkeypatch.setattr(durable, "calls", Spy())
    with durable.whole_folder(tmp_path / "folder") as aside:
        fill(aside)
    before, after = steps[: steps.index("named")], steps[steps.index("named") :]
    assert {path.stat().st_ino for path in [tmp_path / "folder", *(tmp_path / "folder").rglob("*")]} <= set(before)
    assert tmp_path.stat().st_ino in after


def test_a_folder_that_is_not_finished_leaves_nothing_and_its_error_stays_what_it_is(tmp_path):
    def attempt():
        with durable.whole_folder(tmp_path / "folder") as aside:
            fill(aside)
            raise KeyError

    with pytest.raises(KeyError):
        attempt()
    assert not names(tmp_path)


def test_a_folder_that_holds_something_is_not_replaced(tmp_path):
    fill(tmp_path)
    with pytest.raises(StorageError, match="deeper"), durable.whole_folder(tmp_path / "deeper") as aside:
        fill(aside)
    assert names(tmp_path) == {"a", "deeper"}
    assert names(tmp_path / "deeper") == {"b"}


def test_a_folder_that_a_process_left_unfinished_goes_when_the_next_one_is_made(file, monkeypatch):
    with subprocess.Popen([sys.executable, "-c", ""]) as dead:
        pass
    left = file.with_name(temporary_name(file, monkeypatch, dead.pid))
    left.mkdir()
    fill(left)
    with durable.whole_folder(file.with_name("folder")) as aside:
        fill(aside)
    assert names(file.parent) == {"file", "folder"}


def test_a_link_with_a_temporary_name_goes_and_what_it_names_stays(file, monkeypatch):
    with subprocess.Popen([sys.executable, "-c", ""]) as dead:
        pass
    mine = file.with_name("mine")
    mine.mkdir()
    fill(mine)
    file.with_name(temporary_name(file, monkeypatch, dead.pid)).symlink_to("mine")
    assert durable.remove_leftovers(file.parent) == 1
    assert names(mine) == {"a", "deeper"}


def test_a_file_that_grows_can_be_read_meanwhile_and_begins_anew(file):
    file.write_bytes(OLD)
    with durable.lines_of(file) as append:
        assert file.read_bytes() == b""
        append("a\n")
        assert file.read_bytes() == b"a\n"
        append("é\n")
    assert file.read_bytes() == "a\né\n".encode()


def test_wherever_a_file_that_grows_fails_it_is_a_storage_error(file, monkeypatch):
    def attempt():
        with durable.lines_of(file) as append:
            append("a line\n")

    *messages, last = at_every_call(monkeypatch, OSError(errno.EIO, "Input/output error"), attempt)
    assert (len(messages) >= 4, last) == (True, None)  # create, short writes, flush
    assert all(message.startswith(f"cannot write {file}: Input/output error.") for message in messages)


def test_an_error_beside_a_file_that_grows_stays_what_it_is(file):
    def attempt():
        with durable.lines_of(file) as append:
            append("a line\n")
            raise FileNotFoundError

    with pytest.raises(FileNotFoundError):
        attempt()
    assert file.read_bytes() == b"a line\n"


@pytest.mark.parametrize("work", [durable.remove_leftovers, durable.remove_tree, durable.make_folder])
def test_a_disk_that_fails_elsewhere_is_a_storage_error_too(file, monkeypatch, work):
    with subprocess.Popen([sys.executable, "-c", ""]) as dead:
        pass
    file.with_name(temporary_name(file, monkeypatch, dead.pid)).touch()
    file.unlink()

    def failing(_path):
        raise OSError(errno.EROFS, "Read-only file system")

    for call in ("unlink", "remove_tree", "make_folder"):
        monkeypatch.setattr(durable.calls, call, failing)
    with pytest.raises(StorageError, match=r"cannot write .*: Read-only file system"):
        work(file.parent / "new" if work is durable.make_folder else file.parent)


def test_a_folder_that_is_gone_can_be_removed_again(tmp_path):
    fill(tmp_path)
    durable.remove_tree(tmp_path / "deeper")
    durable.remove_tree(tmp_path / "deeper")
    assert names(tmp_path) == {"a"}


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is read-only for root")
def test_a_read_only_folder_is_a_storage_error(file):
    file.write_bytes(OLD)
    file.parent.chmod(0o500)
    for work in (lambda: durable.publish(file, NEW), lambda: durable.remove(file)):
        with pytest.raises(StorageError, match=r"Permission denied\. Everything"):
            work()
    assert file.read_bytes() == OLD


BEYOND_THE_LIMIT = """
import resource, sys
from pathlib import Path
from features.durable import publish
from features.errors import StorageError
resource.setrlimit(resource.RLIMIT_FSIZE, (4_096, 4_096))
try:
    publish(Path(sys.argv[1]), b"x" * 10_000)
except StorageError as error:
    print(error)
"""


def test_a_file_beyond_the_limit_of_the_system_is_a_storage_error_and_no_crash(file):
    file.write_bytes(OLD)
    command = [sys.executable, "-c", BEYOND_THE_LIMIT, file]
    process = subprocess.run(command, capture_output=True, text=True, check=True)
    assert f"cannot write {file}: File too large (10,000 bytes needed, " in process.stdout
    assert file.read_bytes() == OLD
    assert names(file.parent) == {"file"}


def test_leftovers_go_only_if_their_process_is_of_this_machine_and_gone(file, monkeypatch):
    with subprocess.Popen([sys.executable, "-c", ""]) as dead:
        pass
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as living:
        gone = temporary_name(file, monkeypatch, dead.pid)
        prefix, host, rest = gone.split("-", 2)
        kept = {
            temporary_name(file, monkeypatch, living.pid),
            temporary_name(file, monkeypatch, os.getpid()),
            temporary_name(file, monkeypatch, 1),
            f"{prefix}-{host}x-{rest}",
            f"{prefix}-x{host}-{rest}",
            f"{gone}.h5",
            ".tmp-notes",
            "image-000000.0123456789abcdef.h5",
            "file",
        }
        for name in {gone, *kept}:
            (file.parent / name).touch()
        assert durable.remove_leftovers(file.parent) == 1
        assert names(file.parent) == kept


def test_a_process_number_that_no_system_has_stops_nobody(file, monkeypatch):
    (file.parent / temporary_name(file, monkeypatch, 10**30)).touch()
    durable.remove_leftovers(file.parent)
    assert names(file.parent) == {"file"}


def test_a_folder_that_is_not_there_has_no_leftovers(tmp_path):
    assert durable.remove_leftovers(tmp_path / "nowhere") == 0


def test_wherever_moving_stops_the_file_is_in_one_of_both_places(tmp_path, monkeypatch):
    source, target = tmp_path / "shard", tmp_path / "quarantine" / "shard"

    def attempt():
        target.unlink(missing_ok=True)
        source.write_bytes(OLD)
        durable.move(source, target)

    attempts = at_every_call(monkeypatch, OSError(errno.EIO, "I/O"), attempt)
    places = [(content(source), content(target)) for _ in attempts]
    assert places == [(OLD, None), (None, OLD), (None, OLD)]


def test_a_file_that_is_gone_can_be_removed_again(file):
    file.write_bytes(OLD)
    durable.remove(file)
    durable.remove(file)
    assert not names(file.parent)


def test_text_is_written_as_utf_8_without_another_line_end(file):
    durable.publish(file, "né\n日\r\n")
    assert file.read_bytes() == b"n\xc3\xa9\n\xe6\x97\xa5\r\n"


def test_a_temporary_file_never_takes_the_place_of_another(file):
    file.write_bytes(OLD)
    with pytest.raises(FileExistsError):
        durable.DiskCalls().create(file)
    assert file.read_bytes() == OLD


def test_an_empty_file_can_be_published(file):
    durable.publish(file, b"")
    assert file.read_bytes() == b""


def test_pods_of_one_job_whose_names_differ_at_their_ends_have_files_of_their_own():
    tags = {durable.host_tag(f"vp-extract-vit-l-14-openai-training-{index}") for index in range(12)}
    assert len(tags) == 12
    assert all(durable.TEMPORARY.fullmatch(f".tmp-{tag}-7-{'0' * 32}") for tag in tags)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="only Linux says so of a process")
def test_a_process_that_has_ended_but_was_not_waited_for_is_gone_too(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""], stdout=subprocess.PIPE)
    ended.stdout.read()
    os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)  # a zombie until somebody waits
    left = tmp_path / f".tmp-{durable._HOST}-{ended.pid}-{'0' * 32}"
    left.touch()
    assert durable.remove_leftovers(tmp_path) == 1
    ended.stdout.close()
    ended.wait()
