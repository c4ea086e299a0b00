"""Time and out-of-fold MSLE of every kind of head, and of what people write instead, on the same folds.

    .venv/bin/python benchmarks/compare_heads.py [--rows 20000] [--dim 768] [--heads linear,hybrid,lightgbm]
    .venv/bin/python benchmarks/compare_heads.py --data dataset --work work [--model TAG]

Without --work the embeddings are drawn, with a spectrum like CLIP's: few directions hold most of the variance. Views
depend on all modalities, mostly linearly, with one bend and one product of image and text. With it they are those of a
finished cache. Times are wall and CPU seconds of the fit alone; on a busy machine CPU seconds are the ones to compare.
`lightgbm` is measured where it is installed.
"""

import argparse
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import rival_heads

from heads.config import HeadsConfig
from heads.fit import fit
from heads.folds import FoldPlan, kfold
from heads.inputs import Block, Inputs

NOISE_SD = 1.6


def main() -> None:
    options = read_options()
    inputs, log_views = draw_videos(options.rows, options.dim) if options.work is None else read_videos(options)
    plan = kfold(len(log_views), 3, 42)
    widths = ", ".join(f"{block.modality} {block.values.shape[1]}" for block in inputs.blocks)
    print(f"{len(log_views)} rows, {widths}, 3 folds; variance {log_views.var():.3f}")
    fits = fits_of(inputs, log_views, plan)
    for name in options.heads.split(","):
        print(f"{name:<18} {measured(fits[name])}   load {os.getloadavg()[0]:.1f}", flush=True)


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--heads", default="linear-no-search,linear,hybrid,mlp,trees,ridge-loop,lightgbm,torch-loop")
    parser.add_argument("--data", type=Path, default=Path("dataset"), help="the dataset of a finished cache")
    parser.add_argument("--work", type=Path, help="the work folder that holds it")
    parser.add_argument("--model", help="its encoder, where there are several")
    return parser.parse_args()


def measured(fitted: Callable[[], float]) -> str:
    wall, cpu = time.perf_counter(), time.process_time()
    try:
        error = fitted()
    except ImportError as missing:
        return f"left out: {missing}"
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return f"OOF MSLE {error:.4f}   {wall:7.1f} s   {cpu:7.1f} CPU s"


def fits_of(inputs: Inputs, log_views: np.ndarray, plan: FoldPlan) -> dict[str, Callable[[], float]]:
    config = HeadsConfig(head="linear")
    kinds = {
        "linear-no-search": replace(config, search=False),
        "linear": config,
        "hybrid": replace(config, head="hybrid"),
        "mlp": replace(config, head="mlp"),
        "trees": replace(config, head="trees"),
    }
    rivals = {
        "ridge-loop": rival_heads.ridge_loop,
        "lightgbm": rival_heads.boosted_components,
        "torch-loop": rival_heads.torch_loop,
    }

    def ours(chosen: HeadsConfig) -> float:
        members = fit(inputs, log_views, plan, chosen).members
        return float(np.average([member.final_msle for member in members], weights=plan.sizes))

    return {name: (lambda kind=kind: ours(kind)) for name, kind in kinds.items()} | {
        name: (lambda rival=rival: rival(inputs, log_views, plan)) for name, rival in rivals.items()
    }


def read_videos(options: argparse.Namespace) -> tuple[Inputs, np.ndarray]:
    """Image, text and age of the training videos of a dataset, from its cache."""
    from features.progress import Silent
    from heads.targets import Target
    from pipeline.config import TrainHeadsConfig
    from pipeline.dataset import read_dataset
    from pipeline.inputs import choose_sources, gather
    from pipeline.workspace import Workspace

    dataset = read_dataset(TrainHeadsConfig(data=options.data), Silent())
    workspace, tags = Workspace(options.work), [options.model] if options.model else []
    sources = choose_sources(workspace, tags, [], dataset.train)
    inputs = gather(workspace, sources, dataset.train, dataset.newest()).inputs
    return inputs, Target().to_log(dataset.train.views)


def draw_videos(n_videos: int, dim: int) -> tuple[Inputs, np.ndarray]:
    rng = np.random.default_rng(0)
    spectrum = 1 / (1 + np.arange(dim)) ** 0.8
    image, text = (rng.normal(size=(2, n_videos, dim)) * spectrum).astype(np.float32) + np.float32(0.2 / np.sqrt(dim))
    years = rng.uniform(0, 12, size=n_videos)
    signal = image[:, :60] @ rng.normal(size=60) / 2 + text[:, :60] @ rng.normal(size=60) / 1.5
    bend = np.tanh(3 * text[:, 0]) + 2 * image[:, 1] * text[:, 1] + 0.8 * np.log1p(years)
    log_views = 9 + signal + bend + NOISE_SD * rng.normal(size=n_videos)
    present = np.ones(n_videos, dtype=bool)
    blocks = (
        Block.embedding("image", image, present),
        Block.embedding("text", text, present),
        Block.scalar("age", years),
    )
    return Inputs(blocks), log_views.clip(min=0)


if __name__ == "__main__":
    main()
