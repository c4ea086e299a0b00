"""What became of each row: a vector is stored for every row, and next to it one of these."""

from enum import IntEnum

import numpy as np
from jaxtyping import Bool, UInt8


class Status(IntEnum):
    """Status of one source (a thumbnail or a text); stored as uint8, so values never change meaning."""

    OK = 0
    MISSING = 1  # no such file
    UNREADABLE = 2  # a directory, FIFO, device, symlink loop, or no permission
    UNIDENTIFIED = 3  # the bytes are no image at all (zero bytes, an HTML error page, SVG)
    TRUNCATED = 4  # an image that ends early or does not decode
    FORMAT = 5  # an image, of a format that is not on the list
    TOO_LARGE = 6  # more pixels or bytes than the limits allow
    BAD_ID = 7  # the id is not safe as a file name
    OUTSIDE_ROOT = 8  # the path leaves the dataset folder
    NONFINITE = 9  # the encoder returned NaN or infinity
    WORKER_CRASH = 10  # encoding this row killed its process
    EMPTY_TEXT = 11  # nothing to read: no title and no description

    @property
    def label(self) -> str:
        """The word used in messages and files.

        >>> Status.TOO_LARGE.label
        'too_large'
        """
        return self.name.lower()


ABSENT_BUT_NOT_BAD = frozenset({Status.EMPTY_TEXT})
"""An empty text is a fact about the video; every other status than OK is a fault that `--max-bad` counts."""


def unknown(status: UInt8[np.ndarray, " row"]) -> Bool[np.ndarray, " row"]:
    """The rows whose status is none of these: no version of vp wrote it, or a newer one."""
    return ~np.isin(status, [known.value for known in Status])


def bad(status: UInt8[np.ndarray, " row"]) -> list[int]:
    """The rows whose source should be usable and is not."""
    harmless = [Status.OK, *ABSENT_BUT_NOT_BAD]
    return np.flatnonzero(~np.isin(status, harmless)).tolist()
