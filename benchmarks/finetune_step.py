"""The training steps of `vp finetune`: seconds, loss, highest memory, and the share of the device's arithmetic used.

    .venv/bin/python benchmarks/finetune_step.py [--model tiny|FOLDER] [--batch 16] [--device cuda:0] [--steps 20]
        [--data DATASET] [--unfreeze all|last:N] [--lora RANK] [--gradient-checkpointing] [--peak-tflops 989]
        [--memory-limit-gb 24]

The steps are those of the command itself: crops, both towers, heads, clipping, AdamW and the moving average; with
`--data` of real thumbnails and titles, which its feed decodes meanwhile, else of drawn ones that are at hand. The
device is waited for before the first and after the last step that is timed. FLOPs are those of
`pipeline.tuning.memory.estimate`: 2 per parameter of a block and token forwards, 4 backwards through blocks that are
trained whole, 2 through others; recomputed activations do not count. The memory is the highest of the process,
so checkpointing is compared by two calls. Losses are of epochs over the same rows: they fall if anything is learned.
"""

import argparse
import resource
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from features.config import DatasetConfig
from features.encoders import EncoderConfig, resolve_encoder
from features.families import load_encoder
from features.videos import VideoTable, read_videos
from heads.differentiable import DifferentiableHeads
from heads.fitted import Branch, FittedHeads, Head
from heads.readers import AsIs
from heads.targets import Standardisation, Target
from pipeline.config import FinetuneConfig
from pipeline.devices import cores
from pipeline.outcome import size_told
from pipeline.tuning.batches import Batch, RowFeed, Texts
from pipeline.tuning.memory import estimate
from pipeline.tuning.model import TunedModel
from pipeline.tuning.state import FoldState
from pipeline.tuning.steps import FoldTask, Steps
from pipeline.tuning.towers import TrainedTowers

WARM_UP_STEPS = 2
SCALE = Standardisation(9.0, 2.0)
"""About the log views of real videos."""


def main() -> None:
    options = read_options()
    on_gpu = options.device != "cpu"
    if options.memory_limit_gb and on_gpu:
        whole = torch.cuda.get_device_properties(options.device).total_memory
        torch.cuda.set_per_process_memory_fraction(options.memory_limit_gb * 1e9 / whole, options.device)
    config = FinetuneConfig(
        batch_size=options.batch,
        epochs=options.epochs,
        unfreeze=options.unfreeze,
        lora=options.lora,
        gradient_checkpointing=options.gradient_checkpointing,
    )
    encoder = resolve_encoder(options.model, Path(tempfile.mkdtemp()))
    precision = "bf16" if on_gpu else "fp32"
    estimated = estimate(config, encoder, list(encoder.dim), options.batch, precision)
    print(f"{encoder.tag}, batch {options.batch}, {options.device}: {estimated.told}")
    for epoch, (seconds, loss) in enumerate(epochs(options, config, encoder, precision)):
        tflops = estimated.flops / options.epochs / seconds / 1e12
        share = f", MFU {tflops / options.peak_tflops:.3f}" if options.peak_tflops else ""
        rate = f"{options.batch / seconds:.1f} pairs/s, {tflops:.4f} TFLOP/s{share}"
        print(f"epoch {epoch}: loss {loss:.4f}, {seconds:.4f} s per step, {rate}", flush=True)
    print(f"peak memory {peak_told(options.device)}")


