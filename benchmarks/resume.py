"""A second `vp extract` on a complete cache: seconds and memory, by number of rows.

    .venv/bin/python benchmarks/resume.py [--rows 20000] [--dim 768]

The dataset has a title and a thumbnail per row (one picture under many names), the cache is written with vp's own shard
writer as an extraction would leave it. Then the table is read and the cache made again, in a process of its own.
"""

import argparse
import csv
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from features.cache import Recipe, make_cache, make_plan
from features.config import DatasetConfig
from features.plan import MANIFEST, write_plan
from features.progress import Silent
from features.shards import Shard, write_shard
from features.supervise import Supervisor
from features.videos import VideoTable, read_videos
from features.worker import Worker

LINKS = 30_000  # names that one file may have


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--dim", type=int, default=768)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR", "/var/tmp")) as scratch:
        root = Path(scratch)
        start = time.perf_counter()
        write_dataset(root / "dataset", options.rows)
        table = read_videos(DatasetConfig(data=root / "dataset"), "train_val")
        write_cache(folder_of(root), table, options.dim)
        print(f"{options.rows:,} rows were written in {time.perf_counter() - start:.0f} s", flush=True)
        del table
        child = multiprocessing.get_context("spawn").Process(target=extract_again, args=(root, options.dim))
        child.start()
        child.join()
        sys.exit(child.exitcode)


def extract_again(root: Path, dim: int) -> None:
    """What `vp extract` does with a dataset and its cache; a worker that started would raise."""
    start = time.perf_counter()
    table = read_videos(DatasetConfig(data=root / "dataset"), "train_val")
    with Supervisor(nobody, ["cpu"], patience_seconds=60.0, warn=print) as workers:
        summary = make_cache(folder_of(root), table, recipe(dim), workers, Silent())
    seconds, peak_kib = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    loaded = {"torch", "transformers"} & set(sys.modules)
    print(
        f"extracted again: {seconds:.1f} s, peak {peak_kib / 1024:.0f} MiB, {summary.shards_written} shards written, "
        f"loaded: {', '.join(loaded) or 'neither torch nor transformers'}"
    )


def nobody(device: str) -> Worker:
    raise RuntimeError(f"nothing is missing, and yet a worker started on {device}")


def folder_of(root: Path) -> Path:
    return root / "work" / "embeddings" / "drawn" / "train_val"


def recipe(dim: int) -> Recipe:
    return Recipe({"drawn": True, "precision": "fp32"}, {"device": "drawn"}, {"image": dim, "text": dim}, 256, 1024)


def write_dataset(folder: Path, rows: int) -> None:
    (folder / "train_val").mkdir(parents=True)
    with (folder / "train_val.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "title", "views", "year"])
        writer.writerows([f"v{row:010d}", f"title number {row}", row, 2015] for row in range(rows))
    picture = Image.new("RGB", (48, 36), "teal")
    for row in range(rows):
        name = folder / "train_val" / f"v{row:010d}.jpg"
        if row % LINKS == 0:
            picture.save(name)
            original = name
        else:
            name.hardlink_to(original)


def write_cache(folder: Path, table: VideoTable, dim: int) -> None:
    plan = make_plan(table, recipe(dim))
    rng, files = np.random.default_rng(0), {}
    for part in plan.shards:
        shard = Shard(
            kind=part.kind,
            index=part.index,
            encoder=plan.encoder,
            key=part.key,
            ids=table.ids[part.start : part.stop],
            embedding=rng.standard_normal((part.rows, dim), np.float32).astype(np.float16),
            status=np.zeros(part.rows, np.uint8),
            source_digest=rng.integers(0, 256, (part.rows, 16), np.uint8),
            notes={},
        )
        files[part.kind, part.index] = write_shard(folder, shard)
    write_plan(folder / MANIFEST, plan.with_files(files))


if __name__ == "__main__":
    main()
