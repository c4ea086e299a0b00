"""Jobs spread over worker processes that may die, hang or be killed; what one of them held is handed out again.

Every death costs the job that was being worked on a strike, and a job with too many strikes is given back to whoever
ordered it. Jobs that a dead worker held are from then on worked on alone, so that the next death tells whose it is.
"""

import collections
import contextlib
import itertools
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any, Generic, TypeVar

from features.errors import WorkersFailedError
from features.worker import Begun, Failed, Finished, HandOut, Progressed, Ready, Share, Worker, run_worker

Job = TypeVar("Job")
Result = TypeVar("Result")

STRIKES = 3
"""So many workers may die over a job before it is given back."""
FALSE_STARTS = 3
"""So often a worker may die before it is ready; then its device is given up."""
DEATHS_IN_A_ROW = 20
"""So many without a single job done in between: it is not the jobs. Cornering one bad row of 1,024 takes 15."""

READ_AHEAD = 2  # jobs that a worker holds: one is worked on, for the next one it reads already
LAST_WORDS = 15  # lines of a worker's stderr that are kept
GRACE_SECONDS = 5.0  # for workers to end


@dataclass(frozen=True)
class Told(Generic[Job]):
    """Units of a job are done, or (fewer than 0) are lost again."""

    device: str
    job: Job
    units: int


@dataclass(frozen=True)
class Done(Generic[Job, Result]):
    """A job is done."""

    device: str
    job: Job
    result: Result


@dataclass(frozen=True)
class Lost(Generic[Job]):
    """A job has killed too many workers."""

    job: Job
    reason: str


@dataclass(eq=False)
class _Ticket(Generic[Job]):
    number: int
    job: Job
    strikes_left: int = STRIKES
    is_suspect: bool = False
    told: int = 0


