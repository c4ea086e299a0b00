"""Reading a verified cache, against hashing the same bytes and against `numpy.load`.

    .venv/bin/python benchmarks/read_cache.py [--rows 100000] [--dim 768]

A cache of drawn vectors is written with vp's own shard writer. Then, in turns and from the page cache, the bytes of all
shards are read and hashed with as many threads as vp uses, vp reads the cache, numpy loads a .npy of the same vectors.
"""

import argparse
import hashlib
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from features.plan import MANIFEST, CachePlan, PlannedShard, digest, shard_key, shard_ranges, write_plan
from features.shards import Shard, write_shard
from features.store import READ_THREADS, EmbeddingStore

ROWS_PER_SHARD = 4096  # as on a GPU
REPEATS = 7


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=768)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_cache(folder, options.rows, options.dim)
        np.save(folder / "all.npy", EmbeddingStore.open(folder).read("image").vectors)
        shards = sorted(folder.glob("*.h5"))
        ways: dict[str, Callable[[], object]] = {
            "hash the bytes": lambda: hash_all(shards),
            "vp reads them": lambda: EmbeddingStore.open(folder).read("image"),
            "numpy.load": lambda: np.load(folder / "all.npy"),
        }
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(REPEATS):
            for name, way in ways.items():
                start = time.perf_counter()
                way()
                seconds[name].append(time.perf_counter() - start)
        megabytes = sum(path.stat().st_size for path in shards) / 1e6
        medians = {name: statistics.median(values) for name, values in seconds.items()}
        for name, median in medians.items():
            print(f"{name:<16} {median:6.3f} s, {megabytes / median:7.0f} MB/s")
        print(f"vp against hashing: {medians['vp reads them'] / medians['hash the bytes']:.2f}")


def write_cache(folder: Path, rows: int, dim: int) -> None:
    rng = np.random.default_rng(0)
    semantic = {"drawn": True}
    planned, files = [], {}
    for index, start, stop in shard_ranges(rows, ROWS_PER_SHARD):
        ids = [f"{row:011d}" for row in range(start, stop)]
        part = PlannedShard("image", index, start, stop, shard_key(digest(semantic), "image", 256, ids))
        shard = Shard(
            kind="image",
            index=index,
            encoder=digest(semantic),
            key=part.key,
            ids=ids,
            embedding=rng.standard_normal((stop - start, dim), np.float32).astype(np.float16),
            status=np.zeros(stop - start, np.uint8),
            source_digest=rng.integers(0, 256, (stop - start, 16), np.uint8),
            notes={},
        )
        planned.append(part)
        files["image", index] = write_shard(folder, shard)
    plan = CachePlan(semantic, {}, "train_val", rows, ROWS_PER_SHARD, 256, {"image": dim}, tuple(planned))
    write_plan(folder / MANIFEST, plan.with_files(files))


def hash_all(paths: list[Path]) -> None:
    with ThreadPoolExecutor(READ_THREADS) as pool:
        list(pool.map(lambda path: hashlib.sha256(path.read_bytes()).digest(), paths))


if __name__ == "__main__":
    main()
