"""Files that appear whole or not at all; every step that changes the disk goes through here.

A file is written to a temporary name in its own folder, flushed to the disk, and renamed over its final name; then
the folder is flushed, because a rename is only durable once its folder is. Pillai et al., "All File Systems Are Not
Created Equal" (OSDI 2014), show what happens when a step is left out.
"""

import contextlib
import errno
import os
import re
import shutil
import socket
import uuid
from pathlib import Path

from features.errors import StorageError


class DiskCalls:
    """The system calls that publishing needs, one method each, so that a test can fail or stop at any of them."""

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


calls = DiskCalls()

_HOST = re.sub(r"[^A-Za-z0-9]", "_", socket.gethostname())[:32]
TEMPORARY = re.compile(r"\.tmp-(?P<host>[A-Za-z0-9_]*)-(?P<pid>\d+)-[0-9a-f]{32}")
"""The names of files that are not finished yet."""


def publish(path: Path, data: bytes | str) -> None:
    """Make `path` hold exactly `data`, durably, in one step: a reader sees the old file or the new one.

    Raises
    ------
    StorageError
        The disk is full, read-only or failing; the old file, if there was one, is untouched.
    """
    raw = data.encode("utf-8") if isinstance(data, str) else data
    temporary = path.with_name(f".tmp-{_HOST}-{os.getpid()}-{uuid.uuid4().hex}")
    try:
        make_folder(path.parent)
        _write_synced(temporary, raw)
        calls.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        raise storage_error(path, error, needed_bytes=len(raw)) from error
    finally:
        with contextlib.suppress(OSError):  # after the rename there is nothing left to remove
            temporary.unlink()


def move(source: Path, target: Path) -> None:
    """Rename a file or folder durably; `target` must not be a folder that holds files."""
    try:
        make_folder(target.parent)
        calls.replace(source, target)
        sync_folder(target.parent)
    except OSError as error:
        raise storage_error(target, error) from error


def remove(path: Path) -> None:
    """Delete a file durably; it may be gone already."""
    try:
        path.unlink(missing_ok=True)
        sync_folder(path.parent)
    except OSError as error:
        raise storage_error(path, error) from error


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, durably: each new name is flushed in the folder that holds it."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """Flush the names in a folder to the disk (Windows has no such call, and needs none)."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        calls.sync(descriptor)
    finally:
        os.close(descriptor)


def remove_leftovers(folder: Path) -> int:
    """Delete temporary files of processes of this machine that are gone; returns how many."""
    removed = 0
    for path in folder.glob(".tmp-*"):
        if is_leftover(path):
            path.unlink(missing_ok=True)
            removed += 1
    return removed


def is_leftover(path: Path) -> bool:
    """Whether a file is a temporary one of a process of this machine that is gone."""
    match = TEMPORARY.fullmatch(path.name)
    return match is not None and match["host"] == _HOST and not is_alive(int(match["pid"]))


def storage_error(path: Path, error: OSError, *, needed_bytes: int = 0) -> StorageError:
    """Say what could not be written, how much room there is, and that finished work is kept."""
    room = ""
    if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
        room = f" ({needed_bytes:,} bytes needed, {_free_bytes(path):,} free)"
    reason = error.strerror or type(error).__name__
    return StorageError(
        f"cannot write {path}: {reason}{room}. Everything finished before is kept: "
        "make room or choose another --work, then run the same command again."
    )


def _write_synced(path: Path, raw: bytes) -> None:
    descriptor = calls.create(path)
    try:
        rest = memoryview(raw)
        while rest:  # a write may be short, near a full disk or after a signal
            rest = rest[calls.write(descriptor, rest) :]
        calls.sync(descriptor)
    finally:
        os.close(descriptor)


def _free_bytes(path: Path) -> int:
    folder = next(parent for parent in path.absolute().parents if parent.is_dir())
    return shutil.disk_usage(folder).free


def is_alive(pid: int) -> bool:
    """Whether a process of this machine is there."""
    if pid == os.getpid():
        return True
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):  # no process has a number that large
        return False
    except PermissionError:
        return True
    return not _is_zombie(pid)


def _is_zombie(pid: int) -> bool:
    """Whether a process has ended and nobody asked how: in a container there may be no init to do so."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:  # not Linux, or just gone
        return False
    return stat.rpartition(")")[2].split()[0] in {"Z", "X"}
