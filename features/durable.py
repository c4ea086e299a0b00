"""Files that appear whole or not at all; every step that changes the disk goes through here.

A file is written to a temporary name in its own folder, flushed to the disk, and renamed over its final name; then
the folder is flushed, because a rename is only durable once its folder is. Pillai et al., "All File Systems Are Not
Created Equal" (OSDI 2014), show what happens when a step is left out.
"""

import contextlib
import errno
import hashlib
import os
import re
import shutil
import socket
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ParamSpec, TypeVar

from features.errors import StorageError
from features.processes import is_alive

Given = ParamSpec("Given")
Got = TypeVar("Got")


class DiskCalls:
    """The calls that change the disk, one method each, so that a test can fail or stop at any of them."""

    def create(self, path: Path) -> int:
        """Open a new file for writing; it must not exist."""
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0), 0o644)

    def write(self, descriptor: int, data: memoryview) -> int:
        """Write some of `data`; returns how many bytes."""
        return os.write(descriptor, data)

    def sync(self, descriptor: int) -> None:
        """Flush a file or a folder to the disk."""
        os.fsync(descriptor)

    def replace(self, source: Path, target: Path) -> None:
        """Rename, over whatever file `target` is."""
        source.replace(target)

    def make_folder(self, folder: Path) -> None:
        """Make one folder; it may be there already."""
        folder.mkdir(exist_ok=True)

    def unlink(self, path: Path) -> None:
        """Remove a file, which may be gone already."""
        path.unlink(missing_ok=True)

    def remove_tree(self, folder: Path) -> None:
        """Remove a folder, which is no link, and everything in it."""
        shutil.rmtree(folder)


calls = DiskCalls()


def host_tag(name: str) -> str:
    """A machine's name as a part of file names, which have little room; names of pods differ at their ends alone."""
    return hashlib.blake2b(name.encode(errors="surrogateescape"), digest_size=8).hexdigest()


_HOST = host_tag(socket.gethostname())
TEMPORARY = re.compile(r"\.tmp-(?P<host>[A-Za-z0-9_]*)-(?P<pid>\d+)-[0-9a-f]{32}")
"""The names of files that are not finished yet."""


def publish(path: Path, data: bytes | str) -> None:
    """Make `path` hold exactly `data`, durably, in one step: a reader sees the old file or the new one.

    Raises
    ------
    StorageError
        The disk is full, read-only or failing, or `path` is a folder, a device or a pipe; what was there is untouched.
    """
    raw = data.encode("utf-8") if isinstance(data, str) else data
    temporary = _temporary_beside(path)
    try:
        with _told_of(path, needed_bytes=len(raw)):
            _refuse_what_is_no_file(path)
            _make_folder(path.parent)
            _write_synced(temporary, raw)
            _repeated(calls.replace, temporary, path)
            sync_folder(path.parent)
    finally:
        with contextlib.suppress(OSError):  # after the rename there is nothing left to remove
            _repeated(calls.unlink, temporary)


