"""Every way a command can end, as one table of exit codes."""

from features.errors import (
    CacheError,
    DataError,
    FeatureError,
    LockedError,
    StorageError,
    TooManyBadRowsError,
    UsageError,
    WorkersFailedError,
)
from heads.errors import UnfitDataError

EXIT_CODES: dict[type[Exception], int] = {
    UsageError: 2,
    DataError: 3,
    UnfitDataError: 3,
    TooManyBadRowsError: 4,
    StorageError: 5,
    LockedError: 6,
    CacheError: 7,
    WorkersFailedError: 8,
}
"""0 is done, 1 a bug; 130 and 143 are set by the command line on SIGINT and SIGTERM."""

EXPECTED_ERRORS = (FeatureError, UnfitDataError)
"""What a user can mend: shown as one message, without a traceback."""


def exit_code(error: Exception) -> int:
    """The exit code of an error; 1 for anything that is not expected.

    >>> exit_code(DataError("line 7")), exit_code(ZeroDivisionError())
    (3, 1)
    """
    return next((code for kind, code in EXIT_CODES.items() if isinstance(error, kind)), 1)
