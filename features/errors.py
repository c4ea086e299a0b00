"""What can go wrong while reading videos, running the encoder and keeping its vectors.

Each message says what must hold, what was given, and what to do. The exit code of every class is in
`pipeline.errors`.
"""


class FeatureError(Exception):
    """Base of the errors that a user can mend; its text is the whole message."""


class UsageError(FeatureError):
    """An option or a configuration that cannot be honoured."""


class DataError(FeatureError):
    """The dataset breaks a rule; the message names the file and the lines."""


class TooManyBadRowsError(FeatureError):
    """More thumbnails were unusable than `--max-bad` allows."""


class StorageError(FeatureError):
    """The disk is full, read-only or failing; what was finished is kept."""


class LockedError(FeatureError):
    """Another process writes to the same part of the cache."""


class CacheError(FeatureError):
    """A cache, run or checkpoint is incomplete, stale, corrupt or of another kind."""


class WorkersFailedError(FeatureError):
    """The encoder could not process rows that it must be able to process."""
