"""What one fold learns of hashed words: which occur often enough, and how much each tells (TF-IDF)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64

MIN_ROWS = 3
"""Training rows that a word must occur in; what occurs less often is learned by heart."""


@dataclass(frozen=True, eq=False)
class WordWeights:
    """The kept columns of the counts, increasing, and their weights: idf = ln((1 + n) / (1 + n_word)) + 1."""

    columns: Int64[np.ndarray, " word"]
    idf: Float32[np.ndarray, " word"]

    @classmethod
    def fit(cls, counts: Any, train_rows: Int64[np.ndarray, " row"]) -> "WordWeights":
        """Look at the training rows of the counts (scipy.sparse, video by column) alone.

        >>> from scipy.sparse import csr_matrix
        >>> counts = csr_matrix(np.array([[1, 0], [1, 0], [2, 0], [0, 5]], dtype=np.float32))
        >>> WordWeights.fit(counts, np.arange(4)).columns
        array([0])
        """
        rows = counts[train_rows]
        n_rows = np.bincount(rows.indices, minlength=rows.shape[1])
        columns = np.flatnonzero(n_rows >= MIN_ROWS)
        idf = np.log((1 + len(train_rows)) / (1 + n_rows[columns])) + 1
        return cls(columns, idf.astype(np.float32))

    def read(self, counts: Any) -> Any:
        """Rows (video, word) of (1 + ln count) idf, scaled to length 1; a row without a kept word is empty."""
        kept = counts[:, self.columns].tocsr().astype(np.float32)
        kept.data = (1 + np.log(kept.data)) * self.idf[kept.indices]
        length = np.sqrt(np.asarray(kept.multiply(kept).sum(axis=1)).ravel())
        kept.data /= np.repeat(length, np.diff(kept.indptr))
        return kept

    def tensors(self) -> Mapping[str, np.ndarray]:
        """Both arrays by name."""
        return {"columns": self.columns, "idf": self.idf}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, np.ndarray]) -> "WordWeights":
        """The weights of `tensors()`; raises KeyError where one is missing."""
        return cls(tensors["columns"], tensors["idf"])


def components(tf_idf: Any, n_components: int, seed: int) -> Float32[np.ndarray, "word component"]:
    """Directions in which rows of TF-IDF differ most (latent semantic analysis), from training rows; seeded.

    There are at most as many as rows or words less one; where there is no word, one that reads nothing.
    """
    from sklearn.utils.extmath import randomized_svd  # noqa: PLC0415  takes a second, and only dense heads need it

    if 0 in tf_idf.shape:
        return np.zeros((tf_idf.shape[1], 1), np.float32)
    most = max(min(n_components, min(tf_idf.shape) - 1), 1)
    _, _, directions = randomized_svd(tf_idf, most, random_state=seed)
    return np.ascontiguousarray(directions.T.astype(np.float32))
