"""Videos per second: `vp extract`, the forward passes alone, and what one would do without vp.

    .venv/bin/python benchmarks/extraction.py --model FOLDER --data DATASET [--rows 192] [--size 1280x720] [--texts]
    ... --device cuda --precision bf16 --rows 8192 --batch 256 --threads 4,8,15 [--compile] [--only forward,vp]

Every way encodes the same rows with the same weights in the same precision, in turns, and the median of each counts.
"forward" runs the two towers on inputs that are ready on the device, drawn pixels and texts sorted by length and padded
as little as a rectangle allows: the arithmetic that whoever pads cannot avoid. vp is measured from its first batch to
its last, as it tells itself, in a process of its own, once for each number of threads that decode.
sentence-transformers takes part where it is installed. `--size` enlarges or shrinks the thumbnails first, `--texts`
leaves them out and takes titles alone, `--rows` beyond the dataset repeats it.
"""

import argparse
import contextlib
import csv
import io
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from transformers import CLIPModel, CLIPProcessor

from features.towers import Place, padded
from pipeline.extract import CPU_ROWS_PER_SHARD, GPU_ROWS_PER_SHARD

MAX_TOKENS = 77
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def main() -> None:
    options = read_options()
    transformers.logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as scratch:
        data = Path(scratch) / "dataset"
        write_dataset(options, data)
        compare(options, data)


def compare(options: argparse.Namespace, data: Path) -> None:
    rivals = Rivals(options, data)
    ways: dict[str, Callable[[], float]] = {"forward": rivals.timed(rivals.forward)}
    ways |= {f"vp{f', {n} threads' if n else ''}": partial(vp, options, data, n) for n in options.threads}
    ways["processor loop"] = rivals.timed(rivals.processor_loop)
    ways["DataLoader, 2 workers"] = rivals.timed(rivals.data_loader)
    with contextlib.suppress(ImportError):
        ways["sentence-transformers"] = rivals.timed(rivals.sentence_transformers())
    ways = {name: way for name, way in ways.items() if not options.only or name.startswith(tuple(options.only))}
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(options.repeats):
        for name, way in ways.items():
            rates[name].append(way())
            print(f"{name:<24} {rates[name][-1]:7.2f} videos/s", flush=True)
    medians = {name: statistics.median(values) for name, values in rates.items()}
    print(f"medians: {', '.join(f'{name} {value:.2f}' for name, value in medians.items())}")
    ours = max((value for name, value in medians.items() if name.startswith("vp")), default=0.0)
    others = [value for name, value in medians.items() if name != "forward" and not name.startswith("vp")]
    for what, theirs in (("forward", [medians["forward"]] if "forward" in medians else []), ("the best rival", others)):
        if ours and theirs:
            print(f"vp against {what} {ours / max(theirs):.3f}")


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=192)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--precision", default="fp32", choices=list(DTYPES))
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--threads", type=lambda text: [int(n) for n in text.split(",")], default=[0])
    parser.add_argument("--size", type=lambda text: tuple(map(int, text.split("x"))), help="width x height")
    parser.add_argument("--texts", action="store_true", help="titles alone")
    parser.add_argument("--compile", action="store_true", help="vp compiles the tower of images")
    parser.add_argument("--only", type=lambda text: text.split(","), default=[], help="ways whose names begin so")
    return parser.parse_args()


