"""What runs inside one worker process: it takes jobs from its supervisor, one after the other, and hands results back.

The process ends at once when its supervisor is gone: the pipe between them then ends, and a thread does nothing but
listen to it.
"""

import os
import queue
import signal
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, Protocol, runtime_checkable

from features.errors import FeatureError

STDOUT, STDERR = 1, 2


@runtime_checkable
class Worker(Protocol):
    """What a process can do; made once in it, by a picklable function of the device."""

    def share(self, shared: Any) -> None:
        """Take what all following jobs have in common, and make ready for them: what fails here is no job's fault."""

    def announce(self, job: Any) -> None:
        """Take note of a job that comes after those announced before it; reading for it may begin."""

    def work(self, job: Any, tell: Callable[[int], None]) -> "Future[Any]":
        """Do a job that was announced, telling how many units are done; what is left to wait for is in the future."""

    def close(self) -> None:
        """End its threads; there are no more jobs."""


@dataclass(frozen=True)
class Share:
    """To a worker: what the following jobs have in common."""

    shared: Any


@dataclass(frozen=True)
class HandOut:
    """To a worker: a job."""

    number: int
    job: Any


Message = Share | HandOut | None
"""To a worker; None says that there is no more."""


@dataclass(frozen=True)
class Ready:
    """From a worker: it is ready for jobs."""


@dataclass(frozen=True)
class Begun:
    """From a worker: from now on, if it dies it is probably because of this job."""

    number: int


@dataclass(frozen=True)
class Progressed:
    """From a worker: some units more of a job are done."""

    number: int
    units: int


@dataclass(frozen=True)
class Finished:
    """From a worker: a job is done."""

    number: int
    result: Any


@dataclass(frozen=True)
class Failed:
    """From a worker, its last word: an error that a user can mend, or else why and where the code broke."""

    error: FeatureError | None
    reason: str
    trace: str


def run_worker(connection: Connection, log: Connection, setup: Callable[[str], Worker], device: str) -> None:
    """Serve until the supervisor says that there is no more, or is gone."""
    os.dup2(log.fileno(), STDERR)  # libraries write there before they die
    os.dup2(log.fileno(), STDOUT)  # and what others print must not get between the results of the command
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the supervisor as well, which ends its workers
    outbox = _Outbox(connection)
    arrived: queue.SimpleQueue[Message] = queue.SimpleQueue()
    _start_thread(_listen, connection, arrived, outbox)
    try:
        worker = setup(device)
        announced: queue.SimpleQueue[HandOut | None] = queue.SimpleQueue()
        _start_thread(_announce, worker, arrived, announced, outbox)
        for handed in iter(announced.get, None):
            _work(worker, handed, outbox)
        worker.close()
    except Exception as error:  # noqa: BLE001 - whatever it is, the supervisor must hear of it
        outbox.fail(error)


class _Outbox:
    """Results are sent by the threads that finish them, and a pipe takes one message at a time."""

    def __init__(self, connection: Connection) -> None:
        self._connection, self._lock = connection, threading.Lock()

    def send(self, message: Any) -> None:
        with self._lock:
            self._connection.send(message)

    def fail(self, error: BaseException) -> None:
        mendable = error if isinstance(error, FeatureError) else None
        first_line = next((line for line in str(error).splitlines() if line.strip()), "")
        reason = f"{type(error).__name__}: {first_line}" if first_line else type(error).__name__
        self.send(Failed(mendable, reason, "".join(traceback.format_exception(error))))

    def die_of(self, error: BaseException) -> None:
        """End the process from any of its threads."""
        self.fail(error)
        os._exit(1)


def _start_thread(run: Callable[..., None], *arguments: Any) -> None:
    threading.Thread(target=run, args=arguments, name=run.__name__, daemon=True).start()


def _listen(connection: Connection, arrived: "queue.SimpleQueue[Message]", outbox: _Outbox) -> None:
    while True:
        try:
            arrived.put(connection.recv())
        except (EOFError, OSError):
            os._exit(1)  # nobody wants the results any more, and whatever else runs here must not outlive that
        except Exception as error:  # noqa: BLE001 - a message that cannot be unpickled: the supervisor must hear of it
            outbox.die_of(error)


def _announce(
    worker: Worker,
    arrived: "queue.SimpleQueue[Message]",
    announced: "queue.SimpleQueue[HandOut | None]",
    outbox: _Outbox,
) -> None:
    """Let the worker read ahead for a job while it still works on the one before."""
    try:
        for message in iter(arrived.get, None):
            if isinstance(message, Share):
                worker.share(message.shared)
                outbox.send(Ready())
            elif isinstance(message, HandOut):
                worker.announce(message.job)
                announced.put(message)
        announced.put(None)
    except Exception as error:  # noqa: BLE001 - as above
        outbox.die_of(error)


def _work(worker: Worker, handed: HandOut, outbox: _Outbox) -> None:
    outbox.send(Begun(handed.number))
    future = worker.work(handed.job, lambda units: outbox.send(Progressed(handed.number, units)))

    def deliver(done: "Future[Any]") -> None:
        try:
            outbox.send(Finished(handed.number, done.result()))
        except BaseException as error:  # noqa: BLE001 - of the work or of the sending: nobody else would hear of it
            outbox.die_of(error)

    future.add_done_callback(deliver)
