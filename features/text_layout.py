"""How texts of different lengths make up batches, in numbers of tokens."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

PACKED_TOKENS_PER_ROW = 16
"""Tokens in a packed batch for each row of the batch size: about a title."""


@dataclass(frozen=True)
class TextBatch:
    """Texts, by their places among those that were given, that are encoded together.

    pad_to
        Tokens of each text in a rectangle; None where the texts are packed.
    spare
        How many texts are missing from a rectangle, or tokens from a packed row.
    """

    texts: Sequence[int]
    pad_to: int | None
    spare: int

    def filled(self, tokens: Sequence[Int64[np.ndarray, " _"]]) -> list[Int64[np.ndarray, " _"]]:
        """The tokens of its texts, and behind them what it takes for every batch to have one size."""
        own = [tokens[text] for text in self.texts]
        filler = own[-1][:1] if self.pad_to is None else own[0]  # the last is the longest: it has a token
        return own + [filler] * self.spare


@dataclass(frozen=True)
class TextLayout:
    """How an encoder reads texts of different lengths at once.

    max_tokens
        The longest text in tokens, with its start and end.
    step
        A batch is a rectangle, as wide as its longest text rounded up to a multiple of so many tokens.
    packed
        A batch is one row of tokens instead, text behind text: nothing is padded, and each text attends to itself
        alone. As every batch has one number of tokens, and a text longer than that is a batch of its own, no vector
        depends on what else is in a batch.
    """

    max_tokens: int
    step: int
    packed: bool = False

    @classmethod
    def whole(cls, max_tokens: int) -> "TextLayout":
        """Every text is padded to the longest possible one, for encoders that read padding too."""
        return cls(max_tokens, max_tokens)

    def width(self, longest: int) -> int:
        """Tokens of each text in a rectangle whose longest text has so many."""
        return min(self.max_tokens, -(-longest // self.step) * self.step)

    def pad_to(self, longest: int) -> int | None:
        """The width, or None where texts are packed."""
        return None if self.packed else self.width(longest)

    def batches(self, lengths: Sequence[int], batch_size: int) -> Iterator[TextBatch]:
        """Batches of similar length, the short texts first.

        >>> for batch in TextLayout(77, step=8).batches([20, 5, 9], batch_size=2):
        ...     print(batch)
        TextBatch(texts=[1, 2], pad_to=16, spare=0)
        TextBatch(texts=[0], pad_to=24, spare=1)
        >>> list(TextLayout(77, step=1, packed=True).batches([50, 5, 9], batch_size=2))
        [TextBatch(texts=[1, 2], pad_to=None, spare=18), TextBatch(texts=[0], pad_to=None, spare=0)]
        """
        order = sorted(range(len(lengths)), key=lengths.__getitem__)
        return self._packed(order, lengths, batch_size) if self.packed else self._rectangles(order, lengths, batch_size)

    def _rectangles(self, order: Sequence[int], lengths: Sequence[int], batch_size: int) -> Iterator[TextBatch]:
        for start in range(0, len(order), batch_size):
            texts = order[start : start + batch_size]
            yield TextBatch(texts, self.width(lengths[texts[-1]]), spare=batch_size - len(texts))

    def _packed(self, order: Sequence[int], lengths: Sequence[int], batch_size: int) -> Iterator[TextBatch]:
        room = batch_size * PACKED_TOKENS_PER_ROW
        if self.max_tokens <= room:  # whole multiples, because descriptions often reach the limit
            room = round(room / self.max_tokens) * self.max_tokens
        texts: list[int] = []
        left = room
        for text in order:
            if lengths[text] > left:
                if texts:
                    yield TextBatch(texts, None, left)
                texts, left = [], max(room, lengths[text])
            texts.append(text)
            left -= lengths[text]
        if texts:
            yield TextBatch(texts, None, left)
