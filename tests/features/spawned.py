"""An encoder that some rows kill; a module of its own, because spawned processes have to import it."""

import os
import signal
from dataclasses import dataclass

import numpy as np

from features.decode import decode_bytes
from features.preprocess import Thumbnail
from features.shard_worker import ShardSetup
from features.text_layout import TextLayout
from features.texts import joined


@dataclass(frozen=True)
class FragileEncoder:
    """Vectors that depend on the content alone; a picture of one grey or a text with one word kills it."""

    grey: int = -1
    word: str = ""
    shift: float = 0.0
    max_tokens = 20
    text_layout = TextLayout(20, step=8)

    def encode_images(self, pixels):
        if (np.abs(pixels.reshape(len(pixels), -1).mean(axis=1) - self.grey) < 1).any():
            os.kill(os.getpid(), signal.SIGSEGV)
        return self.shifted(pixels.reshape(len(pixels), 3, -1).mean(axis=2))

    def tokenize(self, texts):
        if self.word and any(self.word in text for text in texts):
            os.kill(os.getpid(), signal.SIGSEGV)
        full = [np.frombuffer(f"<{text}>".encode(), np.uint8).astype(np.int64) for text in texts]
        return [ids[: self.max_tokens] for ids in full], np.array([len(ids) > self.max_tokens for ids in full])

    def encode_tokens(self, tokens, pad_to):
        return self.shifted(np.array([[ids.sum(), len(ids), ids[-2], ids[1]] for ids in tokens]))

    def shifted(self, vectors):
        vectors = vectors.astype(np.float32)
        vectors[:, 0] += self.shift
        return vectors


@dataclass(frozen=True)
class LoadFragile:
    encoder: FragileEncoder

    def __call__(self, kind, device):
        return self.encoder


def cut_corner(data):
    """The first pixels as they are: what resizes needs torch, which takes every process two seconds."""
    rgb, status, digest = decode_bytes(data)
    pixels = None if rgb is None else np.ascontiguousarray(rgb[:4, :4].transpose(2, 0, 1))
    return Thumbnail(pixels, status, digest)


def shard_setup(**encoder) -> ShardSetup:
    return ShardSetup(
        load_encoder=LoadFragile(FragileEncoder(**encoder)), cut=cut_corner, read_prompt=joined, batch_size=4
    )
