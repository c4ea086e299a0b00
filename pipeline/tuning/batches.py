"""The rows of a table as batches that an encoder reads: thumbnails ahead of time, texts tokenised once."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int64, UInt8

from features.decode import read_source
from features.embed import padded_length
from features.families import TowerEncoder
from features.feed import ThumbnailFeed
from features.preprocess import cut_thumbnail
from features.videos import VideoTable

BATCHES_AHEAD = 3
"""So many batches of thumbnails may wait, decoded, for the device."""


@dataclass(frozen=True, eq=False)
class Batch:
    """Some rows as one or both towers read them; where something is absent stands a black picture or an empty text."""

    rows: Int64[np.ndarray, " row"]
    pixels: UInt8[torch.Tensor, "row 3 height width"] | None
    tokens: Sequence[Int64[np.ndarray, " _"]] | None
    pad_to: int
    present: dict[str, Bool[np.ndarray, " row"]]


class RowFeed:
    """Gives the rows of one table in any order, as often as wanted.

    Parameters
    ----------
    encoder
        Tokenises, and says how pictures are cut.
    kinds
        Which of "image" and "text" are read.
    threads
        How many decode thumbnails at a time.
    """

    def __init__(self, encoder: TowerEncoder, config: Any, kinds: Sequence[str], videos: VideoTable, threads: int):
        self._encoder, self._config, self._kinds = encoder, config, kinds
        self._videos, self._threads = videos, threads
        self._tokens: list[Int64[np.ndarray, " _"]] = []
        self._has_text = np.zeros(len(videos), bool)
        if "text" in kinds:
            texts = videos.texts(0, len(videos))
            prompts = [config.text.prompt(text.title, text.description).text for text in texts]
            self._tokens = encoder.tokenize(prompts)[0]
            self._has_text = np.array([bool(prompt) for prompt in prompts])

    def batches(self, rows: Int64[np.ndarray, " row"], size: int) -> Iterator[Batch]:
        """The rows in this order, `size` at a time; the last batch may be smaller."""
        cut = partial(cut_thumbnail, preprocess=self._config.preprocess)
        feed = ThumbnailFeed(read_source, cut, self._threads, ahead=BATCHES_AHEAD * size)
        try:
            if "image" in self._kinds:
                feed.add(self._videos.thumbnail(row) for row in rows.tolist())
            for start in range(0, len(rows), size):
                yield self._batch(rows[start : start + size], feed)
        finally:
            feed.close()

    def _batch(self, rows: Int64[np.ndarray, " row"], feed: ThumbnailFeed) -> Batch:
        present, pixels, tokens, pad_to = {}, None, None, 0
        if "image" in self._kinds:
            crops = [feed.next().pixels for _ in rows]
            black = np.zeros((3, *self._config.preprocess.output), np.uint8)
            pixels = torch.from_numpy(np.stack([black if crop is None else crop for crop in crops]))
            present["image"] = np.array([crop is not None for crop in crops])
        if "text" in self._kinds:
            tokens = [self._tokens[row] for row in rows.tolist()]
            pad_to = padded_length(max(map(len, tokens)), self._encoder)
            present["text"] = self._has_text[rows]
        return Batch(rows, pixels, tokens, pad_to, present)
