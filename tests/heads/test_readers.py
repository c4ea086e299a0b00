"""What a fold learns in order to read a modality, against slow versions, and who may see what while it learns."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_matrix
from sklearn.feature_extraction.text import TfidfTransformer

from heads.inputs import Block, Category, Inputs, Words
from heads.readers import (
    AsIs,
    CategoryMeans,
    FoldReaders,
    Knots,
    Projection,
    TfIdf,
    fit_readers,
    reader_from,
)
from heads.words import WordWeights, components

drawn = settings(max_examples=30, derandomize=True, deadline=None)
seeds = st.integers(0, 10_000)

TRAIN = np.arange(0, 60, 2)


def draw_inputs(seed: int = 0, n_videos: int = 60) -> Inputs:
    """One block of each form, a fifth of its rows absent, every word in about a third of the rows."""
    rng = np.random.default_rng(seed)
    here = rng.random((4, n_videos)) >= 0.2
    amounts = np.where(here[1], rng.normal(size=n_videos), np.nan)
    counts = rng.poisson(0.4, size=(n_videos, 12)) * here[3][:, None]
    return Inputs(
        (
            Block.embedding("image", rng.normal(size=(n_videos, 5)), here[0]),
            Block.scalar("age", amounts, rng.normal(size=(n_videos, 2))),
            Category(modality="channel", codes=rng.integers(-3, 3, n_videos), present=here[2]),
            Words(modality="words", counts=csr_matrix(counts.astype(np.float32)), present=here[3]),
        )
    )


def category(codes: list[int], present: list[bool] | None = None) -> Category:
    here = np.ones(len(codes), dtype=bool) if present is None else np.array(present)
    return Category(modality="channel", codes=np.array(codes), present=here)


def fitted(inputs: Inputs, z: np.ndarray, n_components: int | None = None) -> FoldReaders:
    return fit_readers(inputs, z, TRAIN, np.random.default_rng(7), n_components=n_components)


def dense(columns) -> np.ndarray:
    return columns if isinstance(columns, np.ndarray) else columns.toarray()


def blup(codes: np.ndarray, z: np.ndarray) -> tuple[np.ndarray, float]:
    """Random effects from the covariance of all rows, and the variance between categories, by analysis of variance."""
    names = np.unique(codes)
    groups = [z[codes == name] for name in names]
    n, n_groups = len(z), len(groups)
    within = sum(((group - group.mean()) ** 2).sum() for group in groups) / (n - n_groups)
    mean_square = sum(len(group) * (group.mean() - z.mean()) ** 2 for group in groups) / (n_groups - 1)
    typical_size = (n - sum(len(group) ** 2 for group in groups) / n) / (n_groups - 1)
    between = (mean_square - within) / typical_size
    belongs = (codes[:, None] == names).astype(float)
    covariance = between * belongs @ belongs.T + within * np.eye(n)
    return between * belongs.T @ np.linalg.solve(covariance, z), between


@given(seeds, st.lists(st.integers(1, 9), min_size=2, max_size=6))
@drawn
def test_the_mean_of_a_category_is_the_best_linear_guess_of_its_effect(seed, counts):
    assume(max(counts) > 1)
    rng = np.random.default_rng(seed)
    codes = np.repeat(rng.choice(10**9, len(counts), replace=False), counts)
    z = np.repeat(rng.normal(size=len(counts)), counts) + 0.4 * rng.normal(size=len(codes))
    expected, between = blup(codes, z)
    assume(between > 1e-3)
    reader = CategoryMeans.fit(codes, z)
    np.testing.assert_array_equal(reader.codes, np.unique(codes))
    np.testing.assert_allclose(reader.means, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("codes", "z", "means"),
    [
        ([4, 2, 9], [3.0, -1.0, 5.0], [-0.5, 1.5, 2.5]),  # one row each: half of it
        ([2, 2, 2], [1.0, 2.0, 6.0], [2.25]),  # one category: three quarters of its mean of 3
        ([1, 1, 2, 2], [3.0, -1.0, 2.0, -1.0], [1 / 3, 1 / 6]),  # alike: as if four more rows had said 0
    ],
)
def test_means_are_shrunken_by_rule_where_rows_do_not_tell_noise_from_effects(codes, z, means):
    np.testing.assert_allclose(CategoryMeans.fit(np.array(codes), np.array(z)).means, means, rtol=1e-6)


def test_a_category_that_is_unknown_or_absent_reads_as_two_zeros():
    reader = CategoryMeans(np.array([3, 5]), np.array([0.5, -0.25], dtype=np.float32))
    block = category([5, 3, 4, 2, 99, 3], [True, True, True, True, True, False])
    assert reader.read(block).tolist() == [[-0.25, 1], [0.5, 1], [0, 0], [0, 0], [0, 0], [0, 0]]


def test_without_any_training_row_every_category_is_unknown():
    block = category([1, 2, 3], [True, False, True])
    nobody = np.arange(0)
    reader, columns = CategoryMeans.fit_train(block, np.zeros(3), nobody, np.random.default_rng(0))
    assert reader.codes.size == reader.means.size == 0
    assert columns.tolist() == reader.read(block).tolist() == [[0, 0]] * 3


@given(seeds, st.integers(1, 12))
@drawn
def test_no_training_row_is_read_with_its_own_target(seed, n_train):
    rng = np.random.default_rng(seed)
    block = category(rng.integers(0, 3, 14).tolist(), (rng.random(14) > 0.1).tolist())
    train, z = rng.permutation(14)[:n_train], rng.normal(size=14)

    def columns_of(targets: np.ndarray) -> np.ndarray:
        return CategoryMeans.fit_train(block, targets, train, np.random.default_rng(seed))[1]

    ours = columns_of(z)
    for row in train:
        theirs = columns_of(z + 10.0 * (np.arange(14) == row))
        np.testing.assert_array_equal(theirs[row], ours[row])


def test_a_training_row_is_read_with_the_targets_of_its_companions():
    block, z = category([1] * 20 + [2] * 20), np.repeat([1.0, -1.0], 20) + np.linspace(-0.1, 0.1, 40)
    _, columns = CategoryMeans.fit_train(block, z, np.arange(40), np.random.default_rng(0))
    np.testing.assert_allclose(columns, np.stack([np.repeat([1.0, -1.0], 20), np.ones(40)], axis=1), atol=0.1)
    assert len(np.unique(columns[:20, 0])) > 1


def test_a_category_of_one_training_row_is_unknown_to_that_row_and_known_to_all_others():
    block = category([7, 1, 1, 1, 1, 1, 7])
    reader, columns = CategoryMeans.fit_train(block, np.full(7, 3.0), np.arange(6), np.random.default_rng(0))
    assert columns[0].tolist() == [0, 0]
    assert columns[6].tolist() == reader.read(block)[6].tolist()
    assert columns[6, 0] > 0
    assert columns[6, 1] == 1


def test_knots_lie_at_the_quantiles_of_the_training_rows_that_have_the_number():
    amounts = np.array([np.nan, 1.0, 2.0, 4.0, 8.0, 900.0, np.nan])
    reader = Knots.fit(Block.scalar("age", amounts), np.array([0, 1, 2, 3, 4]))
    np.testing.assert_allclose(reader.knots, np.quantile([1, 2, 4, 8], np.linspace(0, 1, 16)), rtol=1e-6)


@given(seeds)
@drawn
def test_a_straight_line_through_the_knots_stays_straight_and_columns_beside_stay_as_they_are(seed):
    rng = np.random.default_rng(seed)
    amounts, beside = rng.normal(size=30), rng.normal(size=(30, 2))
    block = Block.scalar("age", amounts, beside)
    reader = Knots.fit(block, np.arange(20))
    read = reader.read(block)
    assert read.shape == (30, reader.width)
    inside = amounts.clip(reader.knots[0], reader.knots[-1])
    np.testing.assert_allclose(read[:, :-2] @ reader.knots, inside, atol=1e-5)
    np.testing.assert_allclose(read[:, -2:], beside, rtol=1e-6)


@given(seeds)
@drawn
def test_words_are_weighed_as_the_library_does_it_over_the_words_of_three_training_rows(seed):
    counts = np.random.default_rng(seed).poisson(0.15, size=(40, 15)).astype(np.float32)
    train = np.arange(25)
    kept = np.flatnonzero((counts[train] > 0).sum(axis=0) >= 3)
    assume(kept.size)
    transformer = TfidfTransformer(sublinear_tf=True).fit(counts[train][:, kept])
    reader = TfIdf(WordWeights.fit(csr_matrix(counts), train))
    block = Words(modality="words", counts=csr_matrix(counts), present=np.ones(40, dtype=bool))
    assert reader.width == len(kept)
    np.testing.assert_allclose(
        reader.read(block).toarray(), transformer.transform(counts[:, kept]).toarray(), atol=1e-6
    )


def test_components_of_words_are_those_of_a_full_decomposition():
    rng = np.random.default_rng(0)
    tf_idf = rng.normal(size=(50, 3)) @ rng.normal(size=(3, 20)) + 0.01 * rng.normal(size=(50, 20))
    directions = components(csr_matrix(tf_idf), 3, seed=5)
    exact = np.linalg.svd(tf_idf)[2][:3].T
    np.testing.assert_allclose(np.abs(directions.T @ exact), np.eye(3), atol=1e-4)


def test_there_are_fewer_components_than_rows_and_than_words():
    tf_idf = csr_matrix(np.random.default_rng(0).random((6, 9)))
    assert components(tf_idf, 50, seed=0).shape == (9, 5)
    assert components(tf_idf.T.tocsr(), 50, seed=0).shape == (6, 5)
    assert components(tf_idf, 2, seed=0).shape == (9, 2)


def test_latent_words_are_the_direction_of_a_text_among_the_components_of_the_training_rows():
    inputs = draw_inputs()
    block = inputs.block("words")
    latent = fitted(inputs, np.zeros(60), n_components=4).readers["words"]
    read, projected = latent.read(block), latent.words.read(block) @ latent.components
    assert read.shape == (60, 4)
    known = np.abs(projected).max(axis=1) > 0
    np.testing.assert_allclose(np.linalg.norm(read[known], axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(read * np.linalg.norm(projected, axis=1, keepdims=True), projected, atol=1e-6)
    assert not read[~known].any()
    assert known[block.present].mean() > 0.9


def test_a_projection_subtracts_the_mean_before_it_turns_the_columns():
    block = Block(modality="image", values=np.array([[3, 1], [5, 5]], np.float32), present=np.array([True, False]))
    projection = Projection(AsIs(2), np.array([1, 2], np.float32), np.array([[2, 0, 1], [0, 3, 1]], np.float32))
    assert projection.width == 3
    assert projection.read(block).tolist() == [[4, -3, 1], [0, 0, 0]]


def every_reader() -> dict[str, tuple]:
    inputs = draw_inputs()
    plain, projected = (fitted(inputs, np.linspace(-1, 1, 60), count).readers for count in (None, 3))
    turned = np.random.default_rng(0).normal(size=(5, 2)).astype(np.float32)
    found = {reader.kind: (reader, inputs.block(name)) for name, reader in [*plain.items(), *projected.items()]}
    image = inputs.block("image")
    words, text = plain["words"], inputs.block("words")
    turned_words = np.random.default_rng(1).normal(size=(words.width, 2)).astype(np.float32)
    return found | {
        "projected_as_is": (Projection(AsIs(5), image.values.mean(axis=0), turned), image),
        "projected_tf_idf": (Projection(words, np.zeros(words.width, np.float32), turned_words), text),
    }


KINDS = ("as_is", "knots", "category_means", "tf_idf", "latent_tf_idf", "projected_as_is", "projected_tf_idf")


def test_all_kinds_of_readers_are_written_down_here():
    assert set(every_reader()) == set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_a_reader_that_was_written_down_reads_the_same_to_the_bit(kind):
    reader, block = every_reader()[kind]
    again = reader_from(reader.kind, dict(reader.tensors()))
    assert type(again) is type(reader)
    assert again.width == reader.width == dense(reader.read(block)).shape[1]
    np.testing.assert_array_equal(dense(again.read(block)), dense(reader.read(block)))
    for (name, tensor), (name_again, tensor_again) in zip(reader.tensors(), again.tensors(), strict=True):
        assert (name_again, tensor_again.dtype) == (name, tensor.dtype)
        np.testing.assert_array_equal(tensor_again, tensor)


@pytest.mark.parametrize("kind", KINDS)
def test_a_reader_that_lost_an_array_is_missed_by_name(kind):
    tensors = dict(every_reader()[kind][0].tensors())
    for name in tensors:
        with pytest.raises(KeyError, match=name):
            reader_from(kind, {key: tensor for key, tensor in tensors.items() if key != name})


@pytest.mark.parametrize("kind", ["knots", "category_means"])
def test_only_embeddings_and_words_can_be_projected(kind):
    tensors = dict(every_reader()[kind][0].tensors())
    with pytest.raises(ValueError, match=f"no projection reads {kind}"):
        reader_from(f"projected_{kind}", tensors)


@pytest.mark.parametrize("kind", KINDS)
def test_a_block_of_another_form_is_refused_with_the_name_of_its_modality(kind):
    reader, _ = every_reader()[kind]
    strangers = [
        Block(modality="odd", values=np.zeros((2, 8), np.float32), present=np.ones(2, dtype=bool)),
        replace(category([1, 2]), modality="odd"),
        Words(modality="odd", counts=csr_matrix(np.eye(2, 99, dtype=np.float32)), present=np.ones(2, dtype=bool)),
    ]
    own_form = {"category_means": Category, "tf_idf": Words, "latent_tf_idf": Words, "projected_tf_idf": Words}.get(
        kind
    )
    for block in strangers:
        if not isinstance(block, own_form or ()):
            with pytest.raises((ValueError, TypeError), match="the odd head reads"):
                reader.read(block)


def with_other_rows(inputs: Inputs, other: Inputs, rows: np.ndarray) -> Inputs:
    """The inputs whose `rows` are those of `other`."""
    image, age, channel, words = inputs.blocks
    image_, age_, channel_, words_ = other.blocks
    here = np.isin(np.arange(inputs.n_videos), rows)
    counts = np.where(here[:, None], words_.counts.toarray(), words.counts.toarray())
    taken = [
        np.where(here, theirs.present, ours.present) for ours, theirs in zip(inputs.blocks, other.blocks, strict=True)
    ]
    return Inputs(
        (
            replace(image, values=np.where(here[:, None], image_.values, image.values), present=taken[0]),
            replace(age, values=np.where(here[:, None], age_.values, age.values), present=taken[1]),
            replace(channel, codes=np.where(here, channel_.codes, channel.codes), present=taken[2]),
            replace(words, counts=csr_matrix(counts), present=taken[3]),
        )
    )


@pytest.mark.parametrize("n_components", [None, 3])
def test_rows_that_do_not_train_change_nothing_that_a_fold_learns(n_components):
    inputs, z = draw_inputs(0), np.random.default_rng(1).normal(size=60)
    others = np.setdiff1d(np.arange(60), TRAIN)
    changed = with_other_rows(inputs, draw_inputs(99), others)
    z_changed = z + 100.0 * np.isin(np.arange(60), others)
    ours, theirs = fitted(inputs, z, n_components), fitted(changed, z_changed, n_components)
    for name in inputs.modalities:
        for (key, tensor), (_, tensor_) in zip(
            ours.readers[name].tensors(), theirs.readers[name].tensors(), strict=True
        ):
            np.testing.assert_array_equal(tensor_, tensor, err_msg=f"{name} {key}")
    for name, columns in ours.columns.items():
        np.testing.assert_array_equal(dense(theirs.columns[name])[TRAIN], dense(columns)[TRAIN], err_msg=name)


def test_what_a_fold_reads_of_new_rows_is_what_its_readers_read():
    inputs, z = draw_inputs(), np.random.default_rng(1).normal(size=60)
    others = np.setdiff1d(np.arange(60), TRAIN)
    for n_components in (None, 3):
        fold = fitted(inputs, z, n_components)
        assert set(fold.columns) == {"age", "channel", "words"}, "an embedding is shared, not copied for each fold"
        for name, columns in fold.columns.items():
            read = dense(fold.readers[name].read(inputs.block(name).take(others)))
            np.testing.assert_allclose(dense(columns)[others], read, atol=1e-6)
