"""Titles and descriptions as counts of hashed words: what counts as a word, and that no way of reading changes it."""

import re
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features import words
from features.config import DatasetConfig
from features.videos import read_videos
from features.words import COLUMNS, count_words, hashed_words

TEXTS = st.lists(st.text(max_size=40), min_size=1, max_size=5)
drawn = settings(max_examples=60, deadline=None, derandomize=True)

LINES = [
    "id,title,description,year",
    'a,Big cake,"Cake & cream, big cake\nSubscribe"',
    "b,,",
    "c,Tom &amp; Jerry,a b c",
    'd,日本語 😱😱,"  \nSubscribe\n"',
    "e,BIG CAKE,",
]


def columns_of(title: str, description: str = "") -> dict[int, float]:
    counts = count_words([title], [description])
    return dict(zip(counts.indices.tolist(), counts.data.tolist(), strict=True))


def columns_of_parts(term: str) -> set[int]:
    """The columns of the two words that a pair is made of."""
    first, _, second = term.partition(" ")
    return {column for part in (first, second) if second for column in columns_of(part)}


def slow_terms(text: str) -> Counter:
    """Words, single signs and pairs of neighbours of a plain text."""
    terms, rest = [], text.lower()
    while rest:
        match = re.match(r"\w+", rest)
        word = match[0] if match else rest[0]
        rest = rest[len(word) :]
        if len(word) > 1 or not (word.isspace() or match):
            terms.append(word)
    return Counter(terms + [f"{terms[at]} {terms[at + 1]}" for at in range(len(terms) - 1)])


@pytest.fixture
def table(tmp_path):
    (tmp_path / "test.csv").write_text("\n".join([LINES[0], *(f"{line},2020" for line in LINES[1:])]), "utf-8")
    return read_videos(DatasetConfig(data=tmp_path), "test")


@pytest.mark.parametrize(
    ("title", "columns"),
    [
        ("cake", {2676: 1}),
        ("Big CAKE", {2676: 1, 32314: 1, 122423: 1}),
        ("Straße", {23301: 1}),
        ("日本", {1726: 1}),
        ("😱", {40048: 1}),
    ],
)
def test_a_word_has_the_same_column_on_every_machine_and_in_every_version(title, columns):
    assert columns_of(title) == columns


def test_a_word_of_a_description_has_another_column_than_in_a_title():
    assert columns_of("", "cake") == {133748: 1, 183027: 1}  # as a word: 2676 + COLUMNS; and as a whole line


@pytest.mark.parametrize("word", ["বাংলা", "हिन्दी", "தமிழ்", "ภาษาไทย", "မြန်မာ", "ភាសាខ្មែរ", "مُحَمَّد", "שָׁלוֹם"])
def test_a_word_with_vowel_signs_is_one_word(word):
    assert list(columns_of(word).values()) == [1]


@drawn
@given(texts=TEXTS)
def test_titles_fill_the_first_half_of_the_columns_and_descriptions_the_second(texts):
    blank = [""] * len(texts)
    titles, descriptions = count_words(texts, blank), count_words(blank, texts)
    both = count_words(texts, texts)
    assert both.shape == (len(texts), 2 * COLUMNS)
    assert titles[:, COLUMNS:].nnz == descriptions[:, :COLUMNS].nnz == 0
    assert (both != titles + descriptions).nnz == 0


@drawn
@given(text=st.text(st.sampled_from("abÄß日1_ !&.,😱é\t"), max_size=30))
def test_counts_are_those_of_words_signs_and_pairs_of_neighbours(text):
    counts = count_words([text, *slow_terms(text)], [""] * (1 + len(slow_terms(text))))
    assert counts[0].sum() == sum(slow_terms(text).values())
    for row, (term, count) in enumerate(slow_terms(text).items(), start=1):
        (column,) = set(counts[row].indices) - set(columns_of_parts(term))
        assert counts[0, column] >= count  # more where another term has the same column


def test_a_line_that_stands_under_many_videos_is_a_word_whatever_stands_around_it():
    alone, shared = columns_of("", "Follow me on X"), columns_of("", "other\n  FOLLOW me on x \nwords")
    (line,) = set(alone) - set(columns_of("", "and follow me on x"))
    assert shared[line] == 1


def test_lines_of_a_title_are_no_words():
    assert columns_of("one\ntwo") == columns_of("one two")


def test_escaped_and_broken_characters_count_as_those_of_the_encoders_do():
    assert columns_of("Tom &amp; Jerry\0") == columns_of("Tom & Jerry")
    assert columns_of("cake \ud800") == columns_of("cake \ufffd")
    assert columns_of("cafe\u0301") == columns_of("caf\u00e9")


@pytest.mark.parametrize("text", ["", " \t\n", "a b c", "\0", "_"])
def test_a_text_without_a_word_gives_an_empty_row(text):
    assert columns_of(text) == {}


@drawn
@given(texts=st.lists(st.text(st.characters(), max_size=30), min_size=1, max_size=4))
def test_no_text_breaks_the_counts(texts):
    counts = count_words(texts, texts[::-1])
    assert counts.dtype == np.float32
    assert (counts.data >= 1).all()
    assert counts.has_canonical_format


def test_rows_are_those_of_the_table(table):
    counts = hashed_words(table)
    assert counts.shape == (5, 2 * COLUMNS)
    for row, (title, description) in enumerate(table.texts(0, 5)):
        assert (counts[row] != count_words([title], [description])).nnz == 0
    assert np.diff(counts.indptr).astype(bool).tolist() == [True, False, True, True, True]
    assert (counts[0, :COLUMNS] != counts[4, :COLUMNS]).nnz == 0


@pytest.mark.parametrize("chunk_rows", [1, 2, 3, 5])
def test_texts_read_in_chunks_give_the_same_counts(table, monkeypatch, chunk_rows):
    whole = hashed_words(table)
    monkeypatch.setattr(words, "CHUNK_ROWS", chunk_rows)
    chunked = hashed_words(table)
    for ours, theirs in zip(
        (chunked.indptr, chunked.indices, chunked.data), (whole.indptr, whole.indices, whole.data), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)
