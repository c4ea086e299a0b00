"""Videos per second on a CPU: `vp extract`, the forward passes alone, and what one would do without vp.

    .venv/bin/python benchmarks/extract_cpu.py --model FOLDER --data DATASET [--rows 192] [--texts] [--repeats 3]

Every way encodes the same rows with the same weights in fp32, in turns, and the median of each counts. "forward" runs
the two towers on inputs that are ready, with the token counts that vp uses: the arithmetic that nobody can avoid. vp is
measured from its first batch to its last, as it tells itself, in a process of its own. sentence-transformers takes part
where it is installed. `--texts` leaves the thumbnails out and takes titles alone.
"""

import argparse
import contextlib
import csv
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from transformers import CLIPModel, CLIPProcessor

BATCH = 32
MAX_TOKENS = 77


def main() -> None:
    options = read_options()
    transformers.logging.set_verbosity_error()
    rivals = Rivals(options)
    ways: dict[str, Callable[[], float]] = {
        "forward": rivals.timed(rivals.forward),
        "vp": lambda: vp(options),
        "processor loop": rivals.timed(rivals.processor_loop),
        "DataLoader, 2 workers": rivals.timed(rivals.data_loader),
    }
    with contextlib.suppress(ImportError):
        ways["sentence-transformers"] = rivals.timed(rivals.sentence_transformers())
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(options.repeats):
        for name, way in ways.items():
            rates[name].append(way())
            print(f"{name:<24} {rates[name][-1]:7.2f} videos/s", flush=True)
    medians = {name: statistics.median(values) for name, values in rates.items()}
    rival = max(value for name, value in medians.items() if name not in ("forward", "vp"))
    print(f"medians: {', '.join(f'{name} {value:.2f}' for name, value in medians.items())}")
    against_forward, against_rival = medians["vp"] / medians["forward"], medians["vp"] / rival
    print(f"vp against forward {against_forward:.3f}, against the best rival {against_rival:.3f}")


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=192)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--texts", action="store_true", help="titles alone")
    return parser.parse_args()


def rows_of(options: argparse.Namespace) -> list[dict[str, str]]:
    with (options.data / "train_val.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))[: options.rows]
    if options.texts:
        rows = [row | {"description": ""} for row in rows]
    return rows


def vp(options: argparse.Namespace) -> float:
    """Extract into an empty work folder, with the command line."""
    rows = rows_of(options)
    with tempfile.TemporaryDirectory() as scratch:
        data = Path(scratch) / "dataset"
        data.mkdir()
        with (data / "train_val.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
        if not options.texts:
            (data / "train_val").symlink_to((options.data / "train_val").resolve())
        command = [sys.executable, "-m", "cli", "extract", "--data", str(data), "--work", f"{scratch}/work"]
        command += [
            "--model",
            str(options.model.resolve()),
            "--device",
            "cpu",
            "--precision",
            "fp32",
            "--json",
            "--quiet",
        ]
        result = subprocess.run(command, capture_output=True, text=True, check=True)
        return float(json.loads(result.stdout.splitlines()[-1])["rows_per_second"])


class Rivals:
    """The same work without vp."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.model_folder, self.with_images = options.model, not options.texts
        rows = rows_of(options)
        self.paths = [options.data / "train_val" / f"{row['id']}.jpg" for row in rows]
        self.texts = [f"{row['title']} {row['description']}".strip() for row in rows]
        self.model = CLIPModel.from_pretrained(options.model, dtype=torch.float32).eval()
        self.processor = CLIPProcessor.from_pretrained(options.model)
        self.ready = self._inputs_that_are_ready()

    def timed(self, way: Callable[[], Any]) -> Callable[[], float]:
        def measure() -> float:
            start = time.perf_counter()
            with torch.inference_mode():
                way()
            return len(self.texts) / (time.perf_counter() - start)

        return measure

    def _inputs_that_are_ready(self) -> list[tuple[str, torch.Tensor]]:
        """Batches of pixels, and of tokens sorted by length and trimmed to a multiple of eight, as vp does."""
        batches: list[tuple[str, torch.Tensor]] = []
        if self.with_images:
            starts = range(0, len(self.paths), BATCH)
            batches += [("pixel_values", self._pixels(self.paths[start : start + BATCH])) for start in starts]
        tokens = self.processor.tokenizer(self.texts, truncation=True, max_length=MAX_TOKENS)["input_ids"]
        tokens.sort(key=len)
        end = self.processor.tokenizer.eos_token_id
        for start in range(0, len(tokens), BATCH):
            batch = tokens[start : start + BATCH]
            width = min(MAX_TOKENS, -(-max(map(len, batch)) // 8) * 8)
            batches.append(("input_ids", torch.tensor([ids + [end] * (width - len(ids)) for ids in batch])))
        return batches

    def _pixels(self, paths: list[Path]) -> torch.Tensor:
        pictures = [Image.open(path).convert("RGB") for path in paths]
        return self.processor.image_processor(images=pictures, return_tensors="pt")["pixel_values"]

    def forward(self) -> None:
        for name, batch in self.ready:
            if name == "pixel_values":
                self.model.get_image_features(pixel_values=batch)
            else:
                self.model.get_text_features(input_ids=batch)

    def processor_loop(self) -> None:
        for start in range(0, len(self.texts), BATCH):
            texts = self.texts[start : start + BATCH]
            tokens = self.processor.tokenizer(
                texts, padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt"
            )
            self.model.get_text_features(**tokens)
            if self.with_images:
                self.model.get_image_features(pixel_values=self._pixels(self.paths[start : start + BATCH]))

    def data_loader(self) -> None:
        for pixels, tokens in torch.utils.data.DataLoader(Rows(self), batch_size=BATCH, num_workers=2):
            self.model.get_text_features(input_ids=tokens)
            if self.with_images:
                self.model.get_image_features(pixel_values=pixels)

    def sentence_transformers(self) -> Callable[[], None]:
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.models import CLIPModel as Clip

        model = SentenceTransformer(modules=[Clip(str(self.model_folder))], device="cpu")

        def encode() -> None:
            model.encode(self.texts, batch_size=BATCH, show_progress_bar=False)
            if self.with_images:
                pictures = [Image.open(path).convert("RGB") for path in self.paths]
                model.encode(pictures, batch_size=BATCH, show_progress_bar=False)

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
