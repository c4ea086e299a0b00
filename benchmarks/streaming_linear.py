"""Peak memory and time of `vp train-heads --head linear` and `vp submit` on a cache that need not fit into memory.

    .venv/bin/python benchmarks/streaming_linear.py [--rows 200000] [--dim 768] [--in-memory] [--diagnostics]
                                                    [--folder /tmp]

Tables and shards are drawn into a temporary folder (6.3 kB a row at 768 + 768, removed in the end), the shards by the
writer that `vp extract` uses. Each command runs in a process of its own; its peak is what the kernel says it was.
With --in-memory the same is done once more with --no-stream, and the predictions are compared.
"""

import argparse
import csv
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from features.plan import MANIFEST, CachePlan, PlannedShard, shard_ranges, write_plan
from features.shards import Shard, write_shard

ROWS_PER_SHARD = 1024
KINDS = ("image", "text")
VP = "from cli import app; app()"


@dataclass(frozen=True)
class Cost:
    """What one process took; `peak` in bytes."""

    seconds: float
    cpu_seconds: float
    peak: int

    def __str__(self) -> str:
        return f"{self.peak / 1e9:6.2f} GB peak   {self.seconds:7.1f} s   {self.cpu_seconds:7.1f} CPU s"


def main() -> None:
    options = read_options()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        root = Path(folder)
        started = time.perf_counter()
        draw_split(root, "train_val", options.rows, options.dim)
        draw_split(root, "test", max(options.rows // 10, 1), options.dim)
        vectors = 4 * options.rows * options.dim * len(KINDS)
        print(f"{options.rows} rows x ({options.dim} + {options.dim}), 3 folds, drawn in {elapsed(started)}")
        print(f"the vectors alone would take {vectors / 1e9:.2f} GB as float32", flush=True)
        modes = ["--stream", "--no-stream"] if options.in_memory else ["--stream"]
        for mode in modes:
            measure(root, mode, diagnostics=options.diagnostics)
        if options.in_memory:
            same = [(root / f"work/runs/run{mode}/oof.csv").read_bytes() for mode in modes]
            print(f"out-of-fold predictions of both, byte for byte: {'equal' if same[0] == same[1] else 'NOT equal'}")


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--in-memory", action="store_true", help="also with --no-stream")
    parser.add_argument(
        "--diagnostics", action="store_true", help="with the scores by split, which are fits of their own"
    )
    parser.add_argument("--folder", default=None, help="where the temporary folder is made")
    return parser.parse_args()


def measure(root: Path, mode: str, *, diagnostics: bool) -> None:
    name = f"run{mode}"
    asked = "--diagnostics" if diagnostics else "--no-diagnostics"
    train = run(root, "train-heads", "--head", "linear", "--modalities", "image,text,age", asked, mode, "--name", name)
    print(f"train-heads {mode:<12} {train}", flush=True)
    print(f"submit      {mode:<12} {run(root, 'submit', '--run', name, mode)}", flush=True)


def run(root: Path, *arguments: str) -> Cost:
    """One vp command in a process of its own; ends the benchmark where it fails."""
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-c", VP, *arguments, "--quiet"], cwd=root, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"vp {' '.join(arguments)} failed with status {status}")
    unit = 1 if sys.platform == "darwin" else 1024
    return Cost(time.perf_counter() - started, used.ru_utime + used.ru_stime, used.ru_maxrss * unit)


def draw_split(root: Path, split: str, n_rows: int, dim: int) -> None:
    """The table and the finished cache of one split."""
    data, cache = root / "dataset", root / "work" / "embeddings" / "drawn" / split
    data.mkdir(exist_ok=True)
    cache.mkdir(parents=True)
    shards, files = [], {}
    with (data / f"{split}.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["id", "channel", "title", "date", "views"])
        for index, start, stop in shard_ranges(n_rows, ROWS_PER_SHARD):
            rng = np.random.default_rng((index, len(split)))
            ids = [f"{split}{row:09d}" for row in range(start, stop)]
            vectors = {kind: draw_vectors(rng, stop - start, dim) for kind in KINDS}
            days = rng.integers(0, 4000, stop - start)
            table.writerows(zip(ids, *cells(rng, ids, vectors, days), strict=True))
            for kind, embedding in vectors.items():
                shard = PlannedShard(kind, index, start, stop, key=f"{kind} {index}")
                files[kind, index] = write_shard(cache, as_shard(shard, ids, embedding))
                shards.append(shard)
    plan = CachePlan(
        {"weights": "drawn"}, {}, split, n_rows, ROWS_PER_SHARD, 32, dict.fromkeys(KINDS, dim), tuple(shards)
    )
    write_plan(cache / MANIFEST, plan.with_files(files))


def draw_vectors(rng: np.random.Generator, n_rows: int, dim: int) -> np.ndarray:
    """A spectrum like CLIP's, about a mean that all share."""
    spectrum = ((1 + np.arange(dim)) ** -0.8).astype(np.float32)
    return (rng.standard_normal((n_rows, dim), dtype=np.float32) * spectrum + 0.2 / np.sqrt(dim)).astype(np.float16)


def cells(
    rng: np.random.Generator, ids: list[str], vectors: dict[str, np.ndarray], days: np.ndarray
) -> list[list[str]]:
    """Channel, title, date and views of each row; views depend on all modalities, and on chance."""
    image, text = (vectors[kind][:, :8].astype(np.float64).sum(axis=1) for kind in KINDS)
    log_views = 9 + image / 2 + text + np.log1p((4000 - days) / 365) + 1.5 * rng.normal(size=len(ids))
    dates = np.datetime_as_string(np.datetime64("2014-01-01") + days, unit="D")
    channels = [f"channel {number}" for number in rng.zipf(1.5, len(ids)) % 50_000]
    views = [str(int(value)) for value in np.expm1(log_views.clip(0, 20))]
    return [channels, [f"title of {id_}" for id_ in ids], dates.tolist(), views]


def as_shard(planned: PlannedShard, ids: list[str], embedding: np.ndarray) -> Shard:
    digests = np.random.default_rng((planned.start, len(planned.kind))).integers(0, 256, (planned.rows, 16), np.uint8)
    status = np.zeros(planned.rows, np.uint8)
    return Shard(planned.kind, planned.index, "drawn", planned.key, ids, embedding, status, digests, {})


def elapsed(started: float) -> str:
    return f"{time.perf_counter() - started:.0f} s"


if __name__ == "__main__":
    main()
