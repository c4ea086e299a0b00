"""Titles and descriptions as sparse counts of hashed words: what `words` means before anything is learned.

A word in a title is another signal than the same word in a description, so each has columns of its own. Both are read
as lower-case words and pairs of words, descriptions as whole lines besides. Columns are found by hashing (murmurhash,
as scikit-learn does it), so no vocabulary has to be kept and no two tables differ.
"""

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

from features.texts import cleaned
from features.videos import VideoTable

COLUMNS = 1 << 17
"""Hashed columns of the titles, and as many of the descriptions."""

CHUNK_ROWS = 2048
"""Rows whose texts are in memory at a time."""

# \w leaves out the marks that are part of a word (accents, Hebrew and Arabic points, the vowel signs of Indic scripts,
# Thai and Khmer): with \w alone nothing but its vowel signs is left of a Bengali title.
_MARKS = r"\u0300-\u036f\u0591-\u05c7\u0610-\u061a\u064b-\u065f\u0900-\u109f\u1780-\u17ff\u200c\u200d"
_WORD = re.compile(rf"[\w{_MARKS}]{{2,}}|[^\w\s]")  # emoji are words of one character; a single letter says nothing


def hashed_words(table: VideoTable) -> Any:
    """Counts (video, column) of a table as scipy.sparse.csr_matrix of float32; texts are read chunk by chunk."""
    from scipy.sparse import vstack  # noqa: PLC0415 - slow, and only this modality needs it

    chunks = []
    for start in range(0, len(table), CHUNK_ROWS):
        texts = table.texts(start, min(start + CHUNK_ROWS, len(table)))
        chunks.append(count_words([text.title for text in texts], [text.description for text in texts]))
    return vstack(chunks).tocsr()


def count_words(titles: Sequence[str], descriptions: Sequence[str]) -> Any:
    """Counts of the hashed words of some texts: titles in the first half of the columns, descriptions in the other.

    >>> counts = count_words(["Big cake", ""], ["", "a cake"])
    >>> counts.shape, counts.sum(axis=1).ravel().tolist()
    ((2, 262144), [[3.0, 2.0]])
    """
    from scipy.sparse import hstack  # noqa: PLC0415 - as above
    from sklearn.feature_extraction.text import HashingVectorizer  # noqa: PLC0415 - as above

    halves = []
    for texts, analyzer in ((titles, _words), (descriptions, _words_and_lines)):
        vectorizer = HashingVectorizer(n_features=COLUMNS, analyzer=analyzer, alternate_sign=False, norm=None)
        halves.append(vectorizer.transform(cleaned(text) for text in texts))
    return hstack(halves).tocsr().astype("float32")


def _words(text: str) -> Iterator[str]:
    """Words and pairs of neighbours.

    >>> list(_words("How I made it 😱"))
    ['how', 'made', 'it', '😱', 'how made', 'made it', 'it 😱']
    """
    words = _WORD.findall(text.lower())
    yield from words
    yield from (f"{first} {second}" for first, second in pairwise(words))


def _words_and_lines(text: str) -> Iterator[str]:
    """Words, pairs, and every line as one word: a line that stands under many videos tells who made them."""
    yield from _words(text)
    yield from (f"\n{line.strip().lower()}" for line in text.splitlines() if line.strip())
