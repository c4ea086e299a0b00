"""Jobs spread over worker processes that may die, hang or be killed; what one of them held is handed out again.

Every death costs the job that was being worked on a strike, and a job with too many strikes is given back to whoever
ordered it. Jobs that a dead worker held are from then on worked on alone, so that the next death tells whose it is, and
elsewhere if there is an elsewhere. A device on which one job after the other dies, while others finish theirs, is given
up, and what died there is forgiven.
"""

import collections
import contextlib
import itertools
import multiprocessing
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from typing import Any, Generic, TypeVar

from features.errors import WorkersFailedError
from features.worker import Begun, Failed, Finished, HandOut, Message, Progressed, Ready, Share, Worker, run_worker

Job = TypeVar("Job")
Result = TypeVar("Result")

STRIKES = 3
"""So many workers may die over a job before it is given back."""
FALSE_STARTS = 3
"""So often a worker may die before it is ready; then its device is given up."""
VICTIMS = 3
"""So many different jobs may die on a device that finishes none, while others finish some; then it is given up."""
DEATHS_IN_A_ROW = 20
"""So many without a single job done in between: it is not the jobs. Cornering one bad row of 1,024 takes 15."""

JOBS_EACH = 2  # that a worker holds: one is worked on, for the next one it reads already
LAST_WORDS = 15  # lines of a worker's stderr that are kept
GRACE_SECONDS = 5.0  # for workers to end
OVERSLEPT_SECONDS = 1.0  # later than that nobody wakes who is waiting
PIPES_SECONDS = 1.0  # for their pipes to end: what a library has started in them may have inherited one, and live on


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
    """A job has killed too many workers; `family` tells what it was a part of."""

    job: Job
    reason: str
    family: int = -1


@dataclass(eq=False)
class _Ticket(Generic[Job]):
    """A job; `family` is the number of the job that it is a part of, `deaths` counts those over it by slot."""

    number: int
    job: Job
    family: int
    strikes: int = STRIKES
    is_suspect: bool = False
    told: int = 0
    deaths: "collections.Counter[_Slot[Job]]" = field(default_factory=collections.Counter)

    @property
    def is_lost(self) -> bool:
        """Whether too many died over it, not counting those on devices that are given up."""
        return sum(count for slot, count in self.deaths.items() if not slot.is_retired) >= self.strikes


