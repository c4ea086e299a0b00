"""One writer per part of a cache; readers need no lock, because published files never change."""

import contextlib
import json
import math
import os
import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from features import durable
from features.errors import LockedError, StorageError

PART_LOCKS = ".part-*-of-*.lock"
"""Matches the locks of all parts."""
_LOCK_NAME = re.compile(r"\.part-(?P<number>[1-9]\d{0,5})-of-(?P<of>[1-9]\d{0,5})\.lock")


@dataclass(frozen=True)
class Part:
    """Part `number` (from 1) of `of`: every `of`-th shard of each kind, so that parts differ by one shard at most."""

    number: int = 1
    of: int = 1

    @property
    def lock_name(self) -> str:
        """The file whose lock says that somebody writes this part."""
        return f".part-{self.number}-of-{self.of}.lock"

    def holds(self, index: int) -> bool:
        """Whether the shard with this index belongs to it.

        >>> [index for index in range(7) if Part(2, 3).holds(index)]
        [1, 4]
        """
        return index % self.of == self.number - 1

    def overlaps(self, other: "Part") -> bool:
        """Whether some shard may belong to both.

        >>> Part(1, 2).overlaps(Part(2, 2)), Part(1, 2).overlaps(Part(3, 4)), Part(1, 2).overlaps(Part(1, 3))
        (False, True, True)
        """
        return (self.number - other.number) % math.gcd(self.of, other.of) == 0


WHOLE = Part()


@contextlib.contextmanager
def part_lock(folder: Path, part: Part, *, wait_seconds: float = 0.0) -> Iterator[None]:
    """Hold one part of a cache; other parts may be held beside it, unless they overlap.

    Two that begin with overlapping parts at the same moment may both be refused; never do both go on.

    Raises
    ------
    LockedError
        Another process holds it, or a part that overlaps.
    StorageError
        The folder cannot be written.
    """
    with writer_lock(folder / part.lock_name, wait_seconds=wait_seconds):
        for name in sorted(path.name for path in folder.glob(PART_LOCKS)):
            match = _LOCK_NAME.fullmatch(name)
            if match and name != part.lock_name and part.overlaps(Part(int(match["number"]), int(match["of"]))):
                _wait_until_free(folder / name, wait_seconds)
        yield


def _wait_until_free(path: Path, wait_seconds: float) -> None:
    try:
        with FileLock(path).acquire(timeout=wait_seconds):
            return
    except Timeout:
        raise _locked(path) from None
    except OSError as error:
        raise durable.storage_error(path, error) from error


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
    holder = holder_of(path)
    durable.make_folder(path.parent)
    try:
        held = FileLock(path).acquire(timeout=wait_seconds)
    except Timeout:
        raise _locked(path) from None
    except OSError as error:
        raise durable.storage_error(path, error) from error
    with held:
        try:
            durable.publish(holder, json.dumps(_ourselves()))
            yield
        finally:
            with contextlib.suppress(StorageError):  # the lock counts; a file that is left only names a past holder
                durable.remove(holder)


def holder_of(lock: Path) -> Path:
    """The file in which whoever holds a lock says who it is."""
    return lock.with_suffix(".holder.json")


def _locked(path: Path) -> LockedError:
    holder = _described(holder_of(path))
    return LockedError(f"{path.parent} is being written by {holder}: wait until it has ended")


def _ourselves() -> dict[str, str | int]:
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return {"pid": os.getpid(), "host": socket.gethostname(), "since": now}


def _described(holder: Path) -> str:
    try:
        facts = json.loads(holder.read_text(encoding="utf-8"))
        return f"process {facts['pid']} on {facts['host']} since {facts['since']}"
    except (OSError, ValueError, KeyError, TypeError):  # it may be just starting or just ending
        return "another process"
