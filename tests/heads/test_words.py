"""What a fold learns of hashed words: which it keeps, what they weigh, and the directions they span."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_matrix

from heads.words import MIN_ROWS, WordWeights, components


def draw_counts(seed: int = 0, n_videos: int = 40, n_words: int = 15) -> np.ndarray:
    """Common and rare words, and rows without any."""
    rng = np.random.default_rng(seed)
    counts = rng.poisson(np.linspace(0.02, 1.0, n_words), size=(n_videos, n_words))
    return (counts * (rng.random((n_videos, 1)) >= 0.1)).astype(np.float32)


def test_weights_by_hand():
    counts = csr_matrix(np.array([[1, 0, 3], [2, 0, 0], [1, 1, 0], [5, 4, 0], [0, 1, 0]], dtype=np.float32))
    weights = WordWeights.fit(counts, np.arange(5))
    assert weights.columns.tolist() == [0, 1]  # the last word occurs three times, but in one row
    first, second = np.log(6 / 5) + 1, np.log(6 / 4) + 1
    np.testing.assert_allclose(weights.idf, [first, second], rtol=1e-6)
    both = np.array([(1 + np.log(5)) * first, (1 + np.log(4)) * second])
    expected = [[1, 0], [1, 0], np.array([first, second]) / np.hypot(first, second), both / np.hypot(*both), [0, 1]]
    np.testing.assert_allclose(weights.read(counts).toarray(), expected, rtol=1e-6)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10_000))
def test_every_row_has_length_one_or_no_word_that_is_kept(seed):
    counts = draw_counts(seed)
    weights = WordWeights.fit(csr_matrix(counts), np.arange(30))
    read = weights.read(csr_matrix(counts))
    has_kept = (counts[:, weights.columns] > 0).any(axis=1)
    np.testing.assert_allclose(np.linalg.norm(read.toarray(), axis=1), has_kept.astype(float), atol=1e-6)
    assert read.dtype == np.float32


def test_rows_that_do_not_train_neither_bring_words_nor_change_what_they_weigh():
    train = np.arange(0, 40, 2)
    counts = draw_counts()
    crowded = counts.copy()
    crowded[1::2] = 1  # every word in every other row
    before, after = (WordWeights.fit(csr_matrix(table), train) for table in (counts, crowded))
    assert 0 < len(before.columns) < counts.shape[1]
    np.testing.assert_array_equal(before.columns, after.columns)
    np.testing.assert_array_equal(before.idf, after.idf)


def test_a_word_is_kept_from_the_third_row_on():
    counts = csr_matrix(np.triu(np.ones((4, 4), dtype=np.float32)))  # word k occurs in k + 1 rows
    assert WordWeights.fit(counts, np.arange(4)).columns.tolist() == [MIN_ROWS - 1, MIN_ROWS]


def test_weights_that_were_written_down_read_the_same_to_the_bit():
    counts = csr_matrix(draw_counts())
    weights = WordWeights.fit(counts, np.arange(30))
    again = WordWeights.from_tensors({name: array.copy() for name, array in weights.tensors().items()})
    assert (again.read(counts) != weights.read(counts)).nnz == 0


def test_the_counts_stay_as_they_are():
    counts = csr_matrix(draw_counts())
    before = counts.copy()
    WordWeights.fit(counts, np.arange(30)).read(counts)
    assert (counts != before).nnz == 0


def test_texts_in_which_no_word_recurs_are_read_as_rows_of_no_words():
    counts = csr_matrix(np.eye(4, dtype=np.float32))
    assert WordWeights.fit(counts, np.arange(4)).read(counts).shape == (4, 0)


def test_texts_in_which_no_word_recurs_have_no_directions():
    assert components(csr_matrix((4, 0), dtype=np.float32), 3, seed=0).shape[0] == 0


def test_components_are_equal_to_the_bit_for_one_seed():
    counts = csr_matrix(draw_counts())
    tf_idf = WordWeights.fit(counts, np.arange(40)).read(counts)
    first, again, other = (components(tf_idf, 4, seed=seed) for seed in (3, 3, 4))
    assert first.tobytes() == again.tobytes() != other.tobytes()
    assert first.dtype == np.float32
    assert first.flags.c_contiguous
