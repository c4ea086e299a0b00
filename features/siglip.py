"""SigLIP, and SigLIP 2 in its fixed resolutions, as frozen encoders: one architecture, two ways to read a text."""

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int64, Real, UInt8
from transformers import SiglipConfig, SiglipTextModel, SiglipVisionModel

from features.encoders import EncoderConfig
from features.errors import UsageError
from features.hub import read_json
from features.text_layout import TextLayout
from features.towers import (
    Place,
    encoded_crops,
    normalised,
    padded,
    quiet_transformers,
    read_tokenizer,
    read_tower,
    to_numpy,
    tokenized,
)


class SiglipEncoder:
    """Thumbnails and texts -> SigLIP vectors, not normalised.

    Parameters and errors are those of `features.clip.ClipEncoder`.
    """

    def __init__(self, config: EncoderConfig, kinds: Sequence[str], device: str, precision: str) -> None:
        self.config = config
        self.max_tokens = config.text.max_tokens if config.text else 0
        # The text tower attends to padding, was trained with it, and reads its vector at the last position.
        self.text_layout = TextLayout.whole(self.max_tokens)
        self.towers: dict[str, Any] = {}
        self._place = Place.of(device, precision)
        with quiet_transformers():
            whole = SiglipConfig.from_pretrained(config.folder, local_files_only=True)
            if "image" in kinds:
                self.towers["image"] = self._load(SiglipVisionModel, whole.vision_config)
            if "text" in kinds:
                self.towers["text"] = self._load(SiglipTextModel, whole.text_config)
                self._tokenizer = read_tokenizer(config.folder)
                self._pad_id = self._read_pad_id()

    def encode_images(
        self, pixels: UInt8[np.ndarray, "batch 3 height width"] | UInt8[torch.Tensor, "batch 3 height width"]
    ) -> Float32[np.ndarray, "batch dim"]:
        """Vectors of crops made by `read_thumbnail`; a pinned tensor is copied without waiting."""
        return encoded_crops(self.image_vectors, pixels, self._place)

    def image_vectors(self, pixels: Real[torch.Tensor, "batch 3 height width"]) -> Float[torch.Tensor, "batch dim"]:
        """Vectors of grey levels that are on the device; gradients flow through where they are wanted."""
        tower = self.towers["image"]
        return cast("torch.Tensor", tower(normalised(pixels, self.config.preprocess, self._place)).pooler_output)

    def tokenize(self, texts: Sequence[str]) -> tuple[list[Int64[np.ndarray, " _"]], Bool[np.ndarray, " text"]]:
        """Token ids of each text with its end, at most `max_tokens`; and which texts were cut."""
        return tokenized(self._tokenizer, [self._policy.prepared(text) for text in texts], self.max_tokens)

    def encode_tokens(
        self, tokens: Sequence[Int64[np.ndarray, " _"]], pad_to: int | None
    ) -> Float32[np.ndarray, "batch dim"]:
        """Vectors of tokenised texts; `pad_to` must be `max_tokens`, and padding is not masked."""
        with torch.inference_mode():
            return to_numpy(self.text_vectors(tokens, pad_to))

    def text_vectors(
        self, tokens: Sequence[Int64[np.ndarray, " _"]], pad_to: int | None
    ) -> Float[torch.Tensor, "batch dim"]:
        """The same on the device, with gradients where they are wanted."""
        if pad_to != self.max_tokens:
            raise ValueError(f"SigLIP reads texts padded to {self.max_tokens} tokens, not to {pad_to}")
        side = self._policy.padding
        ids, _ = padded(tokens, pad_to, self.max_tokens, self._pad_id, "left" if side == "left" else "right")
        return cast("torch.Tensor", self.towers["text"](input_ids=ids.to(self._place.device)).pooler_output)

    @property
    def _policy(self) -> Any:
        return self.config.text

    def _load(self, tower_class: Any, tower_config: Any) -> Any:
        return read_tower(tower_class, self.config, config=tower_config).to(self._place.device, self._place.dtype)

    def _read_pad_id(self) -> int:
        path = self.config.folder / "tokenizer_config.json"
        token = read_json(path).get("pad_token") if path.is_file() else None
        written = token.get("content") if isinstance(token, dict) else token
        pad_id = self._tokenizer.token_to_id(str(written)) if written else None
        if pad_id is None:
            raise UsageError(f"{path} must name a pad_token of tokenizer.json, however: {written}")
        return int(pad_id)
