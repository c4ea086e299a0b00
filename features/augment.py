"""Thumbnails a little different every time they are seen in training; on the device, after decoding.

A crop of most of the picture, stretched back to its size. Nothing is mirrored: thumbnails hold text.
"""

import torch
from jaxtyping import Float, UInt8

from features.torch_encoder import sent

LEAST_AREA = 0.8
"""Share of the picture's area that a crop keeps at least."""
MOST_STRETCH = 1.1
"""Its sides may change their proportion by so much."""


def random_crops(
    pixels: UInt8[torch.Tensor, "batch 3 height width"], generator: torch.Generator
) -> Float[torch.Tensor, "batch 3 height width"]:
    """A random crop of each picture, resized to the size it had, in grey levels from 0 to 255.

    `generator` is on the CPU, so that every device draws the same crops.
    """
    drawn = torch.rand((len(pixels), 4), generator=generator).T  # row by row: batches may be cut anywhere
    area = LEAST_AREA + (1 - LEAST_AREA) * drawn[0]
    stretch = MOST_STRETCH ** (2 * drawn[1] - 1)
    width, height = ((area * ratio).sqrt().clamp(max=1) for ratio in (stretch, 1 / stretch))
    left, top = (1 - width) * (2 * drawn[2] - 1), (1 - height) * (2 * drawn[3] - 1)
    zero = torch.zeros_like(area)
    # Coordinates run from -1 to 1 on both axes: where each pixel of the result is looked up.
    affine = torch.stack([torch.stack([width, zero, left], 1), torch.stack([zero, height, top], 1)], 1)
    grid = torch.nn.functional.affine_grid(sent(affine, pixels.device), list(pixels.shape), align_corners=False)
    return torch.nn.functional.grid_sample(
        pixels.float(), grid, mode="bilinear", padding_mode="border", align_corners=False
    )