class Supervisor(Generic[Job, Result]):
    """Worker processes, one per name in `devices`; a context manager, at whose end no process is left.

    Only one that no signal ends, because it waits inside a driver, is left behind, and its device with it.

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
    jobs_each
        How many a worker may hold; 1 where jobs are long and nothing is read ahead, so that none waits in vain.
    """

    def __init__(
        self,
        setup: Callable[[str], Worker],
        devices: Sequence[str],
        *,
        patience_seconds: float,
        warn: Callable[[str], None],
        jobs_each: int = JOBS_EACH,
    ) -> None:
        self._news: queue.SimpleQueue[_News[Job]] = queue.SimpleQueue()
        self._slots = [_Slot[Job](setup, device, self._news) for device in devices]
        self._patience = patience_seconds
        self._warn = warn
        self._jobs_each = jobs_each
        self._numbers = itertools.count()
        self._shared: Share | None = None
        self._fresh: Iterator[Job] = iter(())
        self._again: list[_Ticket[Job]] = []
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

    def retry(self, lost: Lost[Job], jobs: Sequence[Job], strikes: int) -> None:
        """Have the parts of a job that was lost done by the next workers that are free, each alone."""
        tickets = [_Ticket(next(self._numbers), job, lost.family, strikes, is_suspect=True) for job in jobs]
        self._again[:0] = tickets

    def _hand_out(self) -> bool:
        """Give every worker something to do, then every one more; returns whether there is anything to wait for."""
        for jobs_each in range(1, self._jobs_each + 1):
            for slot in self._slots:
                if slot.has_room(jobs_each) and (ticket := self._next(slot)) is not None:
                    self._give(slot, ticket)
        return any(slot.held for slot in self._slots)

    def _next(self, slot: "_Slot[Job]") -> _Ticket[Job] | None:
        for place, ticket in enumerate(self._again):
            if self._may_try(ticket, slot):
                return None if slot.held else self._again.pop(place)  # it waits until it can be alone
        for job in self._fresh:
            number = next(self._numbers)
            return _Ticket(number, job, family=number)
        return None

    def _may_try(self, ticket: _Ticket[Job], slot: "_Slot[Job]") -> bool:
        """Not again where it died, unless it has died everywhere; a long job does not wait for others to end either."""
        elsewhere = [other for other in self._slots if not other.is_retired and other not in ticket.deaths]
        if slot not in ticket.deaths or not elsewhere:
            return True
        return self._jobs_each == 1 and not any(other.has_room(1) for other in elsewhere)

    def _give(self, slot: "_Slot[Job]", ticket: _Ticket[Job]) -> None:
        slot.start()
        slot.held[ticket.number] = ticket
        slot.deadline = time.monotonic() + self._patience
        if not slot.knows_shared:
            slot.post(self._shared)
            slot.knows_shared, slot.is_ready = True, False
        slot.post(HandOut(ticket.number, ticket.job))

    def _listen(self) -> Iterator[Told[Job] | Done[Job, Result] | Lost[Job]]:
        """Wait for the next messages, for a death, or for the end of somebody's patience."""
        patience = min(slot.deadline for slot in self._slots if slot.held) - time.monotonic()
        with contextlib.suppress(queue.Empty):
            yield from self._hear(self._news.get(timeout=max(patience, 0.0)))
            for _ in range(self._news.qsize()):  # whoever has said something must not be called silent
                yield from self._hear(self._news.get_nowait())
        now = time.monotonic()
        for slot in self._slots:
            if slot.held and now > slot.deadline + OVERSLEPT_SECONDS:  # we were stopped, and perhaps all of us
                slot.deadline = now + self._patience
            elif slot.held and now > slot.deadline:
                yield from self._bury(slot, f"said nothing for {self._patience:g} s")

    def _hear(self, news: "_News[Job]") -> Iterator[Told[Job] | Done[Job, Result] | Lost[Job]]:
        slot, message = news.slot, news.message
        if not slot.is_running or news.process is not slot.process:
            return  # it is of one that was buried
        slot.deadline = time.monotonic() + self._patience
        if message is None:
            slot.process.join(GRACE_SECONDS)  # it is about to end, if it has not: how, is to be told
            yield from self._bury(slot)
        elif isinstance(message, Exception):
            raise message
        elif isinstance(message, Failed):
            if message.error is not None:
                raise message.error
            slot.last_words.extend(line for line in message.trace.splitlines() if line.strip())
            yield from self._bury(slot, f"failed: {message.reason}")
        else:
            yield from self._understand(slot, message)

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
            slot.victims.clear()
            for other in self._slots:
                other.others_finish = other is not slot
            yield Done(slot.device, slot.held.pop(message.number).job, message.result)

    def _bury(self, slot: "_Slot[Job]", reason: str = "") -> Iterator[Told[Job] | Lost[Job]]:
        """Clear up after a death: its jobs go back, the one that was worked on with a strike."""
        pid, ending = slot.process.pid, slot.kill()
        held, slot.held = list(slot.held.values()), {}
        for ticket in held if slot.is_ready else []:  # before, no job had reached it
            ticket.is_suspect = True
            if ticket.number == slot.begun or len(held) == 1:
                ticket.deaths[slot] += 1
                slot.victims.add(ticket.family)
        self._count_death(slot, f"worker {pid} on {slot.device} {reason or ending}", handed_back=len(held))
        for ticket in reversed(held):
            if ticket.told:
                yield Told(slot.device, ticket.job, -ticket.told)
                ticket.told = 0
            if ticket.is_lost:
                yield Lost(ticket.job, reason or ending, ticket.family)
            else:
                self._again.insert(0, ticket)

    def _count_death(self, slot: "_Slot[Job]", what: str, handed_back: int) -> None:
        last_words = "".join(f"\n  {line}" for line in tuple(slot.last_words))
        self._deaths_in_a_row += 1
        slot.false_starts += not slot.is_ready
        if slot.false_starts >= FALSE_STARTS or (slot.others_finish and len(slot.victims) >= VICTIMS):
            slot.is_retired = True
        if all(each.is_retired for each in self._slots):
            raise WorkersFailedError(f"no worker is left: {what}. Its last words:{last_words or ' none'}")
        if self._deaths_in_a_row >= DEATHS_IN_A_ROW:
            raise WorkersFailedError(
                f"{DEATHS_IN_A_ROW} workers died and no job was done in between; the last: {what}. What is finished is "
                f"kept. Its last words:{last_words or ' none'}"
            )
        again = f"; what it held ({handed_back}) is handed out again" if handed_back else ""
        self._warn(f"{what}{again}{'; the device is given up' if slot.is_retired else ''}")


@dataclass(frozen=True, eq=False)
class _News(Generic[Job]):
    """What a process said, or why that cannot be read; None is its end."""

    slot: "_Slot[Job]"
    process: Any
    message: Any


