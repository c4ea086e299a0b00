"""Time and out-of-fold MSLE of every kind of head, and of a library's ridge in a loop, on the same folds.

    .venv/bin/python benchmarks/compare_heads.py [--rows 20000] [--dim 768] [--heads linear,hybrid,trees,library]

Drawn embeddings have a spectrum like CLIP's: few directions hold most of the variance. Views depend on all modalities,
mostly linearly, with one bend and one product of image and text. Times are wall and CPU seconds of the fit alone.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from heads.config import HeadsConfig
from heads.fit import fit
from heads.folds import FoldPlan, kfold
from heads.inputs import Block, Inputs
from heads.linear import PENALTIES
from heads.metrics import msle

NOISE_SD = 1.6


def main() -> None:
    options = read_options()
    inputs, log_views = draw_videos(options.rows, options.dim)
    plan = kfold(options.rows, 3, 42)
    print(f"{options.rows} rows x ({options.dim} + {options.dim}) + age, 3 folds; variance {log_views.var():.3f}")
    fits = fits_of(inputs, log_views, plan)
    for name in options.heads.split(","):
        wall, cpu = time.perf_counter(), time.process_time()
        error = fits[name]()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        print(f"{name:<18} OOF MSLE {error:.4f}   {wall:7.1f} s   {cpu:7.1f} CPU s", flush=True)


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--heads", default="linear-no-search,linear,hybrid,trees,library")
    return parser.parse_args()


def fits_of(inputs: Inputs, log_views: np.ndarray, plan: FoldPlan) -> dict[str, Callable[[], float]]:
    config = HeadsConfig(head="linear")
    kinds = {
        "linear-no-search": replace(config, search=False),
        "linear": config,
        "hybrid": replace(config, head="hybrid"),
        "mlp": replace(config, head="mlp"),
        "trees": replace(config, head="trees"),
    }

    def ours(chosen: HeadsConfig) -> float:
        members = fit(inputs, log_views, plan, chosen).members
        return float(np.average([member.final_msle for member in members], weights=plan.sizes))

    return {name: (lambda kind=kind: ours(kind)) for name, kind in kinds.items()} | {
        "library": lambda: library_loop(inputs, log_views, plan)
    }


def library_loop(inputs: Inputs, log_views: np.ndarray, plan: FoldPlan) -> float:
    """What people write: scikit-learn's Ridge, once per fold and penalty; the best penalty over all folds."""
    from sklearn.linear_model import Ridge

    x = np.hstack([block.values for block in inputs.blocks if isinstance(block, Block)])
    errors = np.zeros(len(PENALTIES))
    for place, penalty in enumerate(PENALTIES):
        predicted = np.empty_like(log_views)
        for fold in range(plan.n_folds):
            train, val = plan.train_rows(fold), plan.val_rows(fold)
            predicted[val] = Ridge(alpha=penalty).fit(x[train], log_views[train]).predict(x[val])
        errors[place] = msle(log_views, predicted)
    return float(errors.min())


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
