"""One writer per part of a cache; readers need no lock, because published files never change."""

import contextlib
import json
import os
import socket
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from features import durable
from features.errors import LockedError


@contextlib.contextmanager
def writer_lock(path: Path, *, wait_seconds: float = 0.0) -> Iterator[None]:
    """Hold the lock file `path`; the operating system frees it if the holder dies.

    Raises
    ------
    LockedError
        Another process holds it; the message names process, machine and start.
    StorageError
        The folder cannot be written.
    """
    holder = path.with_suffix(".holder.json")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        lock.acquire(timeout=wait_seconds)
    except Timeout:
        raise LockedError(f"{path.parent} is being written by {_described(holder)}: wait until it has ended") from None
    except OSError as error:
        raise durable.storage_error(path, error) from error
    try:
        _tell(holder)
        yield
    finally:
        with contextlib.suppress(OSError):  # the lock counts; what is left of this file only names a past holder
            holder.unlink(missing_ok=True)
        lock.release()


def _tell(holder: Path) -> None:
    try:
        holder.write_text(json.dumps(_ourselves()), encoding="utf-8")
    except OSError as error:
        raise durable.storage_error(holder, error) from error


def _ourselves() -> dict[str, str | int]:
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return {"pid": os.getpid(), "host": socket.gethostname(), "since": now}


def _described(holder: Path) -> str:
    try:
        facts = json.loads(holder.read_text(encoding="utf-8"))
        return f"process {facts['pid']} on {facts['host']} since {facts['since']}"
    except (OSError, ValueError, KeyError, TypeError):  # it may be just starting or just ending
        return "another process"
