"""What a worker process of a fine-tuning does: it trains a fold, and later makes its member."""

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import torch

from features.families import load_encoder
from features.kinds import towers_of
from pipeline.tuning.fold import Context, FoldOnDevice, MakeMember, TrainFold
from pipeline.tuning.towers import TrainedTowers


@dataclass(frozen=True)
class FinetuneSetup:
    """Makes the worker in its process.

    On a CPU the last bits of a result depend on the number of threads, so it is the one that a fine-tuning began with.
    """

    compute_threads: int

    def __call__(self, device: str) -> "FinetuneWorker":
        """Set up the process that this is called in."""
        if device == "cpu":
            torch.set_num_threads(self.compute_threads)
        else:
            torch.cuda.set_device(device)  # autocast asks the current GPU what it can do
        return FinetuneWorker(device)


class FinetuneWorker:
    """Trains folds and makes members on one device; satisfies `features.worker.Worker`."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._context: Context
        self._towers: TrainedTowers | None = None

    def share(self, shared: Context) -> None:
        """Load the encoder, once: every fold begins with the same towers."""
        self._context = shared
        if self._towers is None:
            towers = towers_of(shared.kinds)
            encoder = load_encoder(shared.encoder, towers, self._device, "fp32")
            self._towers = TrainedTowers(encoder, towers, shared.config)

    def announce(self, job: TrainFold | MakeMember) -> None:
        """Nothing is read ahead: a fold takes long, and its feed reads ahead on its own."""

    def work(self, job: TrainFold | MakeMember, tell: Callable[[int], None]) -> "Future[Any]":
        """Do one job; nothing is left to wait for."""
        if self._towers is None:
            raise ValueError("a worker must be told what all folds have in common before it is given one")
        done: Future[Any] = Future()
        fold = FoldOnDevice(self._context, self._towers, job.fold, self._device, tell)
        done.set_result(fold.trained() if isinstance(job, TrainFold) else fold.made(job))
        return done

    def close(self) -> None:
        """Nothing runs beside the jobs."""
