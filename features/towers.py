"""What every family of encoders needs: weights read safely, put on a device, and fed with pixels and tokens."""

import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, Real
from safetensors import SafetensorError
from tokenizers import Tokenizer
from tqdm import tqdm
from transformers.utils import logging as transformers_logging

from features.encoders import EncoderConfig
from features.errors import CacheError, UsageError
from features.preprocess import ImagePreprocess, normalise
from features.text_layout import TextLayout

GPU_TOKEN_STEP = 8

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Place(NamedTuple):
    """Where an encoder runs, and the type of its weights and activations."""

    device: torch.device
    dtype: torch.dtype

    @classmethod
    def of(cls, device: str, precision: str) -> "Place":
        """Device as torch names it ("cpu", "cuda:0"); precision "fp32", "bf16" or "fp16"."""
        return cls(torch.device(device), _DTYPES[precision])

    def trimmed(self, max_tokens: int, *, packs: bool) -> TextLayout:
        """Of texts that may be trimmed: few distinct shapes on a GPU, no token too many on a CPU."""
        if self.device.type != "cpu":
            return TextLayout(max_tokens, GPU_TOKEN_STEP)
        return TextLayout(max_tokens, step=1, packed=packs)


def read_tower(tower_class: Any, encoder: EncoderConfig, **options: Any) -> Any:
    """Weights in float32, ready to run; `options` go to `from_pretrained`.

    Raises
    ------
    CacheError
        The weights are damaged or incomplete.
    """
    try:
        tower, report = tower_class.from_pretrained(
            encoder.folder,
            dtype=torch.float32,
            local_files_only=True,
            use_safetensors=not encoder.pickled_weights,
            weights_only=True,
            output_loading_info=True,
            **{"attn_implementation": "sdpa"} | options,
        )
    except (OSError, RuntimeError, ValueError, SafetensorError, UnpicklingError) as error:
        raise CacheError(f"the weights in {encoder.folder} cannot be loaded: {_first_line(error)}") from error
    if report["missing_keys"]:
        missing = ", ".join(sorted(report["missing_keys"])[:3])
        raise CacheError(f"the weights in {encoder.folder} are not complete: {missing}, ... are missing")
    return tower.eval().requires_grad_(requires_grad=False)


def read_tokenizer(folder: Path) -> Tokenizer:
    """A folder's `tokenizer.json`, as it stands, without padding and truncation.

    Raises
    ------
    UsageError
        It cannot be read.
    """
    path = folder / "tokenizer.json"
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the binding raises plain Exception, whatever is wrong
        raise UsageError(
            f"{path} must be a tokenizer of the tokenizers library, however: {_first_line(error)}"
        ) from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def padded(
    tokens: Sequence[Int64[np.ndarray, " _"]],
    pad_to: int,
    max_tokens: int,
    pad_id: int,
    side: Literal["left", "right"] = "right",
) -> tuple[Int64[torch.Tensor, "text pad_to"], Bool[torch.Tensor, "text pad_to"]]:
    """Ids as one rectangle, and where they are not padding."""
    longest = max(map(len, tokens))
    if not longest <= pad_to <= max_tokens:
        raise ValueError(f"pad_to must lie between {longest} and {max_tokens}, however: {pad_to}")
    ids = np.full((len(tokens), pad_to), pad_id, np.int64)
    real = np.zeros((len(tokens), pad_to), bool)
    for row, text in enumerate(tokens):
        part = slice(pad_to - len(text), None) if side == "left" else slice(len(text))
        ids[row, part], real[row, part] = text, True
    return torch.from_numpy(ids), torch.from_numpy(real)


def normalised(
    pixels: Real[torch.Tensor, "batch 3 height width"], preprocess: ImagePreprocess | None, place: Place
) -> Float[torch.Tensor, "batch 3 height width"]:
    """Grey levels from 0 to 255, of any type, as the tower reads them."""
    if preprocess is None:
        raise ValueError("an encoder without preprocessing reads no pictures")
    return normalise(pixels, preprocess, place.dtype)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep transformers from printing a table of the weights that the other tower owns; then leave it as it was.

    A lock of threads is enough for its bars. Left alone, tqdm makes one of processes, and where such a process is
    killed, Python complains of a leaked semaphore in the end.
    """
    tqdm.set_lock(threading.RLock())
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity(logging.ERROR)
    hook = transformers_logging.set_tqdm_hook(lambda bar, args, options: bar(*args, **{**options, "disable": True}))
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        transformers_logging.set_tqdm_hook(hook)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
