import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heads import inputs as inputs_module
from heads.errors import UnfitDataError
from heads.inputs import Block, Inputs, hat_basis, quantile_knots


def test_embeddings_have_length_one_unless_absent_or_zero():
    raw = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float16) * 1000
    raw[1], raw[2] = 0, np.nan
    block = Block.embedding("image", raw, np.array([True, True, False, True]))
    np.testing.assert_allclose(np.linalg.norm(block.values, axis=1), [1, 0, 0, 1], rtol=1e-6)
    assert block.values.dtype == np.float32


def test_normalising_in_chunks_changes_nothing(monkeypatch):
    raw, present = np.random.default_rng(0).normal(size=(20, 3)), np.ones(20, dtype=bool)
    whole = Block.embedding("image", raw, present).values
    monkeypatch.setattr(inputs_module, "CHUNK_ROWS", 7)
    np.testing.assert_array_equal(Block.embedding("image", raw, present).values, whole)


def test_an_embedding_that_is_not_finite_is_named_with_its_row():
    raw = np.ones((3, 2))
    raw[2, 1] = np.inf
    with pytest.raises(UnfitDataError, match="image embedding of row 2"):
        Block.embedding("image", raw, np.ones(3, dtype=bool))


def test_an_age_that_is_unknown_is_absent_and_zero():
    block = Block.scalar("age", np.array([2.0, np.nan]))
    assert block.present.tolist() == [True, False]
    assert block.values.tolist() == [[2.0], [0.0]]


def test_an_infinite_age_is_refused():
    with pytest.raises(UnfitDataError, match="age must be finite"):
        Block.scalar("age", np.array([np.inf]))


def test_rows_are_taken_from_every_block_in_the_order_asked():
    inputs = Inputs(
        (Block.scalar("age", np.array([1.0, 2.0, 3.0])), Block.scalar("length", np.array([4.0, 5.0, np.nan])))
    )
    taken = inputs.take(np.array([2, 0]))
    assert taken.block("age").values[:, 0].tolist() == [3.0, 1.0]
    assert taken.present.tolist() == [[True, True], [False, True]]
    assert (taken.modalities, taken.n_videos) == (("age", "length"), 2)


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ((), "at least one modality"),
        ((Block.scalar("age", np.zeros(2)), Block.scalar("age", np.zeros(2))), "must occur once"),
        ((Block.scalar("age", np.zeros(2)), Block.scalar("length", np.zeros(3))), "age 2, length 3"),
    ],
)
def test_blocks_that_do_not_belong_together_are_refused(blocks, message):
    with pytest.raises(ValueError, match=message):
        Inputs(blocks)


def test_a_modality_that_is_not_there_is_named():
    with pytest.raises(ValueError, match="no text, only age"):
        Inputs((Block.scalar("age", np.zeros(2)),)).block("text")


@given(st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=30))
@settings(max_examples=40)
def test_knots_increase_and_span_the_training_values(amounts):
    values = np.array(amounts, dtype=np.float32)
    knots = quantile_knots(values)
    assert (np.diff(knots) > 0).all()
    assert (knots[0], knots[-1]) == (values.min(), values.max())


@given(st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=20))
@settings(max_examples=40)
def test_the_hat_basis_interpolates_linearly_and_is_constant_beyond_the_knots(amounts):
    knots = np.array([0.0, 1.0, 4.0, 6.0], dtype=np.float32)
    values = np.array(amounts, dtype=np.float32)
    basis = hat_basis(values, knots)
    np.testing.assert_allclose(basis.sum(axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(basis @ knots, np.clip(values, 0, 6), atol=1e-5)
    assert ((basis > 0).sum(axis=1) <= 2).all()
