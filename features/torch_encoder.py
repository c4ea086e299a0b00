"""What the encoders of all families share: towers on one device, fed from the host's memory and read back to it."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int64, Shaped, UInt8
from tokenizers import Tokenizer

from features.encoders import EncoderConfig
from features.text_layout import TextLayout
from features.texts import TextPolicy
from features.towers import Place, padded

CHARACTERS_PER_TOKEN = 6
"""More than a token has on average, so that the beginning of a long description is nearly always enough."""


class TorchEncoder:
    """Frozen towers on one device; satisfies `features.families.TowerEncoder`.

    A family fills `towers` (kind of vector -> torch module) and says how they read pictures (`image_vectors`) and texts
    (`text_vectors`, with a tokenizer); what it does not read, it leaves as it is here. Several threads may encode at a
    time.
    """

    def __init__(self, config: EncoderConfig, place: Place, text_layout: TextLayout) -> None:
        self.config, self.text_layout = config, text_layout
        self.towers: dict[str, Any] = {}
        self._place, self._lane = place, _Lane(place.device)
        self._tokenizer: Tokenizer

    def encode_images(self, pixels: UInt8[np.ndarray, "batch 3 height width"]) -> Float32[np.ndarray, "batch dim"]:
        """Vectors of crops made by `cut_thumbnail`."""
        with self._lane.entered(), torch.inference_mode():
            return _to_numpy(self.image_vectors(sent(torch.from_numpy(pixels), self._place.device)))

    def tokenize(self, texts: Sequence[str]) -> tuple[list[Int64[np.ndarray, " _"]], Bool[np.ndarray, " text"]]:
        """Token ids of each text, cut at `max_tokens` before the tokens that end it; and which texts were cut."""
        policy = self._policy(texts)
        self._tokenizer.enable_truncation(policy.max_tokens)
        whole = [policy.prepared(text) for text in texts]
        parts = [_beginning(text, CHARACTERS_PER_TOKEN * policy.max_tokens) for text in whole]
        encodings = self._tokenizer.encode_batch_fast(parts)
        # Words are tokenised one by one, so a beginning that is too long already says how the whole text begins.
        short = [row for row, text in enumerate(whole) if text != parts[row] and not encodings[row].overflowing]
        again = self._tokenizer.encode_batch_fast([whole[row] for row in short])
        for row, encoding in zip(short, again, strict=True):
            encodings[row] = encoding
        tokens = [np.array(encoding.ids, np.int64) for encoding in encodings]
        return tokens, np.array([bool(encoding.overflowing) for encoding in encodings], bool)

    def encode_tokens(
        self, tokens: Sequence[Int64[np.ndarray, " _"]], pad_to: int | None
    ) -> Float32[np.ndarray, "batch dim"]:
        """Vectors of tokenised texts, padded to `pad_to` or, where that is None, packed."""
        with self._lane.entered(), torch.inference_mode():
            return _to_numpy(self.text_vectors(tokens, pad_to))

    def image_vectors(self, pixels: Any) -> Any:
        """Vectors of grey levels that are on the device; gradients flow through where they are wanted."""
        raise ValueError(f"{self.config.tag} reads no pictures, however {len(pixels)} were given")

    def text_vectors(self, tokens: Sequence[Any], pad_to: int | None) -> Any:
        """What `encode_tokens` gives, but on the device, with gradients where they are wanted."""
        raise ValueError(f"{self.config.tag} reads no texts, however {len(tokens)} of {pad_to} tokens were given")

    def _rectangle(
        self,
        tokens: Sequence[Int64[np.ndarray, " _"]],
        pad_to: int,
        pad_id: int,
        side: Literal["left", "right"] = "right",
    ) -> tuple[Int64[torch.Tensor, "text pad_to"], Bool[torch.Tensor, "text pad_to"]]:
        """Texts padded, on the device; and where they are not padding."""
        ids, real = padded(tokens, pad_to, self.text_layout.max_tokens, pad_id, side)
        return sent(ids, self._place.device), sent(real, self._place.device)

    def _policy(self, texts: Sequence[str]) -> TextPolicy:
        if self.config.text is None:
            raise ValueError(f"{self.config.tag} reads no texts, however {len(texts)} were given")
        return self.config.text


def sent(tensor: Shaped[torch.Tensor, "..."], device: torch.device) -> Shaped[torch.Tensor, "..."]:
    """A tensor of the host on a device; to a GPU from pinned memory, so that the host need not wait for the copy."""
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def _beginning(text: str, characters: int) -> str:
    """The whole words in about the first so many characters; all of a text whose words do not end there.

    >>> _beginning("the best  of cakes", 11), _beginning("cakes", 2)
    ('the best', 'cakes')
    """
    end = text.rfind(" ", 0, characters) if len(text) > characters else -1
    return text[:end].rstrip() or text if end > 0 else text


class _Lane(threading.local):
    """Where one thread queues the work of a GPU, so that it waits for its own batch alone, and not for those of others.

    On one queue for all, pixels would be copied only when the batch before was done, with the GPU idle meanwhile.
    """

    def __init__(self, device: torch.device) -> None:  # once in each thread, as `threading.local` has it
        self._device = device
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch has not annotated it

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Queue there, behind what has been done to the weights."""
        if self._stream is None:
            yield
            return
        self._stream.wait_stream(torch.cuda.default_stream(self._device))
        with torch.cuda.stream(self._stream):
            yield


def _to_numpy(vectors: torch.Tensor) -> Float32[np.ndarray, "batch dim"]:
    """On the host in float32, whatever they were computed in; waits until they are."""
    return vectors.float().cpu().numpy()
