"""DINOv2 and DINOv3 as frozen encoders: pictures only."""

from collections.abc import Sequence
from typing import cast

import torch
from jaxtyping import Float, Real
from transformers import Dinov2Model, Dinov2WithRegistersModel, DINOv3ViTModel

from features.encoders import EncoderConfig
from features.text_layout import TextLayout
from features.torch_encoder import TorchEncoder
from features.towers import Place, normalised, quiet_transformers, read_tower

_MODELS = {"dinov2": Dinov2Model, "dinov2_with_registers": Dinov2WithRegistersModel, "dinov3_vit": DINOv3ViTModel}


class DinoEncoder(TorchEncoder):
    """Thumbnails -> the normed class token, which transformers calls `pooler_output`; not of length one.

    Parameters and errors are those of `features.clip.ClipEncoder`.
    """

    def __init__(self, config: EncoderConfig, _kinds: Sequence[str], device: str, precision: str) -> None:
        super().__init__(config, Place.of(device, precision), TextLayout.whole(0))
        with quiet_transformers():
            self.towers["image"] = read_tower(_MODELS[config.family], config).to(*self._place)

    def image_vectors(self, pixels: Real[torch.Tensor, "batch 3 height width"]) -> Float[torch.Tensor, "batch dim"]:
        """The class token."""
        tower = self.towers["image"]
        return cast("torch.Tensor", tower(normalised(pixels, self.config.preprocess, self._place)).pooler_output)
