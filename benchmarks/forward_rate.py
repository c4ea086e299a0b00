"""How much of a device's arithmetic the towers of an encoder reach, by precision and batch; on GPUs memory as well.

    .venv/bin/python benchmarks/forward_rate.py --model FOLDER --device cpu --batch 32
    ... --device cuda --precision bf16,fp16,fp32 --batch 64,256,1024

The floating point operations of one forward pass are counted by torch; the yardstick is what a large matrix product in
the same precision reaches on the same device, measured here. `--compile` adds the tower of images as vp compiles it.
Cosines with fp32 are those of the same drawn inputs; `encode_precisions.py` does that for 8 bits.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from encode_precisions import draw_inputs
from torch.utils.flop_counter import FlopCounterMode

from features.encoders import EncoderConfig, resolve_encoder
from features.families import TowerEncoder, load_encoder
from features.quantised import measured_agreement

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
SECONDS = 2.0
"""A measurement lasts at least so long."""


def main() -> None:
    """Measure and print."""
    options = read_options()
    config = resolve_encoder(options.model, Path(options.model).parent)
    print(f"{config.tag} on {name_of(options.device)}, {torch.get_num_threads()} thread(s), torch {torch.__version__}")
    print("tower   precision  batch  compiled  inputs/s  TFLOP/s  of matmul  peak GiB")
    for precision in options.precision:
        peak = matmul_rate(options.device, DTYPES[precision])
        for compiled in (False, True) if options.compile else (False,):
            encoder = load_encoder(config, list(config.dim), options.device, precision, compiled=compiled)
            for batch in options.batch:
                for tower in config.dim if not compiled else ["image"]:
                    rate, flops, memory = measure(encoder, config, tower, batch, options.device)
                    reached = rate * flops / batch / 1e12
                    how = f"{tower:<7} {precision:<10} {batch:5d}  {'yes' if compiled else 'no':<8}"
                    print(f"{how} {rate:9.1f} {reached:8.2f}  {reached / peak:9.2f}  {memory:8.2f}", flush=True)
        if precision != "fp32":
            tell_cosines(config, options.device, precision)


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", type=lambda text: text.split(","), default=["fp32"])
    parser.add_argument("--batch", type=lambda text: [int(n) for n in text.split(",")], default=[32])
    parser.add_argument("--compile", action="store_true")
    return parser.parse_args()


def name_of(device: str) -> str:
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else "this CPU"


def measure(
    encoder: TowerEncoder, config: EncoderConfig, tower: str, batch: int, device: str
) -> tuple[float, int, float]:
    """Inputs per second (pixels are on the device, token ids on their way), operations per batch, and peak memory."""
    pixels, texts = draw_inputs(config, batch)
    if tower == "image":
        run = partial(encoder.image_vectors, torch.as_tensor(pixels, device=device))
    else:
        run = partial(encoder.text_vectors, encoder.tokenize(texts)[0], encoder.text_layout.max_tokens)
    on_gpu = device.startswith("cuda")
    with torch.inference_mode():
        run()
        with FlopCounterMode(display=False) as counter:
            run()
        if on_gpu:
            torch.cuda.reset_peak_memory_stats(device)
        rate = batch * per_second(run, device)
    return rate, counter.get_total_flops(), torch.cuda.max_memory_allocated(device) / 2**30 if on_gpu else float("nan")


def matmul_rate(device: str, dtype: torch.dtype) -> float:
    """TFLOP/s of a square matrix product that is large for the device."""
    size = 8192 if device.startswith("cuda") else 2048
    a = torch.randn(size, size, device=device, dtype=dtype)
    return 2 * size**3 * per_second(lambda: a @ a, device) / 1e12


def per_second(run: Callable[[], object], device: str) -> float:
    """How often something can be done in a second, once warm."""
    wait = (lambda: torch.cuda.synchronize(device)) if device.startswith("cuda") else (lambda: None)
    run()
    wait()
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < SECONDS:
        run()
        count += 1
        if count % 8 == 0:
            wait()  # or the queue grows without bound
    wait()
    return count / (time.perf_counter() - start)


def tell_cosines(config: EncoderConfig, device: str, precision: str) -> None:
    pixels, texts = draw_inputs(config, 64)
    exact = load_encoder(config, list(config.dim), device, "fp32")
    other = load_encoder(config, list(config.dim), device, precision)
    for tower, agreement in measured_agreement(exact, other, pixels=pixels, texts=texts).items():
        print(f"{tower:<7} {precision:<10} {agreement.to_dict()}")


if __name__ == "__main__":
    np.seterr(all="raise")
    main()
