"""Thumbnails made ready for the encoder per second and core: vp's feed, and Pillow with the checkpoint's processor.

    .venv/bin/python benchmarks/thumbnails.py --model FOLDER [--data DATASET] [--pictures 200]

Without --data, photograph-like pictures are drawn at 480x360 and 1280x720 and saved as JPEG, quality 85. Both sides get
the same files one after the other on one thread; then the feed runs with more threads, and with processes instead.
"""

import argparse
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from features.decode import read_source
from features.feed import ThumbnailFeed
from features.preprocess import ImagePreprocess, cut_thumbnail, read_thumbnail

SIZES = ((480, 360), (1280, 720))
REPEATS = 5


def main() -> None:
    options = read_options()
    with tempfile.TemporaryDirectory() as scratch:
        for name, paths in sets_of_pictures(options, Path(scratch)).items():
            compare(name, paths, options.model)


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--pictures", type=int, default=200)
    return parser.parse_args()


def sets_of_pictures(options: argparse.Namespace, scratch: Path) -> dict[str, list[Path]]:
    if options.data is not None:
        files = sorted((options.data / "train_val").iterdir())[: options.pictures]
        return {f"{len(files)} files of {options.data.name}": files}
    sets = {}
    for width, height in SIZES:
        paths = [scratch / f"{width}-{number}.jpg" for number in range(options.pictures)]
        for number, path in enumerate(paths):
            draw(number, width, height).save(path, quality=85)
        sets[f"{width}x{height}"] = paths
    return sets


def draw(seed: int, width: int, height: int) -> Image.Image:
    """Smooth patches, edges and a little grain: JPEG files of about the size that real thumbnails have."""
    rng = np.random.default_rng(seed)
    patches = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    grain = rng.normal(0, 6, (height, width, 1))
    return Image.fromarray(np.clip(np.asarray(patches) + grain, 0, 255).astype(np.uint8))


def compare(name: str, paths: Sequence[Path], model: Path) -> None:
    preprocess = ImagePreprocess.from_folder(model)
    ours = partial(each, partial(read_thumbnail, preprocess=preprocess), paths)
    theirs = partial(each, processor_of(model), paths)
    rates = {"vp": [], "processor": []}
    for _ in range(REPEATS):  # in turns, so that a busy machine slows both
        rates["vp"].append(rate(ours, len(paths)))
        rates["processor"].append(rate(theirs, len(paths)))
    vp, processor = (float(np.median(rates[side])) for side in ("vp", "processor"))
    print(f"{name}: vp {vp:.0f}/s, Pillow + processor {processor:.0f}/s, ratio {vp / processor:.2f}", flush=True)
    for threads in (1, 2, 4):
        print(
            f"  feed with {threads} threads {rate(partial(through_feed, preprocess, paths, threads), len(paths)):.0f}/s"
        )
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        work = partial(read_thumbnail, preprocess=preprocess)
        pool.map(work, paths[:4])
        print(f"  2 processes       {rate(lambda: pool.map(work, paths, chunksize=8), len(paths)):.0f}/s")


def each(work: Callable[[Path], object], paths: Sequence[Path]) -> None:
    for path in paths:
        work(path)


def through_feed(preprocess: ImagePreprocess, paths: Sequence[Path], threads: int) -> None:
    feed = ThumbnailFeed(read_source, partial(cut_thumbnail, preprocess=preprocess), threads, ahead=64)
    feed.add(paths)
    for _ in paths:
        feed.next()
    feed.close()


def processor_of(model: Path) -> Callable[[Path], object]:
    from transformers import AutoImageProcessor

    processor = AutoImageProcessor.from_pretrained(model)

    def work(path: Path) -> object:
        return processor(images=Image.open(path).convert("RGB"), return_tensors="np")["pixel_values"]

    return work


def rate(work: Callable[[], object], count: int) -> float:
    start = time.perf_counter()
    work()
    return count / (time.perf_counter() - start)


if __name__ == "__main__":
    import torch

    torch.set_num_threads(1)
    main()
