"""Whether a process of this machine is still there."""

import os
from pathlib import Path


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
