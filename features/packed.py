"""Texts of different lengths as one row of tokens, in which each attends to itself alone.

Towers read a packed row as that many texts of one token, whose positions are given. All layers but attention work token
by token anyway; ours takes the tokens of a text together again. On a CPU padding costs a third of the time for titles.
"""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64, Real
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from features.text_layout import TextLayout

_ATTENTION = "vp_packed"


class Run(NamedTuple):
    """Neighbours of equal length in a packed row."""

    texts: int
    tokens: int


class PackedTexts(NamedTuple):
    """Texts one behind the other: `starts` is where each begins, `runs` cover the whole row."""

    ids: Int64[torch.Tensor, "token 1"]
    positions: Int64[torch.Tensor, "token 1"]
    starts: Int64[np.ndarray, " text"]
    runs: Sequence[Run]

    @classmethod
    def of(cls, tokens: Sequence[Int64[np.ndarray, " _"]], device: torch.device) -> "PackedTexts":
        """Pack token ids; texts of equal length should be neighbours."""
        lengths = np.array([len(text) for text in tokens])
        starts = np.cumsum(lengths) - lengths
        positions = np.arange(lengths.sum()) - np.repeat(starts, lengths)
        runs = [Run(len(list(equal)), int(length)) for length, equal in groupby(lengths)]
        ids, at = (torch.from_numpy(part)[:, None].to(device) for part in (np.concatenate(tokens), positions))
        return cls(ids, at, starts, runs)


def attention_for(layout: TextLayout) -> dict[str, str]:
    """What `read_tower` is to be told for texts in this layout: where they are packed, the attention below."""
    if not layout.packed:
        return {}
    AttentionInterface.register(_ATTENTION, _attention)
    AttentionMaskInterface.register(_ATTENTION, sdpa_mask)  # for rectangles of texts, which the same tower reads too
    return {"attn_implementation": _ATTENTION}


def split(row: Real[torch.Tensor, "token ..."], runs: Sequence[Run]) -> Iterator[Real[torch.Tensor, "text token ..."]]:
    """The runs of a packed row as rectangles, without copies."""
    sizes = [run.texts * run.tokens for run in runs]
    for part, run in zip(torch.split(row, sizes), runs, strict=True):
        yield part.view(*run, *part.shape[1:])


def _attention(
    module: torch.nn.Module,
    query: Float[torch.Tensor, "text head token dim"],
    key: Float[torch.Tensor, "text head token dim"],
    value: Float[torch.Tensor, "text head token dim"],
    attention_mask: torch.Tensor | None,
    *,
    runs: Sequence[Run] | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    **options: Any,
) -> tuple[Float[torch.Tensor, "text token head dim"], None]:
    """Attention as transformers calls it; a packed row comes as texts of one token, with its runs."""
    if runs is None:
        options |= {"scaling": scaling, "dropout": dropout, "is_causal": is_causal}
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    causal = bool(module.is_causal if is_causal is None else is_causal)
    attended = []
    for rectangles in zip(*(split(part[:, :, 0], runs) for part in (query, key, value)), strict=True):
        q, k, v = (rectangle.transpose(1, 2) for rectangle in rectangles)
        own = torch.nn.functional.scaled_dot_product_attention(q, k, v, None, dropout, causal, scale=scaling)
        attended.append(own.transpose(1, 2).flatten(0, 1))
    return torch.cat(attended).unsqueeze(1), None
