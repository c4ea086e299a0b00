from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from features.errors import UsageError
from features.text_layout import TextLayout
from features.towers import Place, normalised, padded, read_tokenizer

TOKENS = st.lists(st.lists(st.integers(5, 99), min_size=1, max_size=8).map(np.array), min_size=1, max_size=6)


@given(TOKENS, st.integers(8, 12), st.sampled_from(["left", "right"]))
def test_a_padded_text_still_holds_its_tokens_and_the_mask_finds_them(tokens: list, pad_to: int, side: str):
    ids, real = padded(tokens, pad_to, 12, 0, side)
    assert ids.shape == real.shape == (len(tokens), pad_to)
    for row, text in enumerate(tokens):
        assert ids[row][real[row]].tolist() == text.tolist()
        assert set(ids[row][~real[row]].tolist()) <= {0}
        assert bool(real[row, -1 if side == "left" else 0])


@pytest.mark.parametrize("pad_to", [2, 13])
def test_a_rectangle_that_cannot_hold_the_texts_or_the_tower_cannot_read_is_refused(pad_to: int):
    with pytest.raises(ValueError, match="pad_to must lie between 3 and 12"):
        padded([np.arange(3)], pad_to, 12, 0)


def test_a_damaged_tokenizer_is_refused_by_its_path(tmp_path: Path):
    (tmp_path / "tokenizer.json").write_text('{"model": 1}')
    with pytest.raises(UsageError, match=r"tokenizer\.json must be a tokenizer"):
        read_tokenizer(tmp_path)


def test_without_preprocessing_no_picture_is_read():
    with pytest.raises(ValueError, match="reads no pictures"):
        normalised(torch.zeros(1, 3, 2, 2), None, Place.of("cpu", "fp32"))


@pytest.mark.parametrize(("device", "step"), [("cpu", 1), ("cuda:0", 8)])
def test_texts_are_padded_to_few_lengths_on_gpus_alone(device: str, step: int):
    assert Place.of(device, "fp32").trimmed(77, packs=False) == TextLayout(77, step)