class Supervisor(Generic[Job, Result]):
    """Worker processes, one per name in `devices`; a context manager, at whose end no process is left.

    Parameters
    ----------
    setup
        Picklable; called with its device in each process, makes its `Worker`. Processes start when there is work.
    devices
        One process each; a name may occur several times.
    patience_seconds
        A worker that holds a job and says nothing for so long is killed.
    warn
        Told about deaths.
    """

    def __init__(
        self,
        setup: Callable[[str], Worker],
        devices: Sequence[str],
        *,
        patience_seconds: float,
        warn: Callable[[str], None],
    ) -> None:
        self._slots = [_Slot[Job](setup, device) for device in devices]
        self._patience = patience_seconds
        self._warn = warn
        self._numbers = itertools.count()
        self._shared: Share | None = None
        self._fresh: Iterator[Job] = iter(())
        self._again: collections.deque[_Ticket[Job]] = collections.deque()
        self._deaths_in_a_row = 0

    def __enter__(self) -> "Supervisor[Job, Result]":
        return self

    def __exit__(self, *_exception: object) -> None:
        for slot in self._slots:
            slot.ask_to_end()
        deadline = time.monotonic() + GRACE_SECONDS
        for slot in self._slots:
            slot.end(deadline)

    def run(self, shared: Any, jobs: Iterable[Job]) -> Iterator[Told[Job] | Done[Job, Result] | Lost[Job]]:
        """Have the jobs done, in no certain order; `shared` is what they have in common, sent once to each process.

        Jobs are taken from the iterable as workers become free. Read the events to their end.

        Raises
        ------
        FeatureError
            What a worker raised, if a user can mend it.
        WorkersFailedError
            No worker is left, or they die whatever they are given.
        """
        self._shared, self._fresh = Share(shared), iter(jobs)
        for slot in self._slots:
            slot.knows_shared = False
        while self._hand_out():
            yield from self._listen()

    def retry(self, jobs: Sequence[Job], strikes: int) -> None:
        """Have more jobs done before all others, each alone; for the parts of one that was lost."""
        tickets = [_Ticket(next(self._numbers), job, strikes, is_suspect=True) for job in jobs]
        self._again.extendleft(reversed(tickets))

    def _hand_out(self) -> bool:
        """Give every worker something to do, then every one more; returns whether there is anything to wait for."""
        for jobs_each in range(1, READ_AHEAD + 1):
            for slot in self._slots:
                if slot.has_room(jobs_each) and (ticket := self._next(slot)) is not None:
                    self._give(slot, ticket)
        return any(slot.held for slot in self._slots)

    def _next(self, slot: "_Slot[Job]") -> _Ticket[Job] | None:
        if self._again and not slot.held:
            return self._again.popleft()
        for job in self._fresh:
            return _Ticket(next(self._numbers), job)
        return None

    def _give(self, slot: "_Slot[Job]", ticket: _Ticket[Job]) -> None:
        slot.start()
        slot.held[ticket.number] = ticket
        slot.deadline = time.monotonic() + self._patience
        with contextlib.suppress(OSError):  # it has just died: that is noticed below
            if not slot.knows_shared:
                slot.connection.send(self._shared)
                slot.knows_shared = True
            slot.connection.send(HandOut(ticket.number, ticket.job))

    def _listen(self) -> Iterator[Told[Job] | Done[Job, Result] | Lost[Job]]:
        """Wait for the next messages or deaths."""
        running = [slot for slot in self._slots if slot.is_running]
        patience = min(slot.deadline for slot in running if slot.held) - time.monotonic()
        heard = wait([ear for slot in running for ear in slot.ears], timeout=max(patience, 0.0))
        for slot in running:
            if slot.log in heard:
                slot.read_log()
            if slot.connection in heard or slot.process.sentinel in heard:
                yield from self._hear(slot)
            elif slot.held and time.monotonic() > slot.deadline:
                yield from self._bury(slot, f"said nothing for {self._patience:g} s")

    def _hear(self, slot: "_Slot[Job]") -> Iterator[Told[Job] | Done[Job, Result] | Lost[Job]]:
        try:
            while slot.connection.poll():
                slot.deadline = time.monotonic() + self._patience
                message = slot.connection.recv()
                if isinstance(message, Failed):
                    if message.error is not None:
                        raise message.error
                    slot.last_words.extend(line for line in message.trace.splitlines() if line.strip())
                    yield from self._bury(slot, f"failed: {message.reason}")
                    return
                yield from self._understand(slot, message)
        except (EOFError, OSError):
            yield from self._bury(slot)
            return
        if not slot.process.is_alive() and not slot.connection.poll():
            yield from self._bury(slot)

    def _understand(self, slot: "_Slot[Job]", message: Any) -> Iterator[Told[Job] | Done[Job, Result]]:
        if isinstance(message, Ready):
            slot.is_ready, slot.false_starts = True, 0
        elif isinstance(message, Begun):
            slot.begun = message.number
        elif isinstance(message, Progressed):
            ticket = slot.held[message.number]
            ticket.told += message.units
            yield Told(slot.device, ticket.job, message.units)
        elif isinstance(message, Finished):
            self._deaths_in_a_row = 0
            yield Done(slot.device, slot.held.pop(message.number).job, message.result)

    def _bury(self, slot: "_Slot[Job]", reason: str = "") -> Iterator[Told[Job] | Lost[Job]]:
        """Clear up after a death: its jobs go back, the one that was worked on with a strike."""
        pid, ending = slot.process.pid, slot.kill()
        held, slot.held = list(slot.held.values()), {}
        self._count_death(slot, f"worker {pid} on {slot.device} {reason or ending}", handed_back=len(held))
        for ticket in reversed(held):
            if ticket.told:
                yield Told(slot.device, ticket.job, -ticket.told)
                ticket.told = 0
            if slot.is_ready:  # before, no job had reached it
                ticket.is_suspect = True
                ticket.strikes_left -= ticket.number == slot.begun or len(held) == 1
            if ticket.strikes_left > 0:
                self._again.appendleft(ticket)
            else:
                yield Lost(ticket.job, reason or ending)

    def _count_death(self, slot: "_Slot[Job]", what: str, handed_back: int) -> None:
        last_words = "".join(f"\n  {line}" for line in slot.last_words)
        self._deaths_in_a_row += 1
        slot.false_starts += not slot.is_ready
        if slot.false_starts >= FALSE_STARTS:
            slot.is_retired = True
        if all(each.is_retired for each in self._slots):
            raise WorkersFailedError(f"no worker could start: {what}. Its last words:{last_words or ' none'}")
        if self._deaths_in_a_row >= DEATHS_IN_A_ROW:
            raise WorkersFailedError(
                f"{DEATHS_IN_A_ROW} workers died and no job was done in between; the last: {what}. What is finished is "
                f"kept. Its last words:{last_words or ' none'}"
            )
        again = f"; what it held ({handed_back}) is handed out again" if handed_back else ""
        self._warn(f"{what}{again}{'; the device is given up' if slot.is_retired else ''}")


