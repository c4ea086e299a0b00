"""The rows of a table as batches that an encoder reads: thumbnails ahead of time, texts tokenised once."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int64, UInt8

from features.decode import read_source
from features.families import TowerEncoder
from features.feed import ThumbnailFeed
from features.kinds import IMAGE
from features.preprocess import cut_thumbnail
from features.videos import VideoTable

BATCHES_AHEAD = 3
"""So many batches of thumbnails may wait, decoded, for the device."""


@dataclass(frozen=True, eq=False)
class Texts:
    """Texts as a tower reads them: token ids, and the length that they are padded to."""

    tokens: Sequence[Int64[np.ndarray, " _"]]
    pad_to: int


@dataclass(frozen=True, eq=False)
class Batch:
    """Some rows as one or both towers read them; where something is absent stands a black picture or an empty text.

    `texts` and `present` are by kind of vector.
    """

    rows: Int64[np.ndarray, " row"]
    pixels: UInt8[torch.Tensor, "row 3 height width"] | None
    texts: Mapping[str, Texts]
    present: Mapping[str, Bool[np.ndarray, " row"]]


class RowFeed:
    """Gives the rows of one table in any order, as often as wanted.

    Parameters
    ----------
    encoder
        Tokenises, and says how pictures are cut.
    kinds
        Kinds of vector that are made of the rows, see `features.kinds`.
    threads
        How many decode thumbnails at a time.
    """

    def __init__(self, encoder: TowerEncoder, config: Any, kinds: Sequence[str], videos: VideoTable, threads: int):
        self._encoder, self._config, self._kinds = encoder, config, kinds
        self._videos, self._threads = videos, threads
        self._tokens: dict[str, list[Int64[np.ndarray, " _"]]] = {}
        self._has_text: dict[str, Bool[np.ndarray, " row"]] = {}
        for kind in kinds:
            if kind != IMAGE:
                texts = [text.of_kind(kind) for text in videos.texts(0, len(videos))]
                prompts = [config.text.prompt(text.title, text.description).text for text in texts]
                self._tokens[kind] = encoder.tokenize(prompts)[0]
                self._has_text[kind] = np.array([bool(prompt) for prompt in prompts])

    def batches(self, rows: Int64[np.ndarray, " row"], size: int) -> Iterator[Batch]:
        """The rows in this order, `size` at a time; the last batch may be smaller."""
        cut = partial(cut_thumbnail, preprocess=self._config.preprocess)
        feed = ThumbnailFeed(read_source, cut, self._threads, ahead=BATCHES_AHEAD * size)
        try:
            if IMAGE in self._kinds:
                feed.add(self._videos.thumbnail(row) for row in rows.tolist())
            for start in range(0, len(rows), size):
                yield self._batch(rows[start : start + size], feed)
        finally:
            feed.close()

    def _batch(self, rows: Int64[np.ndarray, " row"], feed: ThumbnailFeed) -> Batch:
        pixels, texts = None, {}
        present = {kind: has_text[rows] for kind, has_text in self._has_text.items()}
        if IMAGE in self._kinds:
            crops = [feed.next().pixels for _ in rows]
            black = np.zeros((3, *self._config.preprocess.output), np.uint8)
            pixels = torch.from_numpy(np.stack([black if crop is None else crop for crop in crops]))
            present[IMAGE] = np.array([crop is not None for crop in crops])
        for kind, all_tokens in self._tokens.items():
            tokens = [all_tokens[row] for row in rows.tolist()]
            texts[kind] = Texts(tokens, self._encoder.text_layout.width(max(map(len, tokens))))
        return Batch(rows, pixels, texts, present)
