"""A disk that fails, and processes and machines that stop, at one chosen call to it."""

import errno
import os
import uuid
from dataclasses import dataclass
from pathlib import Path

from features import durable


class Died(BaseException):
    """The process is gone: whatever it still does changes nothing on the disk."""


class SteppedDisk(durable.DiskCalls):
    """Announces every call before it happens; flushing takes no time, because no test pulls the plug."""

    def before(self, call: str) -> None:
        """A call is about to be made."""

    def create(self, path):
        self.before("create")
        return super().create(path)

    def write(self, descriptor, data):
        self.before("write")
        return super().write(descriptor, data)

    def sync(self, descriptor):
        self.before("sync")

    def replace(self, source, target):
        self.before("replace")
        super().replace(source, target)

    def make_folder(self, folder):
        self.before("make_folder")
        super().make_folder(folder)

    def unlink(self, path):
        self.before("unlink")
        super().unlink(path)

    def remove_tree(self, folder):
        self.before("remove_tree")
        super().remove_tree(folder)


class CountingDisk(SteppedDisk):
    """Remembers which calls were made."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def before(self, call):
        self.calls.append(call)


class FailingDisk(SteppedDisk):
    """Its call number `at` (from 1) fails with an error of the system; all others work."""

    def __init__(self, code: int, at: int) -> None:
        self.left, self._code = at, code
        self.failed = ""

    @property
    def happened(self) -> bool:
        """Whether there were so many calls."""
        return self.left <= 0

    def before(self, call):
        self.left -= 1
        if self.left == 0:
            self.failed = call
            raise OSError(self._code, os.strerror(self._code))


class DyingProcess(SteppedDisk):
    """The process dies before its call number `at`."""

    def __init__(self, at: int) -> None:
        self.left = at

    @property
    def happened(self) -> bool:
        """Whether there were so many calls."""
        return self.left <= 0

    def before(self, _call):
        self.left -= 1
        if self.left <= 0:
            raise Died


@dataclass
class _Rename:
    """A rename that the disk may not have yet: `folder` (inode) was not flushed since. `old` is what it replaced."""

    source: Path
    target: Path
    folder: int
    old: Path | None

    def follow(self, other: "_Rename") -> None:
        """Stay where it is although a folder above it got another name."""
        for name in ("source", "target"):
            path = getattr(self, name)
            if path.is_relative_to(other.source):
                setattr(self, name, other.target / path.relative_to(other.source))


class PowerCut(DyingProcess):
    """The machine stops before call number `at`: bytes that were not flushed are torn, and names that were not may be.

    `spare` is a folder for what was replaced and may come back.
    """

    def __init__(self, at: int, spare: Path, *, names_lost: bool) -> None:
        super().__init__(at)
        self._spare, self._names_lost = spare, names_lost
        self._unflushed: set[int] = set()  # inodes
        self._renames: list[_Rename] = []

    def write(self, descriptor, data):
        written = super().write(descriptor, data)
        self._unflushed.add(os.fstat(descriptor).st_ino)
        return written

    def sync(self, descriptor):
        super().sync(descriptor)
        flushed = os.fstat(descriptor).st_ino
        self._unflushed.discard(flushed)
        for rename in [rename for rename in self._renames if rename.folder == flushed]:
            self._renames.remove(rename)
            for other in self._renames:
                other.follow(rename)

    def replace(self, source, target):
        old = None
        if target.is_file():
            old = self._spare / uuid.uuid4().hex
            os.link(target, old)
        super().replace(source, target)
        self._renames.append(_Rename(source, target, target.parent.stat().st_ino, old))

    def happen(self, root: Path) -> None:
        """Take away what the disk never got."""
        for path in root.rglob("*"):
            if path.is_file() and path.stat().st_ino in self._unflushed:
                os.truncate(path, path.stat().st_size // 2)
        for rename in reversed(self._renames) if self._names_lost else ():
            rename.target.replace(rename.source)
            if rename.old is not None:
                rename.old.replace(rename.target)


class CrowdedDisk(SteppedDisk):
    """Every call is interrupted by a signal once, and no write takes more than half of what it is given."""

    def __init__(self) -> None:
        self._turn = 0

    def before(self, _call):
        self._turn += 1
        if self._turn % 2:
            raise OSError(errno.EINTR, os.strerror(errno.EINTR))

    def write(self, descriptor, data):
        return super().write(descriptor, data[: len(data) // 2 + 1])


class ReadOnlyDisk(SteppedDisk):
    """Nothing can be changed."""

    def before(self, _call):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))
