"""Thumbnails decoded on threads, ahead of whoever encodes them.

Threads and not processes: reading, libjpeg-turbo and the resize all run without the interpreter lock.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from features.preprocess import Thumbnail
from features.status import Status

Source = Path | Status
"""Where a thumbnail is, or why there is none."""


class ThumbnailFeed:
    """Sources come in with `add`, thumbnails go out with `next`, in the same order; close it at the end.

    Parameters
    ----------
    read
        From a source to the bytes of its file, or why there are none.
    cut
        From those to what an encoder takes. Both may be called from several threads.
    threads
        How many work at the same time.
    ahead
        How many thumbnails may be ready, or begun, before they are asked for: this bounds memory.
    """

    def __init__(
        self,
        read: Callable[[Source], bytes | Status],
        cut: Callable[[bytes | Status], Thumbnail],
        threads: int,
        ahead: int,
    ) -> None:
        self._read, self._cut, self._ahead = read, cut, ahead
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="feed")
        self._lock = threading.Lock()
        self._sources: deque[Source] = deque()
        self._begun: deque[Future[Thumbnail]] = deque()
        self._seconds = {"read": 0.0, "decode": 0.0}

    def add(self, sources: Iterable[Source]) -> None:
        """Line up more sources; may be called from another thread than `next`."""
        with self._lock:
            self._sources.extend(sources)
            self._begin()

    def next(self) -> Thumbnail:
        """Wait for the next thumbnail."""
        with self._lock:
            future = self._begun.popleft()
            self._begin()
        return future.result()

    def take_seconds(self) -> dict[str, float]:
        """Seconds that all threads together spent reading and decoding, since this was last asked."""
        with self._lock:
            taken, self._seconds = self._seconds, {"read": 0.0, "decode": 0.0}
        return taken

    def close(self) -> None:
        """Drop what is not begun, and end the threads."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _begin(self) -> None:
        while self._sources and len(self._begun) < self._ahead:
            self._begun.append(self._pool.submit(self._thumbnail, self._sources.popleft()))

    def _thumbnail(self, source: Source) -> Thumbnail:
        start = time.perf_counter()
        data = self._read(source)
        between = time.perf_counter()
        thumbnail = self._cut(data)
        end = time.perf_counter()
        with self._lock:
            self._seconds["read"] += between - start
            self._seconds["decode"] += end - between
        return thumbnail
