"""Workers that misbehave in every way; their module imports little, as every process of theirs has to import it."""

import gc
import os
import signal
import struct
import subprocess
import time
from concurrent.futures import Future
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from features.errors import StorageError


@dataclass(frozen=True)
class Clerk:
    """Doubles numbers and adds what is shared; a job may say what happens instead, and how many times.

    A job is (number, what, times) and whatever else; `folder` remembers how often something has happened already. What
    happens at the start, when something is shared or at every job happens on the bad device, or on all.
    """

    folder: Path
    at_start: str = ""
    at_share: str = ""
    at_work: str = ""
    bad_device: str = ""

    def __call__(self, device):
        bad = not self.bad_device or device == self.bad_device
        if self.at_start and bad:
            os.write(2, b"something about libcuda.so\n")
            misbehave(self.at_start)
        return _Clerk(self, device, bad)


class _Clerk:
    def __init__(self, setup, device, bad):
        self.setup, self.device, self.bad, self.shared, self.announced = setup, device, bad, 0, []

    def share(self, shared):
        if self.bad:
            misbehave(self.setup.at_share)
        self.shared = shared

    def announce(self, job):
        number, what, times, *_ = job
        self.announced.append(number)
        if what == "die when announced":
            self.happen("exit", number, times)

    def work(self, job, tell):
        number, what, times, *_ = job
        assert self.announced.pop(0) == number
        tell(1)
        if self.bad:
            misbehave(self.setup.at_work)
        if what in ("slow", "long"):
            time.sleep(0.05 if what == "slow" else 8.0)
        elif what and what != "die when announced":
            self.happen(what, number, times)
        tell(1)
        future = Future()
        future.set_result((2 * number + self.shared, os.getpid(), self.device))
        return future

    def close(self):
        (self.setup.folder / f"closed-{os.getpid()}").touch()

    def happen(self, what, number, times):
        marks = [self.setup.folder / f"{number}-{time}" for time in range(times)]
        for mark in marks:
            if not mark.exists():
                mark.touch()
                misbehave(what)


def misbehave(what):
    if what == "exit":
        os.write(2, b"the last words of a dying worker\n")
        os._exit(3)
    elif what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif what == "freeze":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif what == "stop in the middle of a message":
        pipes = (each for each in gc.get_objects() if isinstance(each, Connection) and each.readable and each.writable)
        os.write(next(pipes).fileno(), struct.pack("!i", 1000) + b"half of it")
        os.kill(os.getpid(), signal.SIGSTOP)
    elif what == "exit before a child":
        subprocess.Popen(["sleep", "120"])
        os._exit(3)
    elif what == "hang":
        time.sleep(600)
    elif what == "raise":
        raise ZeroDivisionError("this is a bug")
    elif what == "disk full":
        raise StorageError("cannot write x: No space left on device")
