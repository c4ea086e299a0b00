"""What lies in a folder, without taking one that cannot be read for an empty one, as `Path.glob` does."""

import errno
import os
from pathlib import Path

from features.errors import CacheError


def listed(folder: Path) -> list[Path]:
    """What lies in a folder, by name; nothing if there is no such folder.

    Raises
    ------
    CacheError
        It cannot be listed, or what is in it cannot be reached.
    """
    try:
        found = sorted(folder.iterdir())
        if not os.access(folder, os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise _unreadable(folder, error) from error
    return found


def is_there(path: Path) -> bool:
    """Whether something has this name; raises CacheError as `listed` does, where the system does not tell."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise _unreadable(path.parent, error) from error
    return True


def _unreadable(folder: Path, error: OSError) -> CacheError:
    return CacheError(f"{folder} cannot be read: {error.strerror}: let this user read {folder}")
