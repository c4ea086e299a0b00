"""Devices: the first GPU if there is one, and never one that is not there."""

import sys
from types import SimpleNamespace

import pytest

from features.errors import UsageError
from pipeline import devices
from pipeline.devices import Gpu, auto_precision, choose_device, choose_devices, device_name, gpu


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A machine with as many GPUs as a test asks for; torch itself takes seconds to load and sees none here."""
    monkeypatch.setattr(devices, "FILES_OF_DEVICES", tmp_path)

    def has(n_gpus):
        (tmp_path / "nvidiactl").touch()
        monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=SimpleNamespace(device_count=lambda: n_gpus)))

    return has


@pytest.mark.parametrize(
    ("n_gpus", "wanted", "gpus", "devices"),
    [
        (0, "auto", (), ["cpu"]),
        (0, "cpu", (), ["cpu"]),
        (2, "auto", (), ["cuda:0", "cuda:1"]),
        (2, "cpu", (), ["cpu"]),
        (2, "cuda", (), ["cuda:0"]),
        (2, "cuda:1", (), ["cuda:1"]),
        (2, "auto", (1,), ["cuda:1"]),
        (2, "cuda", (1, 0, 1), ["cuda:1", "cuda:0"]),
    ],
)
def test_devices_that_are_there_are_chosen_once_each(machine, n_gpus, wanted, gpus, devices):
    machine(n_gpus)
    assert choose_devices(wanted, gpus) == devices


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere torch alone can tell")
def test_a_machine_without_a_driver_is_not_worth_loading_torch_for(monkeypatch, tmp_path):
    monkeypatch.setattr(devices, "FILES_OF_DEVICES", tmp_path)
    monkeypatch.setitem(sys.modules, "torch", None)  # to import it fails
    for other in ("null", "nvme0n1", "nvram"):
        (tmp_path / other).touch()
    assert choose_devices("auto") == ["cpu"]
    with pytest.raises(UsageError, match="no device cuda:0; available: cpu"):
        choose_devices("cuda")
    (tmp_path / "nvidia0").touch()
    with pytest.raises(ImportError):
        choose_devices("auto")


def test_work_for_one_device_goes_to_the_first(machine):
    machine(2)
    assert choose_device("auto") == "cuda:0"


@pytest.mark.parametrize(
    ("n_gpus", "wanted", "gpus", "said"),
    [
        (0, "cuda", (), "cuda:0; available: cpu"),
        (0, "auto", (0, 1), "cuda:0, cuda:1; available: cpu"),
        (2, "auto", (0, 2, 7), "cuda:2, cuda:7; available: cuda:0, cuda:1, cpu"),
        (2, "auto", (-1,), "cuda:-1; available: cuda:0, cuda:1, cpu"),
        (2, "cuda:2", (), "cuda:2; available: cuda:0, cuda:1, cpu"),
        (2, "tpu", (), "tpu; available: cuda:0, cuda:1, cpu"),
    ],
)
def test_one_that_is_not_there_is_told_with_those_that_are(machine, n_gpus, wanted, gpus, said):
    machine(n_gpus)
    with pytest.raises(UsageError) as told:
        choose_devices(wanted, gpus)
    assert str(told.value) == f"no device {said} (try --device cpu)"


def test_gpus_and_the_cpu_exclude_each_other(machine):
    machine(1)
    with pytest.raises(UsageError, match="--gpus and --device cpu exclude each other"):
        choose_devices("cpu", (0,))


@pytest.mark.parametrize(
    ("device", "flags", "precision"),
    [
        ("cpu", "fpu avx2 avx512f", "fp32"),
        ("cpu", "fpu avx2 avx512f avx512_bf16", "bf16"),
        ("cpu", "fpu amx_bf16 amx_tile", "bf16"),
        ("cpu", None, "fp32"),
    ],
)
def test_only_what_computes_in_bf16_is_asked_to(monkeypatch, tmp_path, device, flags, precision):
    cpuinfo = tmp_path / "cpuinfo"
    if flags is not None:
        cpuinfo.write_text(f"processor : 0\nmodel name : made by “us”\nflags : {flags}\n", encoding="utf-8")
    monkeypatch.setattr("pipeline.devices.Path", {"/proc/cpuinfo": cpuinfo}.__getitem__)
    assert auto_precision([device]) == precision


@pytest.fixture
def driver(monkeypatch, tmp_path):
    """A tool of the driver that knows GPUs by number or name, and a torch that knows one too."""
    gpu.cache_clear()
    known = {"0": "Tesla T4, 7.5", "1": "NVIDIA A100-SXM4-80GB, 8.0", "GPU-5": "NVIDIA H100, PCIe, 9.0"}
    tool = tmp_path / "nvidia-smi"
    cases = "\n".join(f"--id={number}) echo '{told}';;" for number, told in known.items())
    tool.write_text(f'#!/bin/sh\nfor last; do :; done\ncase "$last" in\n{cases}\n*) exit 6;;\nesac\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    cuda = SimpleNamespace(get_device_name=lambda _: "a GPU of torch", get_device_capability=lambda _: (7, 0))
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    yield monkeypatch
    gpu.cache_clear()


@pytest.mark.parametrize(
    ("visible", "device", "told"),
    [
        (None, "cuda:0", Gpu("Tesla T4", (7, 5))),
        (None, "cuda:1", Gpu("NVIDIA A100-SXM4-80GB", (8, 0))),
        ("1,0", "cuda:0", Gpu("NVIDIA A100-SXM4-80GB", (8, 0))),
        ("0, GPU-5", "cuda:1", Gpu("NVIDIA H100, PCIe", (9, 0))),
        (None, "cuda:2", Gpu("a GPU of torch", (7, 0))),
    ],
)
def test_the_driver_is_asked_for_the_gpu_that_is_meant_and_torch_if_it_does_not_know(driver, visible, device, told):
    if visible is not None:
        driver.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert gpu(device) == told
    assert device_name(device) == told.name


def test_where_cuda_numbers_gpus_by_speed_the_driver_is_asked_by_name_only(driver):
    driver.delenv("CUDA_DEVICE_ORDER")
    driver.setenv("CUDA_VISIBLE_DEVICES", "0,GPU-5")
    assert gpu("cuda:0").name == "a GPU of torch"
    assert gpu("cuda:1").name == "NVIDIA H100, PCIe"


def test_where_there_is_no_such_tool_torch_is_asked(driver):
    driver.setenv("PATH", "/nowhere")
    assert gpu("cuda:0").name == "a GPU of torch"


@pytest.mark.parametrize(
    ("devices", "precision"), [(["cuda:0"], "fp16"), (["cuda:1"], "bf16"), (["cuda:1", "cuda:0"], "fp16")]
)
def test_all_gpus_compute_in_what_the_oldest_can(driver, devices, precision):
    assert auto_precision(devices) == precision


def test_the_cores_can_be_limited_from_outside(monkeypatch):
    monkeypatch.setenv("LOKY_MAX_CPU_COUNT", "1")
    assert devices.cores() == 1


def test_a_cpu_is_named_by_its_kind():
    assert device_name("cpu") == f"{devices.platform.machine()} CPU"
