"""The heads by scikit-learn's rules, with modalities as columns of one table."""

import jaxtyping
import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.model_selection import KFold, cross_val_predict, cross_val_score
from sklearn.utils.estimator_checks import check_estimator

from heads.estimator import SimplexRegressor
from heads.folds import kfold
from heads.inputs import Block, Inputs
from heads.linear import fit_linear
from heads.targets import Target

BLOCKS = {"image": slice(0, 4), "text": [4, 5, 6], "age": [7]}
NAMES = [*(f"image_{k}" for k in range(4)), *(f"text_{k}" for k in range(3)), "age"]
NAMED = {"image": NAMES[:4], "text": NAMES[4:7], "age": ["age"]}


@pytest.fixture(autouse=True)
def _one_thread():
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def table() -> tuple[np.ndarray, np.ndarray]:
    """Eight columns and a target that image and age explain; some texts and ages are missing."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(150, 8))
    y = 10 + 2 * x[:, 0] + np.abs(x[:, 7]) + 0.2 * rng.normal(size=150)
    x[rng.random(150) < 0.2, 5] = np.nan
    x[rng.random(150) < 0.2, 7] = np.nan
    return x, y


@pytest.mark.parametrize("options", [{}, {"head": "hybrid", "options": {"epochs": 1, "hidden_dim": 4}}])
def test_scikit_learn_finds_nothing_else_to_complain_about(options, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # it tries parameters of every type
    rounding = "embeddings are float32, and the last bit of a product depends on where in the batch a row stands"
    check_estimator(
        SimplexRegressor(**options),
        expected_failed_checks={"check_methods_sample_order_invariance": rounding},
        on_skip=None,
    )


def test_the_order_of_the_rows_matters_by_no_more_than_rounding(table):
    x, y = table
    model = SimplexRegressor(BLOCKS).fit(x, y)
    order = np.random.default_rng(0).permutation(len(x))
    np.testing.assert_allclose(model.predict(x[order]), model.predict(x)[order], rtol=1e-5)


def test_a_copy_has_the_same_parameters_and_has_learned_nothing(table):
    model = SimplexRegressor(BLOCKS, head="trees", folds=4, seed=1, normalise=True, options={"search": False})
    copy = clone(model)
    assert copy.get_params() == model.get_params()
    assert set(model.get_params()) == {"blocks", "head", "folds", "seed", "target", "normalise", "options"}
    model = SimplexRegressor(BLOCKS).fit(*table)
    assert not hasattr(clone(model), "members_")


def test_predictions_are_the_mean_of_members_fitted_by_hand(table):
    x, y = table
    here = ~np.isnan(x[:, 4:7]).any(axis=1)
    inputs = Inputs(
        (
            Block(modality="image", values=x[:, :4].astype(np.float32), present=np.ones(150, dtype=bool)),
            Block(modality="text", values=np.where(here[:, None], x[:, 4:7], 0).astype(np.float32), present=here),
            Block.scalar("age", x[:, 7]),
        )
    )
    training = fit_linear(inputs, y, kfold(150, 4, 1), seed=1, target=Target("none"))
    expected = np.mean([member.final.predict(inputs) for member in training.members], axis=0)
    model = SimplexRegressor(BLOCKS, folds=4, seed=1).fit(x, y)
    np.testing.assert_allclose(model.predict(x), expected, rtol=1e-6)
    assert len(model.members_) == 4


def test_a_table_with_names_gives_what_its_array_gives(table):
    x, y = table
    frame = pd.DataFrame(x, columns=NAMES)
    by_place, by_name = SimplexRegressor(BLOCKS).fit(x, y), SimplexRegressor(NAMED).fit(frame, pd.Series(y))
    # The columns lie in another order in memory, so that sums are rounded otherwise.
    np.testing.assert_allclose(by_name.predict(frame), by_place.predict(x), rtol=1e-6)
    assert by_name.weights_ == pytest.approx(by_place.weights_, rel=1e-5)


def test_names_pick_their_columns_wherever_they_stand(table):
    x, y = table
    frame = pd.DataFrame(x, columns=NAMES).assign(unused=1.0)
    turned = frame[["unused", *NAMES[::-1]]]
    ours, theirs = (SimplexRegressor(NAMED).fit(given, y).predict(given) for given in (frame, turned))
    np.testing.assert_allclose(theirs, ours, rtol=1e-6)


@pytest.mark.parametrize("named", [False, True])
def test_cross_validation_scores_each_row_by_a_model_that_has_not_seen_it(table, named):
    x, y = table
    given, blocks = (pd.DataFrame(x, columns=NAMES), NAMED) if named else (x, BLOCKS)
    splits = KFold(3, shuffle=True, random_state=0)
    scores = cross_val_score(SimplexRegressor(blocks), given, y, cv=splits, error_score="raise")
    assert scores.shape == (3,)
    assert scores.min() > 0.8
    predicted = cross_val_predict(SimplexRegressor(blocks), given, y, cv=splits)
    train, val = next(splits.split(x))
    by_hand = SimplexRegressor(BLOCKS).fit(x[train], y[train]).predict(x[val])
    np.testing.assert_allclose(predicted[val], by_hand, rtol=1e-6)


def test_one_missing_column_makes_its_whole_modality_absent(table):
    x, y = table
    model = SimplexRegressor(BLOCKS).fit(x, y)
    some, all_of_it = x[:20].copy(), x[:20].copy()
    some[:, 5], all_of_it[:, 4:7] = np.nan, np.nan
    np.testing.assert_array_equal(model.predict(some), model.predict(all_of_it))


def test_a_row_of_which_nothing_is_known_gets_the_mean_of_the_baselines(table):
    model = SimplexRegressor(BLOCKS).fit(*table)
    nothing = model.predict(np.full((2, 8), np.nan))
    np.testing.assert_allclose(nothing, np.mean([member.baseline for member in model.members_]))


def test_a_logarithmic_target_is_learned_as_log1p_and_given_back_as_counts(table):
    x, y = table
    counts = np.expm1(y)
    logarithmic = SimplexRegressor(BLOCKS, target="log1p").fit(x, counts).predict(x)
    plain = SimplexRegressor(BLOCKS).fit(x, y).predict(x)
    np.testing.assert_allclose(logarithmic, np.expm1(plain), rtol=1e-4)
    with pytest.raises(ValueError, match=">= 0"):
        SimplexRegressor(BLOCKS, target="log1p").fit(x, y - 100)


def test_normalised_rows_have_forgotten_their_length(table):
    x, y = table
    stretched = x.copy()
    stretched[:, :7] *= np.random.default_rng(1).uniform(0.5, 2.0, size=(150, 1))
    normal = SimplexRegressor(BLOCKS, normalise=True).fit(x, y)
    np.testing.assert_allclose(normal.predict(stretched), normal.predict(x), rtol=1e-5)
    plain = SimplexRegressor(BLOCKS).fit(x, y)
    assert not np.allclose(plain.predict(stretched), plain.predict(x), rtol=1e-2)


def test_weights_are_the_mean_over_the_members_and_favour_what_matters(table):
    model = SimplexRegressor(BLOCKS).fit(*table)
    expected = np.mean([member.weights for member in model.members_], axis=0)
    np.testing.assert_allclose(list(model.weights_.values()), expected)
    assert list(model.weights_) == ["image", "text", "age"]
    assert sum(model.weights_.values()) == pytest.approx(1)
    assert model.weights_["image"] > model.weights_["age"] > model.weights_["text"]


def test_options_reach_the_heads(table):
    model = SimplexRegressor(BLOCKS, head="mlp", options={"hidden_dim": 6, "epochs": 1}).fit(*table)
    for member in model.members_:
        (branch,) = member.heads["image"].branches
        assert branch.weights[0].shape == (4, 6)
    with pytest.raises(ValueError, match="--epochs must be at least 1"):
        SimplexRegressor(BLOCKS, head="mlp", options={"epochs": 0}).fit(*table)


def test_names_that_the_table_does_not_have_are_told(table):
    x, y = table
    frame = pd.DataFrame(x, columns=NAMES)
    with pytest.raises(ValueError, match=r"\['sound'\] are not among"):
        SimplexRegressor({"image": [*NAMES[:4], "sound"]}).fit(frame, y)
    with pytest.raises(ValueError, match=r"\['age'\] are not among \[\]"):
        SimplexRegressor({"age": ["age"]}).fit(x, y)


def test_no_column_at_all_and_too_few_rows_are_refused(table):
    x, y = table
    with pytest.raises(ValueError, match="at least one modality"):
        SimplexRegressor({}).fit(x, y)
    with pytest.raises(ValueError, match="minimum of 5 is required"):
        SimplexRegressor(BLOCKS, folds=5).fit(x[:4], y[:4])
