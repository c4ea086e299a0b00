"""Which devices there are, and which arithmetic suits them."""

import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

from features.errors import UsageError

BF16_CAPABILITY = (8, 0)  # Ampere
FILES_OF_DEVICES = Path("/dev")
FILES_OF_GPUS = ("nvidia*", "nvhost*", "nvmap", "dxg", "kfd")
"""What a Linux has where torch can compute on a GPU: NVIDIA's, those of a Jetson, of Windows below it, AMD's."""
ORDER, ORDER_OF_DRIVER = "CUDA_DEVICE_ORDER", "PCI_BUS_ID"
"""The variable that says how CUDA numbers GPUs, and its value where that is how the driver and its tools do."""


def choose_devices(wanted: str, gpus: Sequence[int] = ()) -> list[str]:
    """The torch devices to work on: `auto` is every GPU there is, or the CPU.

    Raises
    ------
    UsageError
        A device that is not there; the message names those that are.
    """
    if wanted == "cpu" and not gpus:
        return ["cpu"]
    there = [f"cuda:{number}" for number in range(_gpu_count())]
    if gpus and wanted == "cpu":
        raise UsageError("--gpus and --device cpu exclude each other")
    if gpus:
        asked = [f"cuda:{number}" for number in dict.fromkeys(gpus)]
    elif wanted == "auto":
        return there or ["cpu"]
    else:
        asked = ["cuda:0" if wanted == "cuda" else wanted]
    missing = [device for device in asked if device not in [*there, "cpu"]]
    if missing:
        raise UsageError(f"no device {', '.join(missing)}; available: {', '.join([*there, 'cpu'])} (try --device cpu)")
    return asked


def _gpu_count() -> int:
    """How many GPUs torch can use; a Linux without a file of theirs has none, which torch takes seconds to say."""
    if sys.platform == "linux" and not any(any(FILES_OF_DEVICES.glob(name)) for name in FILES_OF_GPUS):
        return 0
    import torch  # noqa: PLC0415 - as above

    return torch.cuda.device_count()


def choose_device(wanted: str) -> str:
    """The one device for work that is not spread: `auto` is the first GPU if there is one."""
    return choose_devices(wanted)[0]


def cores() -> int:
    """How many cores this process may use, by its affinity and the quota of its container."""
    import joblib  # noqa: PLC0415 - only some commands need it

    return int(joblib.cpu_count())


def auto_precision(devices: Sequence[str]) -> str:
    """bf16 where all compute in it: newer GPUs and some CPUs; fp16 if there are older GPUs, fp32 on other CPUs.

    Emulated it is slow: an AVX2 CPU took 140 times as long in bf16 as in fp32.
    """
    if "cpu" not in devices:
        return "bf16" if min(gpu(device).capability for device in devices) >= BF16_CAPABILITY else "fp16"
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="ignore")
    except OSError:  # not Linux: fp32 is always right, if not always fastest
        return "fp32"
    return "bf16" if "avx512_bf16" in flags or "amx_bf16" in flags else "fp32"


def device_name(device: str) -> str:
    """What the device calls itself, for the record."""
    return gpu(device).name if device.startswith("cuda") else f"{platform.machine()} CPU"


class Gpu(NamedTuple):
    """What a GPU says of itself; `capability` is (8, 0) for an A100."""

    name: str
    capability: tuple[int, int]


@cache
def gpu(device: str) -> Gpu:
    """Ask the driver, or torch where the driver has no such tool.

    Torch would start CUDA in this process: that takes memory from the workers and, where a GPU may be used by one
    process only (compute mode exclusive), keeps them off it.
    """
    number = int(device.partition(":")[2] or 0)
    visible = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    physical = visible[number] if number < len(visible) else str(number)
    if physical.isdecimal() and os.environ.get(ORDER) != ORDER_OF_DRIVER:  # then CUDA numbers GPUs by their speed
        return _gpu_by_torch(device)
    command = ["nvidia-smi", "--query-gpu=name,compute_cap", "--format=csv,noheader", f"--id={physical}"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout  # noqa: S603 - no shell
        name, capability = (cell.strip() for cell in told.rsplit(",", 1))
        major, minor = capability.split(".")
        return Gpu(name, (int(major), int(minor)))
    except (OSError, subprocess.SubprocessError, ValueError):
        return _gpu_by_torch(device)


def _gpu_by_torch(device: str) -> Gpu:
    import torch  # noqa: PLC0415 - as above

    return Gpu(torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device))
