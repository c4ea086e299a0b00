"""Workers that misbehave in every way; a module of its own, because spawned processes have to import them."""

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

import numpy as np

from features.decode import decode_bytes
from features.errors import StorageError
from features.preprocess import Thumbnail
from features.shard_worker import ShardSetup
from features.texts import joined


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


@dataclass(frozen=True)
class FragileEncoder:
    """Vectors that depend on the content alone; a picture of one grey or a text with one word kills it."""

    grey: int = -1
    word: str = ""
    shift: float = 0.0
    max_tokens = 20
    token_step = 8

    def encode_images(self, pixels):
        if (np.abs(pixels.reshape(len(pixels), -1).mean(axis=1) - self.grey) < 1).any():
            os.kill(os.getpid(), signal.SIGSEGV)
        return self.shifted(pixels.reshape(len(pixels), 3, -1).mean(axis=2))

    def tokenize(self, texts):
        if self.word and any(self.word in text for text in texts):
            os.kill(os.getpid(), signal.SIGSEGV)
        full = [np.frombuffer(f"<{text}>".encode(), np.uint8).astype(np.int64) for text in texts]
        return [ids[: self.max_tokens] for ids in full], np.array([len(ids) > self.max_tokens for ids in full])

    def encode_tokens(self, tokens, pad_to):
        return self.shifted(np.array([[ids.sum(), len(ids), ids[-2], ids[1]] for ids in tokens]))

    def shifted(self, vectors):
        vectors = vectors.astype(np.float32)
        vectors[:, 0] += self.shift
        return vectors


@dataclass(frozen=True)
class LoadFragile:
    encoder: FragileEncoder

    def __call__(self, kind, device):
        return self.encoder


def cut_corner(data):
    """The first pixels as they are: what resizes needs torch, which takes every process two seconds."""
    rgb, status, digest = decode_bytes(data)
    pixels = None if rgb is None else np.ascontiguousarray(rgb[:4, :4].transpose(2, 0, 1))
    return Thumbnail(pixels, status, digest)


def shard_setup(**encoder) -> ShardSetup:
    return ShardSetup(
        load_encoder=LoadFragile(FragileEncoder(**encoder)), cut=cut_corner, read_prompt=joined, batch_size=4
    )