@dataclass(eq=False)
class _Slot(Generic[Job]):
    """The place of one process, which may have to be filled again."""

    setup: Callable[[str], Worker]
    device: str
    held: dict[int, _Ticket[Job]] = field(default_factory=dict)
    begun: int = -1
    deadline: float = 0.0
    is_running: bool = False
    is_ready: bool = False
    is_retired: bool = False
    log_ended: bool = False
    knows_shared: bool = False
    false_starts: int = 0
    last_words: collections.deque[str] = field(default_factory=lambda: collections.deque(maxlen=LAST_WORDS))
    process: Any = None
    connection: Connection = field(init=False)
    log: Connection = field(init=False)

    def has_room(self, jobs: int) -> bool:
        """Whether it may take one more, to hold so many at most: a suspect is worked on alone."""
        alone = any(ticket.is_suspect for ticket in self.held.values())
        return not self.is_retired and not alone and len(self.held) < jobs

    @property
    def ears(self) -> list[Any]:
        """What to listen to."""
        return [self.connection, self.process.sentinel, *([] if self.log_ended else [self.log])]

    def start(self) -> None:
        """Start the process, unless it runs."""
        if self.is_running:
            return
        context = multiprocessing.get_context("spawn")  # a forked process would share CUDA and locks of threads
        self.connection, theirs = context.Pipe()
        self.log, their_stderr = context.Pipe(duplex=False)
        self.process = context.Process(
            target=run_worker, args=(theirs, their_stderr, self.setup, self.device), name=f"vp-{self.device}"
        )
        with _sigint_blocked():  # the child inherits that, so a Ctrl-C cannot break it before it ignores it itself
            self.process.start()
        theirs.close()
        their_stderr.close()
        self.is_running, self.begun = True, -1
        self.is_ready = self.knows_shared = self.log_ended = False
        self.last_words.clear()

    def read_log(self) -> None:
        """Keep the last lines that the process wrote to its stderr."""
        text = os.read(self.log.fileno(), 65536).decode("utf-8", "replace")
        self.log_ended = not text
        self.last_words.extend(line for line in text.splitlines() if line.strip())

    def kill(self) -> str:
        """End the process at once; returns how it had ended or was ended."""
        was_alive = self.process.is_alive()
        self.process.kill()
        self.process.join()
        while not self.log_ended and self.log.poll():
            self.read_log()
        code = self.process.exitcode
        self._close()
        if was_alive and code == -signal.SIGKILL:
            return "was ended"
        return f"died of {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"

    def ask_to_end(self) -> None:
        """Tell the process that there is no more; one that still holds a job is not waited for."""
        if not self.is_running:
            return
        if self.held:
            self.process.terminate()
        else:
            with contextlib.suppress(OSError):
                self.connection.send(None)

    def end(self, deadline: float) -> None:
        """Wait for the process until the deadline, then kill it."""
        if not self.is_running:
            return
        self.process.join(max(deadline - time.monotonic(), 0.0))
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self._close()

    def _close(self) -> None:
        self.connection.close()
        self.log.close()
        self.process.close()
        self.is_running = False


@contextlib.contextmanager
def _sigint_blocked() -> Iterator[None]:
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
