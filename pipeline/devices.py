"""Which devices there are, and which arithmetic suits them."""

import os
import platform
from collections.abc import Sequence
from pathlib import Path

from features.errors import UsageError


def choose_devices(wanted: str, gpus: Sequence[int] = ()) -> list[str]:
    """The torch devices to work on: `auto` is every GPU there is, or the CPU.

    Raises
    ------
    UsageError
        A device that is not there; the message names those that are.
    """
    if wanted == "cpu" and not gpus:
        return ["cpu"]
    import torch  # noqa: PLC0415 - two seconds, and not every command needs it

    there = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
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


def choose_device(wanted: str) -> str:
    """The one device for work that is not spread: `auto` is the first GPU if there is one."""
    return choose_devices(wanted)[0]


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def auto_precision(device: str) -> str:
    """bf16 on GPUs and on CPUs that compute in it; fp32 elsewhere (an AVX2 CPU is 140 times slower in bf16)."""
    if device != "cpu":
        return "bf16"
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="ignore")
    except OSError:  # not Linux: fp32 is always right, if not always fastest
        return "fp32"
    return "bf16" if "avx512_bf16" in flags or "amx_bf16" in flags else "fp32"


def device_name(device: str) -> str:
    """What the device calls itself, for the record."""
    if not device.startswith("cuda"):
        return f"{platform.machine()} CPU"
    import torch  # noqa: PLC0415 - as above

    return torch.cuda.get_device_name(device)
