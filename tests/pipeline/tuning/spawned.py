"""A worker of a fine-tuning that is killed once; a module of its own, because spawned processes have to import it."""

import os
import signal
from dataclasses import dataclass
from pathlib import Path

from pipeline.tuning.state import STATE
from pipeline.tuning.worker import FinetuneSetup, FinetuneWorker, TrainFold


@dataclass(frozen=True)
class DiesOnce(FinetuneSetup):
    """Dies in the second epoch of fold 1, once; `mark` remembers that it has."""

    mark: Path = Path()
    folder: Path = Path()

    def __call__(self, device):
        super().__call__(device)  # sets the number of threads, on which the last bits depend
        return _Mortal(self, device)


class _Mortal(FinetuneWorker):
    def __init__(self, setup, device):
        super().__init__(device)
        self._setup = setup

    def work(self, job, tell):
        def tell_or_die(units):
            tell(units)
            state = self._setup.folder / "fold1" / STATE
            begun = state.is_file() and '"epoch": 1' in state.read_text()
            if job == TrainFold(1) and begun and units and not self._setup.mark.exists():
                self._setup.mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)

        return super().work(job, tell_or_die)
