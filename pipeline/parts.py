"""Which part of the work is ours when several machines share it: from options, or from what a scheduler sets."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from features.errors import UsageError
from features.lock import WHOLE, Part

AUTO = "auto"


@dataclass(frozen=True)
class _Scheduler:
    """The variables in which a scheduler tells a task its index and how many there are."""

    name: str
    index: str
    count: str
    first: str = ""  # what the indices start with
    step: str = ""  # how far apart they are
    local: str = ""  # its index among the tasks of its machine
    per_machine: str = ""  # how many those are


_SCHEDULERS = (
    _Scheduler("torchrun", "RANK", "WORLD_SIZE", local="LOCAL_RANK", per_machine="LOCAL_WORLD_SIZE"),
    _Scheduler(
        *("a SLURM array", "SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT"),
        *("SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_STEP"),
    ),
    _Scheduler(
        *("a SLURM step", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS"),
        local="SLURM_LOCALID",
        per_machine="SLURM_STEP_TASKS_PER_NODE",  # such as 4(x2)
    ),
    _Scheduler("an indexed Kubernetes job", "JOB_COMPLETION_INDEX", "JOB_COMPLETIONS"),
)
"""In this order; Kubernetes itself sets no count, so there it comes from a manifest or from --num-shards."""


class ChosenPart(NamedTuple):
    """A part, and in words where it comes from ("" if nobody shares the work)."""

    part: Part
    told: str


def choose_part(shard_index: int | None, num_shards: str, environ: Mapping[str, str]) -> ChosenPart:
    """The part that `--shard-index` and `--num-shards` name; what they leave open comes from the environment.

    Nothing is taken from the environment unasked: a task of an array may well do all the work of another model.

    Raises
    ------
    UsageError
        The numbers are none, do not fit together, or are nowhere to be found.
    """
    scheduler = next((found for found in _SCHEDULERS if found.index in environ), None)
    if num_shards == AUTO:
        if scheduler is not None and scheduler.count not in environ:
            raise UsageError(
                f"{scheduler.name} sets {scheduler.index} but not {scheduler.count}: set it in the manifest, or give "
                "--num-shards"
            )
        if scheduler is None:
            names = ", ".join(f"{known.index} and {known.count}" for known in _SCHEDULERS)
            raise UsageError(f"--num-shards auto needs {names}; none is set: give --shard-index and --num-shards")
        of = _number(scheduler.count, environ[scheduler.count])
    else:
        of = _number("--num-shards", num_shards)
    if of < 1:
        raise UsageError(f"--num-shards must be 1 or more, not {of}")
    if shard_index is None and of == 1:
        return ChosenPart(WHOLE, "")
    if shard_index is not None:
        index, source = shard_index, "--shard-index"
    elif scheduler is not None:
        index, source = _index(scheduler, environ), scheduler.name
    else:
        raise UsageError(f"--num-shards {of} needs --shard-index, from 0 to {of - 1}")
    if not 0 <= index < of:
        raise UsageError(f"the index of a part must lie between 0 and {of - 1}, however {source} says {index}")
    return ChosenPart(Part(index + 1, of), f"part {index + 1} of {of} ({source} {index})")


def own_devices(devices: Sequence[str], environ: Mapping[str, str]) -> list[str]:
    """Those of a machine's devices that are ours, where a scheduler has started several tasks on it.

    >>> own_devices(["cuda:0", "cuda:1"], {"RANK": "3", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"})
    ['cuda:1']
    """
    for scheduler in _SCHEDULERS:
        if scheduler.local and scheduler.local in environ and scheduler.index in environ:
            place = _number(scheduler.local, environ[scheduler.local])
            tasks = _tasks_here(environ.get(scheduler.per_machine, "1"), environ.get("SLURM_NODEID", "0"))
            if tasks > 1 and "SLURM_GPUS_PER_TASK" not in environ:  # with it a task sees its own alone
                return list(devices[place::tasks]) or [devices[place % len(devices)]]
    return list(devices)


def _tasks_here(per_machine: str, machine: str) -> int:
    """How many tasks a machine has, where it is told for each of them, such as 4(x2),3; 1 if it is not told.

    >>> _tasks_here("4(x2),3", "2"), _tasks_here("8", "0"), _tasks_here("", "0")
    (3, 8, 1)
    """
    counts: list[int] = []
    for count, _, times in re.findall(r"(\d+)(\(x(\d+)\))?", per_machine):
        counts += [int(count)] * int(times or 1)
    return counts[min(_number("SLURM_NODEID", machine), len(counts) - 1)] if counts else 1


def _index(scheduler: _Scheduler, environ: Mapping[str, str]) -> int:
    index = _number(scheduler.index, environ[scheduler.index])
    first = _number(scheduler.first, environ.get(scheduler.first, "0")) if scheduler.first else 0
    step = _number(scheduler.step, environ.get(scheduler.step, "1")) if scheduler.step else 1
    whole, rest = divmod(index - first, max(step, 1))
    if rest:
        raise UsageError(f"{scheduler.index} is {index}, which no array from {first} in steps of {step} holds")
    return whole


def _number(name: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise UsageError(f"{name} must be a whole number, not {text!r}") from None
