"""SigLIP, and SigLIP 2 in its fixed resolutions, as frozen encoders: one architecture, two ways to read a text."""

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float, Int64, Real
from transformers import SiglipConfig, SiglipTextModel, SiglipVisionModel

from features.encoders import EncoderConfig
from features.errors import UsageError
from features.hub import read_json
from features.text_layout import TextLayout
from features.torch_encoder import TorchEncoder
from features.towers import Place, normalised, quiet_transformers, read_tokenizer, read_tower


class SiglipEncoder(TorchEncoder):
    """Thumbnails and texts -> SigLIP vectors, not normalised.

    Parameters and errors are those of `features.clip.ClipEncoder`.
    """

    def __init__(self, config: EncoderConfig, kinds: Sequence[str], device: str, precision: str) -> None:
        # The text tower attends to padding, was trained with it, and reads its vector at the last position.
        super().__init__(config, Place.of(device, precision), TextLayout.whole(config.max_tokens))
        self._pads_left = config.text is not None and config.text.padding == "left"
        with quiet_transformers():
            whole = SiglipConfig.from_pretrained(config.folder, local_files_only=True)
            if "image" in kinds:
                self.towers["image"] = self._load(SiglipVisionModel, whole.vision_config)
            if "text" in kinds:
                self.towers["text"] = self._load(SiglipTextModel, whole.text_config)
                self._tokenizer = read_tokenizer(config.folder)
                self._pad_id = self._read_pad_id()

    def image_vectors(self, pixels: Real[torch.Tensor, "batch 3 height width"]) -> Float[torch.Tensor, "batch dim"]:
        """What the attention of the tower's head pools."""
        tower = self.towers["image"]
        return cast("torch.Tensor", tower(normalised(pixels, self.config.preprocess, self._place)).pooler_output)

    def text_vectors(
        self, tokens: Sequence[Int64[np.ndarray, " _"]], pad_to: int | None
    ) -> Float[torch.Tensor, "batch dim"]:
        """Of texts padded to `max_tokens`; padding is not masked."""
        whole = self.text_layout.max_tokens
        if pad_to != whole:
            raise ValueError(f"SigLIP reads texts padded to {whole} tokens, not to {pad_to}")
        ids, _ = self._rectangle(tokens, whole, self._pad_id, "left" if self._pads_left else "right")
        return cast("torch.Tensor", self.towers["text"](input_ids=ids).pooler_output)

    def _load(self, tower_class: Any, tower_config: Any) -> Any:
        return read_tower(tower_class, self.config, config=tower_config).to(*self._place)

    def _read_pad_id(self) -> int:
        path = self.config.folder / "tokenizer_config.json"
        token = read_json(path).get("pad_token") if path.is_file() else None
        written = token.get("content") if isinstance(token, dict) else token
        pad_id = self._tokenizer.token_to_id(str(written)) if written else None
        if pad_id is None:
            raise UsageError(f"{path} must name a pad_token of tokenizer.json, however: {written}")
        return int(pad_id)