def write_dataset(options: argparse.Namespace, data: Path) -> None:
    """The first rows of the dataset, as often as it takes, with thumbnails of the size that was asked for."""
    with (options.data / "train_val.csv").open(newline="", encoding="utf-8") as file:
        given = list(csv.DictReader(file))
    (data / "train_val").mkdir(parents=True)
    rows = []
    for number in range(options.rows):
        row = dict(given[number % len(given)])
        source = options.data / "train_val" / f"{row['id']}.jpg"
        row["id"] = f"{row['id']}-{number // len(given)}"
        row["title"] = f"{row['title']} {number // len(given) or ''}".strip()  # or repeats would be encoded once
        if options.texts:
            row["description"] = ""
        else:
            write_thumbnail(source, data / "train_val" / f"{row['id']}.jpg", options.size, number)
        rows.append(row)
    with (data / "train_val.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def write_thumbnail(source: Path, target: Path, size: tuple[int, int] | None, number: int) -> None:
    """The picture of the source, with a comment of its own, so that no two files are equal."""
    jpeg, note = as_jpeg(source, size), str(number).encode()
    comment = b"\xff\xfe" + (len(note) + 2).to_bytes(2, "big") + note
    target.write_bytes(jpeg[:2] + comment + jpeg[2:])


@cache
def as_jpeg(source: Path, size: tuple[int, int] | None) -> bytes:
    picture, file = Image.open(source).convert("RGB"), io.BytesIO()
    if size is not None:
        picture = picture.resize(size, Image.Resampling.BICUBIC)
    picture.save(file, "JPEG", quality=90)
    return file.getvalue()


def vp(options: argparse.Namespace, data: Path, threads: int) -> float:
    """Extract into an empty work folder, with the command line."""
    with tempfile.TemporaryDirectory() as work:
        command = [sys.executable, "-m", "cli", "extract", "--data", str(data), "--work", work, "--json", "--quiet"]
        command += ["--model", str(options.model.resolve()), "--batch-size", str(options.batch)]
        command += ["--device", options.device, "--precision", options.precision]
        command += ["--num-workers", str(threads)] if threads else []
        command += ["--modalities", "text"] if options.texts else []
        command += ["--compile"] if options.compile else []
        result = subprocess.run(command, capture_output=True, text=True, check=True)
        return float(json.loads(result.stdout.splitlines()[-1])["rows_per_second"])


class Rivals:
    """The same work without vp."""

    def __init__(self, options: argparse.Namespace, data: Path) -> None:
        self.model_folder, self.with_images = options.model, not options.texts
        self.batch, self.device, self.dtype = options.batch, options.device, DTYPES[options.precision]
        with (data / "train_val.csv").open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        self.paths = [data / "train_val" / f"{row['id']}.jpg" for row in rows]
        self.texts = [f"{row['title']} {row['description']}".strip() for row in rows]
        self.model = CLIPModel.from_pretrained(options.model, dtype=self.dtype).eval().to(self.device)
        self.processor = CLIPProcessor.from_pretrained(options.model)
        self.layout = Place.of(self.device, options.precision).trimmed(MAX_TOKENS, packs=False)
        self.ready = self._inputs_that_are_ready()

    def timed(self, way: Callable[[], Any]) -> Callable[[], float]:
        def measure() -> float:
            start = time.perf_counter()
            with torch.inference_mode():
                way()
            if self.device == "cuda":
                torch.cuda.synchronize()
            return len(self.texts) / (time.perf_counter() - start)

        return measure

    def _inputs_that_are_ready(self) -> list[tuple[str, torch.Tensor]]:
        """Batches of pixels, and of tokens sorted by length within a shard, hardly padded but not packed."""
        batches: list[tuple[str, torch.Tensor]] = []
        if self.with_images:
            side = self.model.config.vision_config.image_size
            drawn = torch.randn(self.batch, 3, side, side, device=self.device, dtype=self.dtype)
            starts = range(0, len(self.paths), self.batch)
            batches += [("pixel_values", drawn[: len(self.paths[start : start + self.batch])]) for start in starts]
        tokens = self.processor.tokenizer(self.texts, truncation=True, max_length=MAX_TOKENS)["input_ids"]
        end = self.processor.tokenizer.eos_token_id
        shard_rows = CPU_ROWS_PER_SHARD if self.device == "cpu" else GPU_ROWS_PER_SHARD
        for first in range(0, len(tokens), shard_rows):
            shard = [np.array(ids) for ids in tokens[first : first + shard_rows]]
            for batch in self.layout.batches([len(ids) for ids in shard], self.batch):
                own = [shard[text] for text in batch.texts]
                ids, _ = padded(own, self.layout.width(len(own[-1])), MAX_TOKENS, end)
                batches.append(("input_ids", ids.to(self.device)))
        return batches

    def _pixels(self, paths: list[Path]) -> torch.Tensor:
        pictures = [Image.open(path).convert("RGB") for path in paths]
        pixels = self.processor.image_processor(images=pictures, return_tensors="pt")["pixel_values"]
        return pixels.to(self.device, self.dtype)

    def forward(self) -> None:
        for name, batch in self.ready:
            if name == "pixel_values":
                self.model.get_image_features(pixel_values=batch)
            else:
                self.model.get_text_features(input_ids=batch)

    def processor_loop(self) -> None:
        for start in range(0, len(self.texts), self.batch):
            texts = self.texts[start : start + self.batch]
            tokens = self.processor.tokenizer(
                texts, padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt"
            ).to(self.device)
            self.model.get_text_features(**tokens)
            if self.with_images:
                self.model.get_image_features(pixel_values=self._pixels(self.paths[start : start + self.batch]))

    def data_loader(self) -> None:
        for pixels, tokens in torch.utils.data.DataLoader(Rows(self), batch_size=self.batch, num_workers=2):
            self.model.get_text_features(input_ids=tokens.to(self.device))
            if self.with_images:
                self.model.get_image_features(pixel_values=pixels.to(self.device, self.dtype))

    def sentence_transformers(self) -> Callable[[], None]:
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.models import CLIPModel as Clip

        model = SentenceTransformer(modules=[Clip(str(self.model_folder))], device=self.device).to(self.dtype)

        def encode() -> None:
            model.encode(self.texts, batch_size=self.batch, show_progress_bar=False)
            if self.with_images:
                pictures = [Image.open(path).convert("RGB") for path in self.paths]
                model.encode(pictures, batch_size=self.batch, show_progress_bar=False)

        return encode


class Rows(torch.utils.data.Dataset):
    """One row at a time, for worker processes."""

    def __init__(self, rivals: Rivals) -> None:
        self.paths, self.texts, self.processor = rivals.paths, rivals.texts, rivals.processor
        self.with_images = rivals.with_images

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, row: int) -> tuple[torch.Tensor, torch.Tensor]:
        tokens = self.processor.tokenizer(
            self.texts[row], padding="max_length", truncation=True, max_length=MAX_TOKENS, return_tensors="pt"
        )["input_ids"][0]
        if not self.with_images:
            return torch.zeros(1), tokens
        picture = Image.open(self.paths[row]).convert("RGB")
        return self.processor.image_processor(images=picture, return_tensors="pt")["pixel_values"][0], tokens


if __name__ == "__main__":
    np.seterr(all="raise")
    main()
