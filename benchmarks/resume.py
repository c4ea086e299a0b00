"""What a complete cache costs by number of rows: a second `vp extract`, `vp status`, `vp verify`, linear heads.

    .venv/bin/python benchmarks/resume.py [--rows 20000] [--dim 768] [--all]

The dataset has a title and a thumbnail per row (one picture under many names), the cache is written with vp's own shard
writer as an extraction would leave it. Then each command runs in a process of its own; its seconds are those of the
wall, its peak memory that of the process. Without `--all` only the second extraction is measured.
"""

import argparse
import csv
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from typer.testing import CliRunner

import cli
from features.cache import Recipe, make_cache, make_plan
from features.config import DatasetConfig
from features.decode import source_digest
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
    parser.add_argument("--all", action="store_true", help="also status, verify and train-heads --head linear")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR", "/var/tmp")) as scratch:
        root = Path(scratch)
        start = time.perf_counter()
        write_dataset(root / "dataset", options.rows)
        table = read_videos(DatasetConfig(data=root / "dataset"), "train_val")
        write_cache(folder_of(root), table, options.dim)
        print(f"{options.rows:,} rows were written in {time.perf_counter() - start:.0f} s", flush=True)
        del table
        codes = [in_a_child(extract_again, root, options.dim)]
        codes += [in_a_child(run_command, root, *command) for command in (COMMANDS if options.all else ())]
        sys.exit(max(codes))


COMMANDS = (
    ("status",),
    ("verify", "--no-sources"),
    ("verify",),
    ("train-heads", "--head", "linear", "--no-search", "--no-diagnostics", "--stream"),
)


def in_a_child(measured: Callable[..., None], *arguments: object) -> int:
    child = multiprocessing.get_context("spawn").Process(target=measured, args=arguments)
    child.start()
    child.join()
    return abs(child.exitcode or 0)


def run_command(root: Path, *arguments: str) -> None:
    """A command as a user types it, in the folder that holds the dataset and the work folder."""
    os.chdir(root)
    start = time.perf_counter()
    code = CliRunner().invoke(cli.app, [*arguments, "--quiet"]).exit_code
    print(f"vp {' '.join(arguments)}: {told(start)}, exit code {code}", flush=True)


def told(start: float) -> str:
    peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return f"{time.perf_counter() - start:.1f} s, peak {peak_kib / 1024:.0f} MiB"


def extract_again(root: Path, dim: int) -> None:
    """What `vp extract` does with a dataset and its cache; a worker that started would raise."""
    start = time.perf_counter()
    table = read_videos(DatasetConfig(data=root / "dataset"), "train_val")
    with Supervisor(nobody, ["cpu"], patience_seconds=60.0, warn=print) as workers:
        summary = make_cache(folder_of(root), table, recipe(dim), workers, Silent())
    loaded = {"torch", "transformers"} & set(sys.modules)
    print(
        f"extracted again: {told(start)}, {summary.shards_written} shards written, "
        f"loaded: {', '.join(loaded) or 'neither torch nor transformers'}",
        flush=True,
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
        writer.writerows([f"v{row:010d}", f"title number {row}", row, 2010 + row % 13] for row in range(rows))
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
    of_pictures = np.tile(np.frombuffer(source_digest(table.thumbnail(0)), np.uint8), (plan.rows_per_shard, 1))
    for part in plan.shards:
        shard = Shard(
            kind=part.kind,
            index=part.index,
            encoder=plan.encoder,
            key=part.key,
            ids=table.ids[part.start : part.stop],
            embedding=rng.standard_normal((part.rows, dim), np.float32).astype(np.float16),
            status=np.zeros(part.rows, np.uint8),
            source_digest=table.text_digest[part.start : part.stop]
            if part.kind == "text"
            else of_pictures[: part.rows],
            notes={},
        )
        files[part.kind, part.index] = write_shard(folder, shard)
    write_plan(folder / MANIFEST, plan.with_files(files))


if __name__ == "__main__":
    main()
