"""DINOv2 and DINOv3 as frozen encoders: pictures only."""

from collections.abc import Sequence
from typing import Any, Never, cast

import numpy as np
import torch
from jaxtyping import Float, Float32, Real, UInt8
from transformers import Dinov2Model, Dinov2WithRegistersModel, DINOv3ViTModel

from features.encoders import EncoderConfig
from features.text_layout import TextLayout
from features.towers import Place, encoded_crops, normalised, quiet_transformers, read_tower

_MODELS = {"dinov2": Dinov2Model, "dinov2_with_registers": Dinov2WithRegistersModel, "dinov3_vit": DINOv3ViTModel}


class DinoEncoder:
    """Thumbnails -> the normed class token, which transformers calls `pooler_output`; not of length one.

    Parameters and errors are those of `features.clip.ClipEncoder`.
    """

    text_layout = TextLayout.whole(0)

    def __init__(self, config: EncoderConfig, _kinds: Sequence[str], device: str, precision: str) -> None:
        self.config = config
        self._place = Place.of(device, precision)
        with quiet_transformers():
            tower = read_tower(_MODELS[config.family], config)
        self.towers: dict[str, Any] = {"image": tower.to(self._place.device, self._place.dtype)}

    def encode_images(
        self, pixels: UInt8[np.ndarray, "batch 3 height width"] | UInt8[torch.Tensor, "batch 3 height width"]
    ) -> Float32[np.ndarray, "batch dim"]:
        """Vectors of crops made by `read_thumbnail`; a pinned tensor is copied without waiting."""
        return encoded_crops(self.image_vectors, pixels, self._place)

    def image_vectors(self, pixels: Real[torch.Tensor, "batch 3 height width"]) -> Float[torch.Tensor, "batch dim"]:
        """Vectors of grey levels that are on the device; gradients flow through where they are wanted."""
        tower = self.towers["image"]
        return cast("torch.Tensor", tower(normalised(pixels, self.config.preprocess, self._place)).pooler_output)

    def tokenize(self, texts: Sequence[str]) -> Never:
        """Refuse: there is no text tower."""
        raise ValueError(f"{self.config.tag} reads no texts, however {len(texts)} were given")

    def encode_tokens(self, tokens: Sequence[Any], pad_to: int | None) -> Never:
        """Refuse: there is no text tower."""
        raise ValueError(f"{self.config.tag} reads no texts, however {len(tokens)} of {pad_to} tokens were given")

    def text_vectors(self, tokens: Sequence[Any], pad_to: int | None) -> Never:
        """Refuse: there is no text tower."""
        raise ValueError(f"{self.config.tag} reads no texts, however {len(tokens)} of {pad_to} tokens were given")
