"""One training step of `vp finetune`: seconds, peak memory and the share of the device's arithmetic that is used.

    .venv/bin/python benchmarks/finetune_step.py [--model tiny|FOLDER] [--batch 16] [--device cuda:0] [--steps 10]
        [--unfreeze all|last:N] [--lora RANK] [--gradient-checkpointing] [--peak-tflops 312]

Thumbnails and token ids are drawn at random and are on hand, so nothing is waited for but the device. FLOPs are counted
as 2 per parameter of a block and token forwards and 4 backwards; recomputed activations do not count. The memory is the
highest of the process, so checkpointing is compared by two calls.
"""

import argparse
import resource
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from features.encoders import EncoderConfig, resolve_encoder
from features.families import load_encoder
from heads.differentiable import DifferentiableHeads
from heads.fitted import Branch, FittedHeads, Head
from heads.readers import AsIs
from heads.targets import Standardisation, Target
from pipeline.config import FinetuneConfig
from pipeline.outcome import size_told
from pipeline.tuning.batches import Batch, Texts
from pipeline.tuning.memory import estimate
from pipeline.tuning.model import TunedModel
from pipeline.tuning.towers import TrainedTowers

WARM_UP_STEPS = 2


def main() -> None:
    options = read_options()
    config = FinetuneConfig(
        batch_size=options.batch,
        epochs=1,
        unfreeze=options.unfreeze,
        lora=options.lora,
        gradient_checkpointing=options.gradient_checkpointing,
    )
    encoder = resolve_encoder(options.model, Path(tempfile.mkdtemp()))
    kinds = list(encoder.dim)
    precision = "fp32" if options.device == "cpu" else "bf16"
    estimated = estimate(config, encoder, kinds, options.batch, precision)
    print(f"{encoder.tag}, batch {options.batch}, {options.device}: {estimated.told}")
    seconds = statistics.median(timed_steps(options, config, encoder, precision))
    tflops = estimated.flops / seconds / 1e12
    share = f", MFU {tflops / options.peak_tflops:.3f}" if options.peak_tflops else ""
    print(f"{seconds:.4f} s per step, {options.batch / seconds:.1f} pairs/s, {tflops:.4f} TFLOP/s{share}")
    print(f"peak memory {size_told(peak_bytes(options.device))}")


def timed_steps(
    options: argparse.Namespace, config: FinetuneConfig, encoder: EncoderConfig, precision: str
) -> list[float]:
    kinds = list(encoder.dim)
    towers = TrainedTowers(load_encoder(encoder, kinds, options.device, "fp32"), kinds, config)
    heads = DifferentiableHeads(linear_heads(encoder, kinds))
    kind_of = {kind: kind for kind in kinds}
    model = TunedModel(towers, heads, kind_of, config, device=options.device, precision=precision)
    optimizer = torch.optim.AdamW(model.parameter_groups, lr=config.tower_lr)
    batch = drawn_batch(encoder, kinds, options.batch)
    known = heads.known(None, options.batch).to(model.device)
    target = torch.randn(options.batch, device=model.device)
    augment = torch.Generator().manual_seed(0)
    model.training(on=True)
    times = []
    for _ in range(WARM_UP_STEPS + options.steps):
        start = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        z, _, _ = model.z_and_terms(model.vectors(batch, augment), batch.present, known)
        (z - target).square().mean().backward()
        optimizer.step()
        if model.device.type == "cuda":
            torch.cuda.synchronize(model.device)
        times.append(time.perf_counter() - start)
    return times[WARM_UP_STEPS:]


def linear_heads(encoder: EncoderConfig, kinds: Sequence[str]) -> FittedHeads:
    rng = np.random.default_rng(0)

    def head(dim: int) -> Head:
        weight = rng.normal(size=(dim, 1)).astype(np.float32)
        return Head((Branch(reader=AsIs(dim), weights=(weight,), biases=(np.zeros(1, np.float32),)),))

    shares = np.full(len(kinds), 1 / len(kinds))
    return FittedHeads(
        heads={kind: head(encoder.dim[kind]) for kind in kinds},
        weights=shares,
        raw_weights=shares,
        intercept=0.0,
        standardisation=Standardisation(0.0, 1.0),
        target=Target(),
    )


def drawn_batch(encoder: EncoderConfig, kinds: Sequence[str], rows: int) -> Batch:
    rng = np.random.default_rng(0)
    pixels, texts = None, {}
    if encoder.preprocess is not None:
        pixels = torch.from_numpy(rng.integers(0, 256, (rows, 3, *encoder.preprocess.output), dtype=np.uint8))
    if encoder.text is not None:
        length = encoder.text.max_tokens
        texts["text"] = Texts([rng.integers(1, 200, length) for _ in range(rows)], length)
    return Batch(np.arange(rows), pixels, texts, {kind: np.ones(rows, bool) for kind in kinds})


def peak_bytes(device: str) -> int:
    if device == "cpu":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return torch.cuda.max_memory_allocated(device)


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--unfreeze", default="all")
    parser.add_argument("--lora", type=int, default=0)
    parser.add_argument("--gradient-checkpointing", action="store_true")
    parser.add_argument("--peak-tflops", type=float, default=0.0, help="of the device in bf16, for the MFU")
    return parser.parse_args()


if __name__ == "__main__":
    main()