@dataclass(eq=False)
class _Slot(Generic[Job]):
    """The place of one process, which may have to be filled again."""

    setup: Callable[[str], Worker]
    device: str
    news: "queue.SimpleQueue[_News[Job]]"
    held: dict[int, _Ticket[Job]] = field(default_factory=dict)
    begun: int = -1
    deadline: float = 0.0
    is_running: bool = False
    is_ready: bool = False
    is_retired: bool = False
    knows_shared: bool = False
    false_starts: int = 0
    victims: set[int] = field(default_factory=set)  # families that died here since it last finished a job
    others_finish: bool = False  # whether some other slot has finished a job since
    last_words: collections.deque[str] = field(init=False)
    process: Any = None
    connection: Connection = field(init=False)
    outbox: "queue.SimpleQueue[bytes]" = field(init=False)
    threads: list[threading.Thread] = field(init=False)

    def has_room(self, jobs: int) -> bool:
        """Whether it may take one more, to hold so many at most: a suspect is worked on alone."""
        alone = any(ticket.is_suspect for ticket in self.held.values())
        return not self.is_retired and not alone and len(self.held) < jobs

    def start(self) -> None:
        """Start the process, unless it runs."""
        if self.is_running:
            return
        context = multiprocessing.get_context("spawn")  # a forked process would share CUDA and locks of threads
        self.connection, theirs = context.Pipe()
        log, their_stderr = context.Pipe(duplex=False)
        self.process = context.Process(
            target=run_worker, args=(theirs, their_stderr, self.setup, self.device), name=f"vp-{self.device}"
        )
        with _sigint_blocked():  # the child inherits that, so a Ctrl-C cannot break it before it ignores it itself
            self.process.start()
        theirs.close()
        their_stderr.close()
        self.is_running, self.begun = True, -1
        self.is_ready = self.knows_shared = False
        self.outbox, self.last_words = queue.SimpleQueue(), collections.deque(maxlen=LAST_WORDS)
        self.threads = [
            _started(_send_all, self.outbox, self.connection),
            _started(_hear_all, self, self.process, self.connection),
            _started(_keep_last_words, log, self.last_words),
        ]

    def post(self, message: Message) -> None:
        """Have a message sent to the process."""
        self.outbox.put(bytes(ForkingPickler.dumps(message)))

    def kill(self) -> str:
        """End the process at once; returns how it had ended or was ended."""
        was_alive = self.process.is_alive()
        self.process.kill()
        self.process.join(GRACE_SECONDS)
        code = self.process.exitcode
        self._close()
        if code is None:  # it will keep its device
            self.is_retired = True
            return "cannot be ended"
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
            self.post(None)

    def end(self, deadline: float) -> None:
        """Wait for the process until the deadline, then kill it."""
        if not self.is_running:
            return
        self.process.join(max(deadline - time.monotonic(), 0.0))
        if self.process.is_alive():
            self.process.kill()
            self.process.join(GRACE_SECONDS)
        self._close()

    def _close(self) -> None:
        self.outbox.put(b"")
        for thread in self.threads:
            thread.join(PIPES_SECONDS)
        if not any(thread.is_alive() for thread in self.threads):
            self.connection.close()
        if self.process.exitcode is None:  # it waits inside a driver, where no signal reaches it
            multiprocessing.process._children.discard(self.process)  # type: ignore[attr-defined]  # or Python waits too
        else:
            self.process.close()
        self.is_running = False


# Each on a thread of its own, for one process: one that neither listens nor ends what it says, because it is stopped in
# the middle of that, must not keep the supervisor from the others.


def _started(run: Callable[..., None], *arguments: Any) -> threading.Thread:
    thread = threading.Thread(target=run, args=arguments, name=run.__name__, daemon=True)
    thread.start()
    return thread


def _send_all(outbox: "queue.SimpleQueue[bytes]", connection: Connection) -> None:
    with contextlib.suppress(OSError):  # it has died, which another thread notices
        for message in iter(outbox.get, b""):
            connection.send_bytes(message)


def _hear_all(slot: _Slot[Any], process: Any, connection: Connection) -> None:
    while True:
        try:
            message = connection.recv()
        except (EOFError, OSError):
            slot.news.put(_News(slot, process, None))
            return
        except Exception as error:  # noqa: BLE001 - whoever waits for a message must learn why there is none
            message = error
        slot.news.put(_News(slot, process, message))


def _keep_last_words(log: Connection, last_words: collections.deque[str]) -> None:
    """Of what a process writes to its stderr."""
    with log:
        while text := os.read(log.fileno(), 65536).decode("utf-8", "replace"):
            last_words.extend(line for line in text.splitlines() if line.strip())


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
