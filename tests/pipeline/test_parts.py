"""Which part of the work is ours: from options, or from what schedulers set, and never by surprise."""

import pytest

from features.errors import UsageError
from features.lock import WHOLE, Part
from pipeline.parts import choose_part, own_devices

SLURM_ARRAY = {"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "8"}


@pytest.mark.parametrize(
    ("index", "number", "environ", "part", "told"),
    [
        (None, "1", {}, WHOLE, ""),
        (None, "1", SLURM_ARRAY, WHOLE, ""),  # an array may do other things
        (2, "4", {}, Part(3, 4), "part 3 of 4 (--shard-index 2)"),
        (0, "1", {}, WHOLE, "part 1 of 1 (--shard-index 0)"),
        (None, "auto", SLURM_ARRAY, Part(4, 8), "part 4 of 8 (a SLURM array 3)"),
        (
            None,
            "auto",
            {
                "SLURM_ARRAY_TASK_ID": "17",
                "SLURM_ARRAY_TASK_COUNT": "4",
                "SLURM_ARRAY_TASK_MIN": "11",
                "SLURM_ARRAY_TASK_STEP": "3",
            },
            Part(3, 4),
            "part 3 of 4 (a SLURM array 2)",
        ),
        (None, "auto", {"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2"}, Part(2, 2), "part 2 of 2 (a SLURM step 1)"),
        (None, "auto", {"RANK": "0", "WORLD_SIZE": "16"} | SLURM_ARRAY, Part(1, 16), "part 1 of 16 (torchrun 0)"),
        (None, "6", {"JOB_COMPLETION_INDEX": "5"}, Part(6, 6), "part 6 of 6 (an indexed Kubernetes job 5)"),
        (1, "auto", SLURM_ARRAY, Part(2, 8), "part 2 of 8 (--shard-index 1)"),
    ],
)
def test_a_part_comes_from_options_and_what_they_leave_open_from_the_scheduler(index, number, environ, part, told):
    assert choose_part(index, number, environ) == (part, told)


@pytest.mark.parametrize(
    ("index", "number", "environ", "said"),
    [
        (None, "4", {}, "--num-shards 4 needs --shard-index, from 0 to 3"),
        (4, "4", {}, "between 0 and 3, however --shard-index says 4"),
        (-1, "4", {}, "between 0 and 3, however --shard-index says -1"),
        (3, "1", {}, "between 0 and 0, however --shard-index says 3"),
        (None, "auto", {}, "RANK and WORLD_SIZE"),
        (None, "auto", {"JOB_COMPLETION_INDEX": "5"}, "sets JOB_COMPLETION_INDEX but not JOB_COMPLETIONS"),
        (None, "two", {}, "--num-shards must be a whole number, not 'two'"),
        (0, "0", {}, "--num-shards must be 1 or more, not 0"),
        (None, "auto", SLURM_ARRAY | {"SLURM_ARRAY_TASK_ID": "x"}, "SLURM_ARRAY_TASK_ID must be a whole number"),
        (None, "auto", SLURM_ARRAY | {"SLURM_ARRAY_TASK_STEP": "2"}, "no array from 0 in steps of 2 holds"),
        (None, "2", SLURM_ARRAY, "between 0 and 1, however a SLURM array says 3"),
    ],
)
def test_what_does_not_fit_together_is_refused(index, number, environ, said):
    with pytest.raises(UsageError) as told:
        choose_part(index, number, environ)
    assert said in str(told.value)


GPUS = ["cuda:0", "cuda:1", "cuda:2", "cuda:3"]
TORCHRUN = {"RANK": "6", "WORLD_SIZE": "8", "LOCAL_RANK": "2", "LOCAL_WORLD_SIZE": "4"}
SLURM = {"SLURM_PROCID": "5", "SLURM_STEP_NUM_TASKS": "8"}


@pytest.mark.parametrize(
    ("devices", "environ", "ours"),
    [
        (GPUS, {}, GPUS),
        (GPUS, TORCHRUN, ["cuda:2"]),
        (["cuda:0"], TORCHRUN, ["cuda:0"]),  # the scheduler has shown each task its own
        (GPUS[:2], TORCHRUN, ["cuda:0"]),  # more tasks than GPUs
        (GPUS, TORCHRUN | {"LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}, ["cuda:1", "cuda:3"]),  # fewer
        (GPUS, TORCHRUN | {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}, GPUS),  # a task for each machine
        (GPUS, SLURM | {"SLURM_LOCALID": "1", "SLURM_STEP_TASKS_PER_NODE": "4(x2)"}, ["cuda:1"]),
        (GPUS, SLURM | {"SLURM_LOCALID": "0", "SLURM_STEP_TASKS_PER_NODE": "1(x8)"}, GPUS),
        (GPUS, SLURM | {"SLURM_LOCALID": "2", "SLURM_STEP_TASKS_PER_NODE": "1,4", "SLURM_NODEID": "1"}, ["cuda:2"]),
        (
            GPUS[:2],
            SLURM | {"SLURM_LOCALID": "1", "SLURM_STEP_TASKS_PER_NODE": "4", "SLURM_GPUS_PER_TASK": "2"},
            GPUS[:2],
        ),
        (GPUS, {"LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}, GPUS),  # left over from something else
    ],
)
def test_tasks_that_share_a_machine_take_one_device_each(devices, environ, ours):
    assert own_devices(devices, environ) == ours