def epochs(
    options: argparse.Namespace, config: FinetuneConfig, encoder: EncoderConfig, precision: str
) -> Iterator[tuple[float, float]]:
    """Seconds per step and mean loss of each epoch."""
    kinds = list(encoder.dim)
    towers = TrainedTowers(load_encoder(encoder, kinds, options.device, "fp32"), kinds, config)
    heads = DifferentiableHeads(linear_heads(encoder, kinds))
    model = TunedModel(
        towers, heads, {kind: kind for kind in kinds}, config, device=options.device, precision=precision
    )
    clock = Clock(options.device, options.steps)
    n_rows = options.batch * (WARM_UP_STEPS + options.steps)
    log_views, feed = drawn(encoder, kinds, n_rows) if options.data is None else real(options, towers, encoder, kinds)
    task = FoldTask(
        fold=0,
        train_rows=np.arange(n_rows) % len(log_views),
        val_rows=np.arange(0),
        log_views=log_views,
        expected=np.zeros(0),
        standardisation=SCALE,
        config=config,
        start_within=1.0,
        folder=Path(),
    )
    known = heads.known(None, len(log_views)).to(model.device)
    steps = Steps(model, feed, known, task, clock)
    start = model.values()
    state = FoldState(epoch=0, steps=0, average=start, best=start, best_epoch=0)
    for _ in range(config.epochs):
        clock.batches = 0
        seen = steps.epoch(state)
        yield clock.seconds_per_step, seen.loss


class Clock:
    """Hears of every batch, and looks at the time when the warm-up is over and when the last step is."""

    def __init__(self, device: str, steps: int) -> None:
        self._device, self._steps = device, steps
        self._times: list[float] = []
        self.batches = 0

    def __call__(self, _rows: int) -> None:
        self.batches += 1
        if self.batches in (WARM_UP_STEPS, WARM_UP_STEPS + self._steps):
            if self._device != "cpu":
                torch.cuda.synchronize(self._device)
            self._times.append(time.perf_counter())

    @property
    def seconds_per_step(self) -> float:
        """Of the latest epoch."""
        return (self._times[-1] - self._times[-2]) / self._steps


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


def drawn(encoder: EncoderConfig, kinds: Sequence[str], rows: int) -> tuple[np.ndarray, "DrawnFeed"]:
    """Log views and what the towers read, neither of which says anything about the other."""
    return np.random.default_rng(1).normal(SCALE.mean, SCALE.sd, rows), DrawnFeed(encoder, kinds)


def real(
    options: argparse.Namespace, towers: TrainedTowers, encoder: EncoderConfig, kinds: Sequence[str]
) -> tuple[np.ndarray, RowFeed]:
    videos: VideoTable = read_videos(DatasetConfig(data=options.data), "train_val")
    feed = RowFeed(towers.encoder, encoder, kinds, videos, max(1, cores() - 1))
    return np.log1p(np.asarray(videos.views, np.float64)), feed


class DrawnFeed:
    """In place of `RowFeed`: one batch of noise, again and again."""

    def __init__(self, encoder: EncoderConfig, kinds: Sequence[str]) -> None:
        self._encoder, self._kinds = encoder, kinds

    def batches(self, rows: np.ndarray, size: int) -> Iterator[Batch]:
        rng, encoder = np.random.default_rng(0), self._encoder
        pixels, texts = None, {}
        if encoder.preprocess is not None:
            pixels = torch.from_numpy(rng.integers(0, 256, (size, 3, *encoder.preprocess.output), dtype=np.uint8))
        if encoder.text is not None:
            tokens = [rng.integers(1, 200, encoder.max_tokens) for _ in range(size)]
            texts["text"] = Texts(tokens, encoder.max_tokens)
        present = {kind: np.ones(size, bool) for kind in self._kinds}
        for start in range(0, len(rows), size):
            yield Batch(rows[start : start + size], pixels, texts, present)


def peak_told(device: str) -> str:
    if device == "cpu":
        return size_told(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
    allocated, reserved = torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device)
    return f"{size_told(allocated)} in tensors, {size_told(reserved)} taken from the device"


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--data", type=Path, help="folder with train_val.csv and thumbnails")
    parser.add_argument("--memory-limit-gb", type=float, default=0.0, help="more than this runs out of memory")
    parser.add_argument("--unfreeze", default="all")
    parser.add_argument("--lora", type=int, default=0)
    parser.add_argument("--gradient-checkpointing", action="store_true")
    parser.add_argument("--peak-tflops", type=float, default=0.0, help="of the device in bf16, for the MFU")
    return parser.parse_args()


if __name__ == "__main__":
    main()
