"""The work of an extraction inside the test's own process, for tests that are about something else than processes."""

import contextlib
import sys

import pytest

from features.supervise import Done, Job, Result, Supervisor, Told


class SupervisorHere(Supervisor[Job, Result]):
    """As `features.supervise.Supervisor`, with one worker that is no process: what it raises arrives."""

    def __init__(self, setup, devices, **_options):
        self._setup, self._device = setup, devices[0]

    def __enter__(self):
        return self

    def __exit__(self, *_exception):
        pass

    def run(self, shared, jobs):
        with _threads_as_they_were():
            worker = self._setup(self._device)
            try:
                worker.share(shared)
                for job in jobs:
                    worker.announce(job)
                    told = []
                    result = worker.work(job, told.append).result()
                    yield from [Told(self._device, job, units) for units in told]
                    yield Done(self._device, job, result)
            finally:
                worker.close()

    def retry(self, lost, jobs, strikes):
        raise AssertionError("nothing is lost here")


@contextlib.contextmanager
def _threads_as_they_were():
    """A worker sets how many threads compute, for all of its process."""
    torch = sys.modules.get("torch")
    threads = torch.get_num_threads() if torch else 0
    yield
    if threads:
        torch.set_num_threads(threads)


@contextlib.contextmanager
def workers_here():
    """Commands start no process: importing torch in each takes longer than what tests have it do."""
    with pytest.MonkeyPatch.context() as patch:
        for module in ("pipeline.extract", "pipeline.finetune"):
            patch.setattr(f"{module}.Supervisor", SupervisorHere)
        yield
