"""Encoders that multiply in 8-bit integers, for CPUs; and how far their vectors are from those of the same in float32.

Every linear layer keeps one scale per output and finds one per input row as it runs. A scale per row (a token, a
patch), and not per batch as in torch's dynamic quantisation, so that a vector does not depend on its companions.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float32, UInt8

from features.embed import Encoder
from features.errors import UsageError
from features.families import TowerEncoder

LEVELS = 127
"""Steps from zero to the largest value, on either side."""

TINY = 1e-30
"""In place of the largest value of a row of zeros."""

BLOCK_ROWS = 256
"""Rows that are multiplied at a time, so that their 32-bit sums are scaled while they are in the processor's cache."""

MIN_MEAN_COSINE, MIN_COSINE = 0.99, 0.95
"""Bars for the centred cosines of `Agreement`: a mean below 0.99 is a relative error above 0.14 in what tells two
inputs apart. CLIP ViT-B/32 (random weights) reaches 0.998 and 0.985, all-MiniLM-L6-v2 0.997 and 0.994; bf16, for
comparison, 0.999 and 0.994 on the same pictures."""


AnyEncoder = TypeVar("AnyEncoder", bound=TowerEncoder)


@dataclass(frozen=True)
class Agreement:
    """Cosines between the vectors that two encoders make of the same inputs, of one kind.

    `mean` and `smallest` are between the vectors as they are, `centred_mean` and `centred_smallest` after the mean
    vector is taken off: vectors of one encoder share a large part, which says nothing and would hide a difference.
    """

    inputs: int
    mean: float
    smallest: float
    centred_mean: float
    centred_smallest: float

    def to_dict(self) -> dict[str, int | float]:
        """Rounded, ready for JSON."""
        return {name: round(value, 6) for name, value in asdict(self).items()}


class Int8Linear(torch.nn.Module):
    """A linear layer in 8-bit integers: 32-bit sums, then the two scales and the bias in float32."""

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__()
        scale = linear.weight.abs().amax(dim=1).clamp(min=TINY) / LEVELS
        self.weight = torch.nn.Buffer((linear.weight / scale[:, None]).round().to(torch.int8).t().contiguous())
        self.scale = torch.nn.Buffer(scale)
        self.bias = linear.bias
        self.in_features, self.out_features = linear.in_features, linear.out_features

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Inputs (..., in) -> outputs (..., out)."""
        rows = inputs.reshape(-1, self.in_features)
        outputs = rows.new_empty(len(rows), self.out_features)
        for start in range(0, len(rows), BLOCK_ROWS):
            block, result = rows[start : start + BLOCK_ROWS], outputs[start : start + BLOCK_ROWS]
            scale = block.abs().amax(dim=1, keepdim=True).clamp_(min=TINY) / LEVELS
            steps = (block / scale).round_().to(torch.int8)
            result.copy_(torch._int_mm(steps, self.weight))  # torch has no public product of 8-bit matrices
            result.mul_(scale).mul_(self.scale)
            if self.bias is not None:
                result.add_(self.bias)
        return outputs.view(*inputs.shape[:-1], self.out_features)


def quantise(encoder: AnyEncoder) -> AnyEncoder:
    """The same encoder (float32, on a CPU) with linear layers of 8 bits.

    The given encoder stays as it is; what is not quantised is shared.
    """
    quantised = copy.copy(encoder)
    quantised.towers = {kind: _quantised_tower(tower) for kind, tower in encoder.towers.items()}
    return quantised


def _quantised_tower(tower: torch.nn.Module) -> torch.nn.Module:
    """Copy a tower, but share every weight and put the 8-bit twin of a linear layer where the layer would be copied."""
    memo: dict[int, Any] = {id(weight): weight for weight in tower.parameters()}
    memo |= {id(layer): Int8Linear(layer) for layer in tower.modules() if type(layer) is torch.nn.Linear}
    copied: torch.nn.Module = copy.deepcopy(tower, memo)
    return copied.eval()


def measured_agreement(
    exact: Encoder,
    other: Encoder,
    *,
    pixels: UInt8[np.ndarray, "picture 3 height width"] | None = None,
    texts: Sequence[str] = (),
    batch_size: int = 32,
) -> dict[str, Agreement]:
    """Encode the same pictures and texts with both and compare, kind by kind; a few dozen of each are enough."""
    agreements = {}
    if pixels is not None and len(pixels):
        vectors = [_images(encoder, pixels, batch_size) for encoder in (exact, other)]
        agreements["image"] = agreement(*vectors)
    if texts:
        vectors = [_texts(encoder, texts, batch_size) for encoder in (exact, other)]
        agreements["text"] = agreement(*vectors)
    return agreements


def agreement(exact: Float32[np.ndarray, "input dim"], other: Float32[np.ndarray, "input dim"]) -> Agreement:
    """Compare row by row.

    >>> agreement(np.eye(2, dtype=np.float32), np.eye(2, dtype=np.float32)).smallest
    1.0
    """
    centre = exact.mean(axis=0)
    plain, centred = _cosines(exact, other), _cosines(exact - centre, other - centre)
    return Agreement(
        len(exact), *(float(value) for value in (plain.mean(), plain.min(), centred.mean(), centred.min()))
    )


def require_agreement(agreements: Mapping[str, Agreement], tag: str) -> None:
    """Refuse an encoder that 8 bits change too much.

    Raises
    ------
    UsageError
        A mean or a smallest cosine is below its bar; the message has the numbers.
    """
    for kind, found in agreements.items():
        if found.centred_mean < MIN_MEAN_COSINE or found.centred_smallest < MIN_COSINE:
            raise UsageError(
                f"in 8 bits the {kind} vectors of {tag} have a mean cosine of {found.centred_mean:.4f} and a smallest "
                f"of {found.centred_smallest:.4f} with those in fp32, on {found.inputs} inputs; at least "
                f"{MIN_MEAN_COSINE} and {MIN_COSINE} are asked for: use --precision fp32"
            )


def _images(encoder: Encoder, pixels: UInt8[np.ndarray, "picture 3 height width"], batch_size: int) -> Any:
    return np.concatenate([encoder.encode_images(pixels[part]) for part in _parts(len(pixels), batch_size)])


def _texts(encoder: Encoder, texts: Sequence[str], batch_size: int) -> Any:
    tokens, _ = encoder.tokenize(texts)
    pad_to = encoder.text_layout.pad_to(max(map(len, tokens)))
    return np.concatenate([encoder.encode_tokens(tokens[part], pad_to) for part in _parts(len(tokens), batch_size)])


def _parts(rows: int, batch_size: int) -> Iterator[slice]:
    return (slice(start, start + batch_size) for start in range(0, rows, batch_size))


def _cosines(left: Float32[np.ndarray, "input dim"], right: Float32[np.ndarray, "input dim"]) -> Any:
    lengths = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    return (left * right).sum(axis=1) / np.maximum(lengths, TINY)
