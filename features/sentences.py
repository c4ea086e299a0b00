"""Sentence encoders (BERT and its relatives with a pooling on top) as frozen encoders: texts only."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from transformers import BertModel, ModernBertModel, MPNetModel, RobertaModel, XLMRobertaModel

from features.encoders import EncoderConfig
from features.packed import PackedTexts, attention_for, split
from features.torch_encoder import TorchEncoder
from features.towers import Place, quiet_transformers, read_tokenizer, read_tower

Hidden = Float[torch.Tensor, "text token dim"]
Mask = Bool[torch.Tensor, "text token"]

_NO_POOLER = {"add_pooling_layer": False}  # a layer for another task, behind the first token
_MODELS: dict[str, tuple[Any, dict[str, Any]]] = {
    "bert": (BertModel, _NO_POOLER),
    "mpnet": (MPNetModel, _NO_POOLER | {"attn_implementation": "eager"}),  # has no other
    "roberta": (RobertaModel, _NO_POOLER),
    "xlm-roberta": (XLMRobertaModel, _NO_POOLER),
    "modernbert": (ModernBertModel, {}),
}

PACKED = ("bert", "roberta", "xlm-roberta")  # mpnet's and modernbert's attention looks at more than queries and keys


def _mean(hidden: Hidden, real: Mask) -> Float[torch.Tensor, "text dim"]:
    weights = real.to(hidden.dtype).unsqueeze(2)
    return (hidden * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)


def _max(hidden: Hidden, real: Mask) -> Float[torch.Tensor, "text dim"]:
    return hidden.masked_fill(~real.unsqueeze(2), float("-inf")).amax(dim=1)


def _first(hidden: Hidden, _real: Mask) -> Float[torch.Tensor, "text dim"]:
    return hidden[:, 0]


def _last(hidden: Hidden, real: Mask) -> Float[torch.Tensor, "text dim"]:
    return hidden[torch.arange(len(hidden), device=hidden.device), real.sum(dim=1) - 1]


def _everywhere(hidden: Hidden) -> Mask:
    return torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device)


POOLINGS: dict[str, Callable[[Hidden, Mask], Float[torch.Tensor, "text dim"]]] = {
    "mean": _mean,
    "max": _max,
    "cls": _first,
    "last": _last,
}
"""How the vectors of the tokens of a text, padding at the right, become one."""


class SentenceEncoder(TorchEncoder):
    """Texts -> pooled vectors, not normalised: a `Normalize` in `modules.json` is left to whoever reads them.

    Parameters and errors are those of `features.clip.ClipEncoder`.
    """

    def __init__(self, config: EncoderConfig, _kinds: Sequence[str], device: str, precision: str) -> None:
        if config.text is None:
            raise ValueError(f"{config.tag} has no text policy")
        place = Place.of(device, precision)
        # Padding is masked: with less of it vectors differ by rounding.
        super().__init__(config, place, place.trimmed(config.max_tokens, packs=config.family in PACKED))
        self._pool = POOLINGS[config.text.pooling]
        self._tokenizer = read_tokenizer(config.folder)
        model, options = _MODELS[config.family]
        with quiet_transformers():
            tower = read_tower(model, config, **options | attention_for(self.text_layout))
        self.towers["text"] = tower.to(*place)
        self._pad_id = int(tower.config.pad_token_id or 0)
        self._counts_from_zero = config.family == "bert"

    def text_vectors(
        self, tokens: Sequence[Int64[np.ndarray, " _"]], pad_to: int | None
    ) -> Float[torch.Tensor, "batch dim"]:
        """Of texts padded to `pad_to`, where padding is masked, or packed."""
        if pad_to is None:
            row = PackedTexts.of(tokens, self._place.device)
            positions = row.positions if self._counts_from_zero else self._positions_beside_padding(tokens)
            packed = self.towers["text"](input_ids=row.ids, position_ids=positions, runs=row.runs).last_hidden_state
            return torch.cat([self._pool(part, _everywhere(part)) for part in split(packed[:, 0].float(), row.runs)])
        ids, real = self._rectangle(tokens, pad_to, self._pad_id)
        hidden = self.towers["text"](input_ids=ids, attention_mask=real.long()).last_hidden_state
        return self._pool(hidden.float(), real)  # bf16 cannot even count tokens beyond 256

    def _positions_beside_padding(self, tokens: Sequence[Int64[np.ndarray, " _"]]) -> Int64[torch.Tensor, "token 1"]:
        """As RoBERTa counts: on from the id of padding, which itself has that position, in the middle of a text too."""
        real = [ids != self._pad_id for ids in tokens]
        positions = np.concatenate([np.cumsum(each) * each for each in real]) + self._pad_id
        return torch.from_numpy(positions)[:, None].to(self._place.device)
