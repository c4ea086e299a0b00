"""Packed texts have the vectors that they have alone, and to the last bit the same ones whatever lies beside them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from features.encoders import TINY, resolve_encoder
from features.families import TowerEncoder, load_encoder
from features.packed import PackedTexts, Run, split
from features.sentences import PACKED

BATCH_SIZE = 4
WORDS = [
    "the best cake",
    "a",
    "of",
    "10 days in the forest",
    "how to",
    "cake and cake and cake",
    "<|endoftext|> and more",
]


@pytest.fixture(scope="module", params=["clip", "clip in int8", *PACKED])
def encoder(request, tmp_path_factory, sentence_folder: Callable[[str], Path]) -> TowerEncoder:
    kind, _, precision = request.param.partition(" in ")
    model = TINY if kind == "clip" else str(sentence_folder(kind))
    config = resolve_encoder(model, tmp_path_factory.mktemp("packed"))
    return load_encoder(config, ["text"], "cpu", precision or "fp32")


def test_a_row_is_one_text_behind_the_other():
    row = PackedTexts.of([np.array([5, 6]), np.array([7, 8]), np.array([9])], torch.device("cpu"))
    assert row.ids.tolist() == [[5], [6], [7], [8], [9]]
    assert row.positions.tolist() == [[0], [1], [0], [1], [0]]
    assert row.starts.tolist() == [0, 2, 4]
    assert row.runs == [Run(texts=2, tokens=2), Run(texts=1, tokens=1)]
    assert [part.tolist() for part in split(row.ids[:, 0], row.runs)] == [[[5, 6], [7, 8]], [[9]]]


def test_a_packed_text_has_the_vector_of_a_padded_one(encoder: TowerEncoder):
    tokens, _ = encoder.tokenize(WORDS)
    assert encoder.text_layout.packed
    padded = np.concatenate([encoder.encode_tokens([ids], len(ids)) for ids in tokens])
    tolerance = 1e-5 * np.abs(padded).max()
    assert np.abs(encoder.encode_tokens(tokens, None) - padded).max() < tolerance
    assert np.abs(padded[0] - padded[1]).max() > 100 * tolerance


def vectors(encoder: TowerEncoder, texts: list[str]) -> dict[str, bytes]:
    """What a shard with these texts would hold, before it is rounded."""
    found = {}
    tokens, _ = encoder.tokenize(texts)
    for batch in encoder.text_layout.batches([len(ids) for ids in tokens], BATCH_SIZE):
        made = encoder.encode_tokens(batch.filled(tokens), batch.pad_to)
        found |= {texts[text]: made[at].tobytes() for at, text in enumerate(batch.texts)}
    return found


@settings(deadline=None, derandomize=True, max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    companions=st.lists(
        st.lists(st.sampled_from(["the", "best", "cake", "of", "10", "days", "a"]), max_size=12).map(" ".join)
    )
)
def test_what_lies_beside_a_text_changes_not_one_bit(encoder: TowerEncoder, companions: list[str]):
    alone, together = vectors(encoder, WORDS), vectors(encoder, [*companions, *WORDS])
    assert {text: together[text] for text in WORDS} == alone


@pytest.mark.parametrize("family", ["roberta", "xlm-roberta"])
def test_padding_in_the_middle_of_a_text_is_not_counted(sentence_folder: Callable[[str], Path], family: str):
    folder = sentence_folder(family)
    encoder = load_encoder(resolve_encoder(str(folder), folder.parent), ["text"], "cpu", "fp32")
    tokens = [np.array([0, 4, 5, 1, 8, 6, 2]), np.array([0, 9, 2])]  # 1 is <pad>
    packed, padded = (encoder.encode_tokens(tokens, pad_to) for pad_to in (None, 7))
    assert np.abs(packed - padded).max() < 1e-5


def test_gradients_flow_through_a_packed_row(encoder: TowerEncoder):
    if any(buffer.dtype == torch.int8 for buffer in encoder.towers["text"].buffers()):
        pytest.skip("8-bit layers have no gradients")
    tokens, _ = encoder.tokenize(WORDS)
    tower = encoder.towers["text"].requires_grad_(requires_grad=True)
    encoder.text_vectors(tokens, None).square().sum().backward()
    assert all(weight.grad is not None for name, weight in tower.named_parameters() if "pooler" not in name)
    tower.requires_grad_(requires_grad=False)
