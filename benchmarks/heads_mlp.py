"""Rate of `--head mlp` as a share of the machine's own float32 matmul rate, both measured in one process.

    .venv/bin/python benchmarks/heads_mlp.py [--rows 20000] [--dim 768] [--epochs 30] [--folds 3] [--device cpu]

The work of training is counted as 6 operations per weight and training row: 2 forward, 4 backward. Validation,
the logged weights and everything that is no matrix product count as overhead.
"""

import argparse
import dataclasses
import time

import numpy as np
import torch

from heads.config import HeadsConfig
from heads.folds import FoldPlan, kfold
from heads.inputs import Block, Inputs
from heads.targets import Target
from heads.training import train_members

MATMUL_SIZE = 2048


def main() -> None:
    options = read_options()
    config = dataclasses.replace(HeadsConfig(), epochs=options.epochs, folds=options.folds)
    inputs, log_views = draw_videos(options.rows, options.dim)
    plan = kfold(options.rows, config.folds, config.seed)
    work = training_operations(options.dim, plan, config)

    before = matmul_rate(options.device)
    started = time.perf_counter()
    members = train_members(inputs, log_views, plan, config, device=options.device)
    seconds = time.perf_counter() - started
    after = matmul_rate(options.device)

    matmul, training = (before + after) / 2, work / seconds
    print(f"{options.rows} rows x ({options.dim} + {options.dim}) + age, {config.folds} folds, {config}")
    print(f"matmul {MATMUL_SIZE}^3   {before / 1e9:9.1f} GFLOP/s before, {after / 1e9:.1f} after")
    print(f"training        {training / 1e9:9.1f} GFLOP/s ({work / 1e12:.2f} TFLOP in {seconds:.1f} s)")
    print(f"ratio           {training / matmul:9.2f}    (bar: at least 0.5)")
    print(f"best MSLE       {[round(member.best_msle, 3) for member in members]} of variance {log_views.var():.3f}")


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    return parser.parse_args()


def draw_videos(n_videos: int, dim: int) -> tuple[Inputs, np.ndarray]:
    """Embeddings with a shared direction, as CLIP's have, and log views that depend on all three modalities."""
    rng = np.random.default_rng(0)
    image, text = rng.normal(size=(2, n_videos, dim)).astype(np.float32) + 1
    years = rng.uniform(0, 12, size=n_videos)
    noise = rng.normal(size=n_videos)
    log_views = 9 + 1.5 * np.tanh(image[:, 0]) + text[:, :4].mean(axis=1) + np.log1p(years) + noise
    present = np.ones(n_videos, dtype=bool)
    blocks = (
        Block.embedding("image", image, present),
        Block.embedding("text", text, present),
        Block.scalar("age", years),
    )
    return Inputs(blocks), Target("log1p").to_log(np.expm1(log_views.clip(min=0)))


def training_operations(dim: int, plan: FoldPlan, config: HeadsConfig) -> float:
    """Operations of all epochs and folds in the image and text heads."""
    half = config.hidden_dim // 2
    weights = 2 * (dim * config.hidden_dim + config.hidden_dim * half + half)
    rows = sum(len(plan.train_rows(fold)) for fold in range(plan.n_folds))
    return 6.0 * weights * rows * config.epochs


def matmul_rate(device: str) -> float:
    """Operations per second of the best of ten products of two square float32 matrices."""
    left, right = torch.randn(2, MATMUL_SIZE, MATMUL_SIZE, device=device)
    seconds = []
    for _ in range(10):
        started = time.perf_counter()
        (left @ right)[0, 0].item()  # reading one number waits for the device
        seconds.append(time.perf_counter() - started)
    return 2 * MATMUL_SIZE**3 / min(seconds)


if __name__ == "__main__":
    main()
