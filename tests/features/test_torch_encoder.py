"""What the encoders of all families share."""

from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.normalizers import Replace

from features.encoders import TINY, resolve_encoder
from features.families import TowerEncoder, load_encoder
from features.torch_encoder import sent

WORDS = st.sampled_from(["the", "cake", "Best", "of", "?!", "ünïcode", "日本語", "x" * 40, "  ", "\n", "a\tb"])


def spaces_as_letters() -> Tokenizer:
    """Byte pairs without words: what is merged may begin with spaces, and never goes on behind one."""
    pieces = ["<unk>", "▁", *"acekot?!hefbsx\n\t", "▁▁", "▁c", "▁ca", "ke", "th", "th" + "e", "▁▁c"]
    merges = [("▁", "▁"), ("▁", "c"), ("▁c", "a"), ("k", "e"), ("t", "h"), ("th", "e"), ("▁▁", "c")]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(BPE(vocabulary, merges, unk_token="<unk>"))
    tokenizer.normalizer = Replace(" ", "▁")
    return tokenizer


@pytest.fixture(scope="module")
def encoder_of(tmp_path_factory, siglip_folder, sentence_folder):
    models = tmp_path_factory.mktemp("models")

    @cache
    def load(family: str) -> TowerEncoder:
        if family == "gemma":  # SigLIP 2's: spaces are letters, and pieces may begin with several of them
            encoder = load_encoder(resolve_encoder(str(siglip_folder), models), ["text"], "cpu", "fp32")
            encoder._tokenizer = spaces_as_letters()
            return encoder
        folders = {"clip": lambda: TINY, "siglip": lambda: siglip_folder}
        folder = folders.get(family, lambda: sentence_folder(family))()
        return load_encoder(resolve_encoder(str(folder), models), ["text"], "cpu", "fp32")

    return load


@pytest.mark.parametrize("family", ["clip", "siglip", "bert", "roberta", "xlm-roberta", "modernbert", "gemma"])
@settings(deadline=None, derandomize=True, max_examples=60)
@given(texts=st.lists(st.lists(WORDS, max_size=300).map(" ".join), min_size=1, max_size=4))
def test_a_long_text_has_the_tokens_of_the_whole_though_its_beginning_is_read_first(encoder_of, family, texts):
    encoder = encoder_of(family)
    tokens, cut = encoder.tokenize(texts)
    encoder._tokenizer.enable_truncation(encoder.text_layout.max_tokens)
    whole = [encoder._tokenizer.encode(encoder.config.text.prepared(text)) for text in texts]
    assert [ids.tolist() for ids in tokens] == [encoding.ids for encoding in whole]
    assert cut.tolist() == [bool(encoding.overflowing) for encoding in whole]


def test_what_stays_on_the_host_is_not_copied():
    tensor = torch.arange(3)
    assert sent(tensor, torch.device("cpu")) is tensor


def test_what_a_family_does_not_read_is_refused(encoder_of, dino_folder):
    texts_only = encoder_of("bert")
    with pytest.raises(ValueError, match="reads no pictures, however 2 were given"):
        texts_only.encode_images(np.zeros((2, 3, 4, 4), np.uint8))
    folder = dino_folder("dinov2")
    pictures_only = load_encoder(resolve_encoder(str(folder), folder.parent), ["image"], "cpu", "fp32")
    with pytest.raises(ValueError, match="reads no texts, however 1 were given"):
        pictures_only.tokenize(["a"])
