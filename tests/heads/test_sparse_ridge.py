"""Words in the ridge against dense systems that hold every centred column, solved outright."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_matrix
from sklearn.linear_model import Ridge

from heads import linear, sparse_ridge
from heads.errors import UnfitDataError
from heads.folds import kfold
from heads.inputs import Block, Inputs, Words
from heads.linear import fit_linear
from heads.readers import fit_readers
from heads.sparse_ridge import JointSystem, SparseColumns

drawn = settings(max_examples=25, derandomize=True, deadline=None)

PENALTIES = np.array([0.3, 1.0, 30.0, 1000.0])


def inverse_of(dense: np.ndarray, penalties: np.ndarray):
    """(X'X + penalty)^-1, one system after the other."""
    gram = dense.T @ dense

    def apply(vectors: np.ndarray) -> np.ndarray:
        columns = [
            np.linalg.solve(gram + penalty * np.eye(len(gram)), vector)
            for penalty, vector in zip(penalties, vectors.T, strict=True)
        ]
        return np.stack(columns, axis=1)

    return apply


def draw_system(seed: int, n_rows: int = 40, n_dense: int = 5, n_words: int = 25) -> tuple[JointSystem, np.ndarray]:
    """A weighted system with absent texts, and its columns [X W] written out."""
    rng = np.random.default_rng(seed)
    root = np.sqrt(rng.uniform(0.2, 3.0, n_rows))
    here = rng.random(n_rows) > 0.25
    tf_idf = rng.random((n_rows, n_words)) * (rng.random((n_rows, n_words)) < 0.2) * here[:, None]
    centre = np.average(tf_idf[here], axis=0, weights=root[here] ** 2)
    dense = root[:, None] * rng.normal(size=(n_rows, n_dense))
    system = JointSystem(
        dense=dense,
        words=csr_matrix(root[:, None] * tf_idf),
        centre=centre,
        present=root * here,
        z=root * rng.normal(size=n_rows),
    )
    return system, np.hstack([dense, root[:, None] * (tf_idf - centre) * here[:, None]])


@given(st.integers(0, 10_000), st.sampled_from([0, 1, 5]))
@drawn
def test_all_penalties_together_are_solved_as_each_dense_system_alone(seed, n_dense):
    system, columns = draw_system(seed, n_dense=n_dense)
    dense, words = system.solve(PENALTIES, inverse_of(system.dense, PENALTIES))
    for place, penalty in enumerate(PENALTIES):
        gram = columns.T @ columns + penalty * np.eye(columns.shape[1])
        expected = np.linalg.solve(gram, columns.T @ system.z)
        found = np.concatenate([dense[:, place], words[:, place]])
        np.testing.assert_allclose(found, expected, atol=1e-3 * np.abs(expected).max())


def test_a_target_of_zeros_needs_no_coefficients():
    system, _ = draw_system(0)
    still = JointSystem(
        dense=system.dense, words=system.words, centre=system.centre, present=system.present, z=0 * system.z
    )
    dense, words = still.solve(PENALTIES, inverse_of(system.dense, PENALTIES))
    assert not dense.any()
    assert not words.any()


def test_a_penalty_that_is_solved_at_once_waits_for_the_others_unharmed():
    system, _ = draw_system(3)
    alone, together = np.array([1e9]), np.array([1e9, 0.1])
    expected, _ = system.solve(alone, inverse_of(system.dense, alone))
    found, _ = system.solve(together, inverse_of(system.dense, together))
    np.testing.assert_allclose(found[:, :1], expected, rtol=1e-4)


def test_a_system_that_does_not_converge_is_refused(monkeypatch):
    monkeypatch.setattr(sparse_ridge, "MAX_ITERATIONS", 1)
    system, _ = draw_system(0)
    with pytest.raises(UnfitDataError, match="did not converge"):
        system.solve(np.array([1e-6]), inverse_of(system.dense, np.array([1e-6])))


@given(st.integers(0, 10_000), st.sampled_from([1e-3, 1.0, 40.0]))
@drawn
def test_words_are_centred_and_measured_over_the_weighted_training_rows_that_are_present(seed, total):
    rng = np.random.default_rng(seed)
    here, train = rng.random(30) > 0.3, np.sort(rng.permutation(30)[:20])
    tf_idf = rng.random((30, 8)) * (rng.random((30, 8)) < 0.4) * here[:, None]
    weights = rng.uniform(0.1, 2.0, 20)
    weights *= total / weights.sum()
    columns = SparseColumns.build("words", csr_matrix(tf_idf), here, train, weights)
    present = here[train]
    means = np.average(tf_idf[train][present], axis=0, weights=weights[present])
    centred = np.where(here[:, None], tf_idf - means, 0)
    np.testing.assert_allclose(columns.means, means)
    np.testing.assert_allclose(columns.variance, (weights @ centred[train] ** 2).sum() / weights.sum())
    coefficients, rows = rng.normal(size=(8, 3)), rng.permutation(30)[:11]
    np.testing.assert_allclose(columns.times(rows, coefficients), centred[rows] @ coefficients, atol=1e-12)


N_VIDEOS, SEED = 150, 5


def draw_world(seed: int = 0) -> tuple[Inputs, np.ndarray]:
    """Views that some words, an image and the age explain; some images and texts are absent."""
    rng = np.random.default_rng(seed)
    image, years = rng.normal(size=(N_VIDEOS, 6)), rng.uniform(0, 9, N_VIDEOS)
    here = rng.random((2, N_VIDEOS)) > 0.2
    counts = rng.poisson(0.25, size=(N_VIDEOS, 40)).astype(np.float32) * here[1][:, None]
    log_views = 7 + image[:, 0] * here[0] + counts[:, :4].sum(axis=1) + 0.2 * years + 0.3 * rng.normal(size=N_VIDEOS)
    blocks = (
        Block.embedding("image", image, here[0]),
        Words(modality="words", counts=csr_matrix(counts), present=here[1]),
        Block.scalar("age", years),
    )
    return Inputs(blocks), log_views


def stacked_columns(inputs: Inputs, z: np.ndarray, train: np.ndarray, fold: int, weights: np.ndarray) -> np.ndarray:
    """Every modality as dense columns, centred where it is present and scaled to a total variance of 1."""
    fitted = fit_readers(inputs, z, train, np.random.default_rng((SEED, fold)))
    blocks = []
    for block in inputs.blocks:
        raw = block.values if block.modality == "image" else fitted.columns[block.modality]
        raw = np.asarray(raw if isinstance(raw, np.ndarray) else raw.toarray(), dtype=np.float64)
        here = block.present[train]
        centred = np.where(
            block.present[:, None], raw - np.average(raw[train][here], axis=0, weights=weights[train][here]), 0.0
        )
        blocks.append(centred / np.sqrt((weights[train] @ centred[train] ** 2).sum() / weights[train].sum()))
    return np.hstack(blocks)


@pytest.mark.parametrize("grid", [[0.5], [300.0], np.logspace(-1, 3, 9)], ids=["cheap", "dear", "grid"])
@pytest.mark.parametrize("weighted", [False, True])
def test_a_fold_with_words_equals_a_ridge_of_the_library_on_the_stacked_columns(grid, weighted, monkeypatch):
    monkeypatch.setattr(linear, "PENALTIES_WITH_WORDS", np.asarray(grid))
    inputs, log_views = draw_world()
    plan = kfold(N_VIDEOS, 3, 42)
    weights = np.random.default_rng(1).uniform(0.2, 3.0, N_VIDEOS) if weighted else np.ones(N_VIDEOS)
    training = fit_linear(inputs, log_views, plan, seed=SEED, weights=weights, search=False)
    for member, penalty in zip(training.members, training.facts["penalty"], strict=True):
        train, val = plan.train_rows(member.fold), plan.val_rows(member.fold)
        mean = np.average(log_views[train], weights=weights[train])
        sd = np.sqrt(np.average((log_views[train] - mean) ** 2, weights=weights[train]))
        z = (log_views - mean) / sd
        columns = stacked_columns(inputs, z, train, member.fold, weights)
        ridge = Ridge(alpha=penalty, solver="cholesky").fit(columns[train], z[train], sample_weight=weights[train])
        expected = mean + sd * ridge.predict(columns[val])
        np.testing.assert_allclose(member.final.predict(inputs.take(val)), expected, atol=1e-3)


def test_words_find_the_rule_that_the_other_modalities_do_not_hold():
    inputs, log_views = draw_world()
    plan = kfold(N_VIDEOS, 3, 42)
    without = Inputs((inputs.block("image"), inputs.block("age")))
    errors = [
        np.mean([member.final_msle for member in fit_linear(part, log_views, plan, search=False).members])
        for part in (inputs, without)
    ]
    assert errors[0] < 0.6 * errors[1]


def test_words_that_no_three_training_rows_share_contribute_nothing():
    inputs, log_views = draw_world()
    counts = csr_matrix(np.eye(N_VIDEOS, dtype=np.float32))
    rare = Words(modality="words", counts=counts, present=np.ones(N_VIDEOS, dtype=bool))
    both = Inputs((inputs.block("age"), rare))
    for member in fit_linear(both, log_views, kfold(N_VIDEOS, 3, 42), search=False).members:
        age, words = member.final.contributions(both)
        assert age.any()
        assert not words.any()
