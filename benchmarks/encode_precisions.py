"""How fast an encoder runs on this CPU in fp32, int8 and bf16, and how near its vectors stay to those in fp32.

    python benchmarks/encode_precisions.py --model /path/to/ViT-B-32

Inputs are drawn: soft coloured pictures, and texts of common words that fill the encoder's limit. Rounds of the three
precisions alternate, and time is that of this process's CPU, so a busy machine disturbs the ratios little. What is
asked is at least 1.6 times fp32 for a CLIP ViT-B/32 in int8.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from features.embed import Encoder
from features.encoders import EncoderConfig, resolve_encoder
from features.families import load_encoder
from features.quantised import measured_agreement
from features.tiny import WORDS

PRECISIONS = ("fp32", "int8", "bf16")


def main() -> None:
    """Measure and print."""
    options = read_options()
    torch.set_num_threads(options.threads)
    config = resolve_encoder(options.model, Path(options.model).parent)
    pixels, texts = draw_inputs(config, options.inputs)
    encoders = {precision: load_encoder(config, list(config.dim), "cpu", precision) for precision in PRECISIONS}
    print(f"{config.tag}, batches of {options.batch}, {torch.get_num_threads()} thread(s)")
    for kind in config.dim:
        work = {name: one_batch(encoder, kind, pixels, texts, options.batch) for name, encoder in encoders.items()}
        seconds = cpu_seconds(work, options.rounds)
        rates = {name: options.batch / value * options.threads for name, value in seconds.items()}
        for name, rate in rates.items():
            print(f"{kind:<6} {name:<5} {rate:8.1f}/s  {rate / rates['fp32']:5.2f} times fp32")
    for name in PRECISIONS[1:]:
        found = measured_agreement(encoders["fp32"], encoders[name], pixels=pixels, texts=texts)
        for kind, agreement in found.items():
            print(f"{kind:<6} {name:<5} {agreement.to_dict()}")


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--inputs", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def draw_inputs(config: EncoderConfig, inputs: int) -> tuple[np.ndarray | None, list[str]]:
    """Pictures and texts, of the kinds that the encoder reads."""
    rng = np.random.default_rng(0)
    pixels = None
    if config.preprocess:
        height, width = config.preprocess.output
        coarse = rng.integers(0, 256, (inputs, 9, 12, 3), np.uint8)
        pictures = [
            np.asarray(Image.fromarray(one).resize((width, height), Image.Resampling.BICUBIC)) for one in coarse
        ]
        pixels = np.stack(pictures).transpose(0, 3, 1, 2).copy()
    words = WORDS.split()
    length = config.max_tokens
    texts = [" ".join(rng.choice(words, length)) for _ in range(inputs if config.text else 0)]
    return pixels, texts


def one_batch(
    encoder: Encoder, kind: str, pixels: np.ndarray | None, texts: list[str], batch: int
) -> Callable[[], object]:
    """The forward pass that is timed."""
    if kind == "image":
        return lambda: encoder.encode_images(pixels[:batch])
    tokens = encoder.tokenize(texts[:batch])[0]
    return lambda: encoder.encode_tokens(tokens, encoder.text_layout.max_tokens)


def cpu_seconds(work: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median CPU time of each, in alternation, after one round to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(rounds + 1):
        for name, run in work.items():
            started = time.process_time()
            run()
            seconds[name].append(time.process_time() - started)
    return {name: float(np.median(values[1:])) for name, values in seconds.items()}


if __name__ == "__main__":
    main()
