"""CLIP as a frozen encoder: the two towers of a checkpoint in the layout of transformers, loaded only if asked for."""

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float, Int64, Real
from transformers import CLIPConfig, CLIPTextModelWithProjection, CLIPTokenizer, CLIPVisionModelWithProjection

from features.encoders import EncoderConfig
from features.errors import UsageError
from features.packed import PackedTexts, attention_for
from features.torch_encoder import TorchEncoder
from features.towers import Place, normalised, quiet_transformers, read_tower

QUICK_GELU = 1.702  # x * sigmoid(1.702 x), the sigmoid approximation of Hendrycks and Gimpel (arXiv:1606.08415)

_LEGACY_EOS = 2  # in configurations before transformers pull request 24773; means "the largest id ends the text"


class ClipEncoder(TorchEncoder):
    """Thumbnails and texts -> projected CLIP vectors, not normalised: their length carries information.

    Parameters
    ----------
    config
        Which checkpoint, from `resolve_encoder`.
    kinds
        The towers to load: "image", "text".
    device
        As torch names it: "cpu", "cuda:0".
    precision
        Of weights and activations; vectors come back as float32.

    Raises
    ------
    CacheError
        The weights are damaged or incomplete.
    UsageError
        Tokenizer and text tower do not fit together.
    """

    def __init__(self, config: EncoderConfig, kinds: Sequence[str], device: str, precision: str) -> None:
        place = Place.of(device, precision)
        # Attention is causal: what follows the end token cannot matter.
        super().__init__(config, place, place.trimmed(config.max_tokens, packs=True))
        with quiet_transformers():
            if "image" in kinds:
                self.towers["image"] = self._load(CLIPVisionModelWithProjection, "vision_config")
            if "text" in kinds:
                attention = attention_for(self.text_layout)
                self.towers["text"] = self._load(CLIPTextModelWithProjection, "text_config", **attention)
                tokenizer = CLIPTokenizer.from_pretrained(config.folder, local_files_only=True)
                self._eos = self._checked_eos(int(tokenizer.eos_token_id))
                self._tokenizer = tokenizer.backend_tokenizer
                self._tokenizer.no_padding()

    def image_vectors(self, pixels: Real[torch.Tensor, "batch 3 height width"]) -> Float[torch.Tensor, "batch dim"]:
        """The projected class token."""
        tower = self.towers["image"]
        return cast("torch.Tensor", tower(normalised(pixels, self.config.preprocess, self._place)).image_embeds)

    def text_vectors(
        self, tokens: Sequence[Int64[np.ndarray, " _"]], pad_to: int | None
    ) -> Float[torch.Tensor, "batch dim"]:
        """Of texts padded with the end token, or packed.

        No attention mask is needed: attention is causal and the vector is read at the first end token.
        """
        if pad_to is None:
            row = PackedTexts.of(tokens, self._place.device)
            ends = torch.from_numpy(row.starts + [np.argmax(text == self._eos) for text in tokens])
            every = self.towers["text"](input_ids=row.ids, position_ids=row.positions, runs=row.runs).text_embeds
            return cast("torch.Tensor", every[ends])
        ids, _ = self._rectangle(tokens, pad_to, self._eos)
        return cast("torch.Tensor", self.towers["text"](input_ids=ids).text_embeds)

    def _load(self, tower_class: Any, section: str, **options: Any) -> Any:
        tower_config = getattr(CLIPConfig.from_pretrained(self.config.folder, local_files_only=True), section)
        tower_config.projection_dim = self.config.dim["image"]  # some files give the towers the default instead
        tower = read_tower(tower_class, self.config, config=tower_config, **options)
        _fold_quick_gelu(tower)
        return tower.to(*self._place)

    def _checked_eos(self, tokenizer_eos: int) -> int:
        tower = self.towers["text"].config
        expected = tower.vocab_size - 1 if tower.eos_token_id == _LEGACY_EOS else tower.eos_token_id
        if tokenizer_eos != expected:
            raise UsageError(
                f"{self.config.folder}: the text tower reads its vector at token {expected}, however the tokenizer "
                f"ends a text with {tokenizer_eos}; vectors would be those of another position"
            )
        return tokenizer_eos


class FoldedSiLU(torch.nn.Module):
    """SiLU whose every value depends on its input alone.

    torch's own on a CPU gives each thread a piece of the tensor, and the last few values of a piece to scalar code,
    which rounds otherwise: with 3 or 5 threads a vector would change in its last bits with its place in a batch.
    Division and this exponential round the same everywhere. It takes a hundredth of a tower's time more.
    """

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Values of any shape; bfloat16 and float16 hold too few digits for it to matter."""
        if inputs.device.type != "cpu" or inputs.dtype != torch.float32 or torch.is_grad_enabled():
            return torch.nn.functional.silu(inputs)
        result = inputs.neg().exp_().add_(1)
        return torch.div(inputs, result, out=result)


def _fold_quick_gelu(tower: Any) -> None:
    """Replace QuickGELU by SiLU, exactly: one kernel where QuickGELU takes three.

    With c = 1.702, QuickGELU(x) = x sigmoid(c x) = SiLU(c x) / c; the layer before takes the c, the layer behind the
    1/c. Done in float32, before any cast.
    """
    if tower.config.hidden_act != "quick_gelu":
        return
    for layer in tower.modules():
        if not hasattr(layer, "activation_fn"):
            continue
        layer.fc1.weight.data.mul_(QUICK_GELU)
        layer.fc1.bias.data.mul_(QUICK_GELU)
        layer.fc2.weight.data.div_(QUICK_GELU)
        layer.activation_fn = FoldedSiLU()