@contextlib.contextmanager
def lines_of(path: Path) -> Iterator[Callable[[str], None]]:
    """Begin a file that grows and is read meanwhile, flushed to the disk at the end; gives what appends a text.

    It is not whole until then: for files inside a folder that is itself published when everything in it is.

    Raises
    ------
    StorageError
        The disk is full, read-only or failing.
    """

    def append(text: str) -> None:
        raw = text.encode("utf-8")
        with _told_of(path, needed_bytes=len(raw)):
            _write_all(descriptor, raw)

    with _told_of(path):
        _repeated(calls.unlink, path)
        descriptor = _repeated(calls.create, path)
    try:
        yield append
        with _told_of(path):
            _repeated(calls.sync, descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A folder to fill by any means, which becomes `folder`, durably and in one step, when the block ends well.

    `folder` must not be there, or be empty.

    Raises
    ------
    StorageError
        The disk is full, read-only or failing, in the block or here; nothing is left.
    """
    aside = _temporary_beside(folder)
    try:
        with _told_of(folder):
            _make_folder(folder.parent)
            remove_leftovers(folder.parent)
            _make_folder(aside)
            yield aside
            for path in (*aside.rglob("*"), aside):
                _sync(path)
            _repeated(calls.replace, aside, folder)
            sync_folder(folder.parent)
    finally:
        with contextlib.suppress(OSError):  # after the rename there is nothing left to remove
            _repeated(calls.remove_tree, aside)


def move(source: Path, target: Path) -> None:
    """Rename a file or folder durably; `target` must not be a folder that holds files."""
    with _told_of(target):
        _make_folder(target.parent)
        _repeated(calls.replace, source, target)
        sync_folder(target.parent)


def remove(path: Path) -> None:
    """Delete a file durably; it may be gone already."""
    with _told_of(path):
        _repeated(calls.unlink, path)
        sync_folder(path.parent)


def remove_tree(folder: Path) -> None:
    """Delete a folder, which is no link, and everything in it; it may be gone already."""
    with _told_of(folder), contextlib.suppress(FileNotFoundError):
        _repeated(calls.remove_tree, folder)


def discard_tree(folder: Path) -> None:
    """Delete a folder in one step for whoever reads it: a process that dies meanwhile leaves no half of it."""
    if folder.exists():
        aside = _temporary_beside(folder)
        try:
            move(folder, aside)
        finally:
            remove_tree(aside)  # also if only the flush of the new name has failed


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, durably: each new name is flushed in the folder that holds it."""
    with _told_of(folder):
        _make_folder(folder)


def sync_folder(folder: Path) -> None:
    """Flush the names in a folder to the disk."""
    _sync(folder)


def remove_leftovers(folder: Path) -> int:
    """Delete what processes of this machine that are gone left under temporary names; returns how many."""
    leftovers = [path for path in folder.glob(".tmp-*") if is_leftover(path)]
    for path in leftovers:
        if path.is_dir() and not path.is_symlink():
            remove_tree(path)
        else:
            remove(path)
    return len(leftovers)


def is_leftover(path: Path) -> bool:
    """Whether a temporary name is one of a process of this machine that is gone."""
    match = TEMPORARY.fullmatch(path.name)
    return match is not None and match["host"] == _HOST and not is_alive(int(match["pid"]))


def storage_error(path: Path, error: OSError, *, needed_bytes: int = 0) -> StorageError:
    """Say what could not be written, how much room there is, and that finished work is kept."""
    room = ""
    if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
        needed = f"{needed_bytes:,} bytes needed, " if needed_bytes else ""
        room = f" ({needed}{free_bytes(path):,} free)"
    reason = error.strerror or type(error).__name__
    return StorageError(
        f"cannot write {path}: {reason}{room}. Everything finished before is kept: "
        "make room or choose another folder, then run the same command again."
    )


@contextlib.contextmanager
def _told_of(path: Path, *, needed_bytes: int = 0) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise storage_error(path, error, needed_bytes=needed_bytes) from error


def _temporary_beside(path: Path) -> Path:
    return path.with_name(f".tmp-{_HOST}-{os.getpid()}-{uuid.uuid4().hex}")


def _refuse_what_is_no_file(path: Path) -> None:
    """A rename puts a file in the place of whatever is there: for root, even of /dev/null."""
    if path.exists() and not path.is_file():
        what = "a folder" if path.is_dir() else "a device, a pipe or a socket"
        raise StorageError(f"cannot write {path}: it is {what}, and must be a file or not be there")


def _make_folder(folder: Path) -> None:
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    _repeated(calls.make_folder, folder)
    sync_folder(folder.parent)


def _write_synced(path: Path, raw: bytes) -> None:
    descriptor = _repeated(calls.create, path)
    try:
        _write_all(descriptor, raw)
        _repeated(calls.sync, descriptor)
    finally:
        os.close(descriptor)


def _write_all(descriptor: int, raw: bytes) -> None:
    rest = memoryview(raw)
    while rest:  # a write may be short, near a full disk or after a signal
        rest = rest[_repeated(calls.write, descriptor, rest) :]


def _sync(path: Path) -> None:
    """Flush a file or folder that is not open to the disk (Windows has no such call)."""
    if os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        _repeated(calls.sync, descriptor)
    finally:
        os.close(descriptor)


def _repeated(call: Callable[Given, Got], *given: Given.args, **named: Given.kwargs) -> Got:
    """Call, again after a signal: Python itself does not repeat a rename, which network file systems interrupt."""
    while True:
        try:
            return call(*given, **named)
        except InterruptedError:
            continue


def free_bytes(path: Path) -> int:
    """What the disk of a path, which need not be there yet, has left."""
    folder = next(place for place in (path.absolute(), *path.absolute().parents) if place.is_dir())
    return shutil.disk_usage(folder).free
