from dataclasses import replace

import numpy as np
import pytest
from sklearn.ensemble import HistGradientBoostingRegressor
from threadpoolctl import threadpool_info, threadpool_limits

from heads.errors import UnfitDataError
from heads.forest import LEAF
from heads.trees import FittedTrees, TreeSettings, coalitions, fit_forest, forest_of, known_means

FEW = TreeSettings(max_iter=12, max_leaf_nodes=8)


@pytest.fixture(autouse=True)
def _one_thread():
    with threadpool_limits(1, user_api="openmp"):  # scikit-learn's own threads crawl on a busy machine
        yield


def draw_rows(n_videos: int = 300, n_columns: int = 5, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Columns with ties and gaps, and a target that needs two of them at once and a gap in a third."""
    rng = np.random.default_rng(seed)
    columns = rng.normal(size=(n_videos, n_columns))
    columns[:, 1] = columns[:, 1].round()
    columns[rng.random(columns.shape) < 0.15] = np.nan
    first, second = np.nan_to_num(columns[:, 0]), np.nan_to_num(columns[:, 1])
    return columns, first * second + np.isnan(columns[:, 2]) + 0.1 * rng.normal(size=n_videos)


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
def test_a_forest_predicts_what_scikit_learn_does_to_the_last_bit(dtype):
    columns, z = draw_rows()
    columns = columns.astype(dtype)
    estimator = HistGradientBoostingRegressor(max_iter=40, early_stopping=False).fit(columns, z)
    forest = forest_of(estimator)
    assert np.isinf(forest.threshold).any(), "a split into missing and known should be among them"
    splits = forest.column != LEAF
    at_thresholds = np.tile(columns[0].astype(np.float64), (splits.sum(), 1))
    at_thresholds[np.arange(splits.sum()), forest.column[splits]] = forest.threshold[splits]
    at_thresholds[~np.isfinite(at_thresholds)] = np.nan
    for rows in (columns, columns[:1], at_thresholds, np.nextafter(at_thresholds, np.inf)):
        np.testing.assert_array_equal(forest.predict(rows), estimator.predict(rows))


def test_every_setting_reaches_scikit_learn():
    columns, z = draw_rows()
    chosen = {
        "learning_rate": 0.2,
        "max_iter": 9,
        "max_leaf_nodes": 5,
        "min_samples_leaf": 30,
        "l2_regularization": 3.0,
        "max_features": 0.4,
    }
    estimator = HistGradientBoostingRegressor(**chosen, random_state=7, early_stopping=False).fit(columns, z)
    forest = fit_forest(columns, z, TreeSettings(**chosen, seed=7))
    np.testing.assert_array_equal(forest.predict(columns), estimator.predict(columns))


def test_a_target_that_the_columns_do_not_explain_leaves_the_mean():
    z = np.array([1.0, 2.0, 6.0])
    forest = fit_forest(np.zeros((3, 1)), z, FEW)
    np.testing.assert_allclose(forest.predict(np.array([[5.0], [np.nan]])), z.mean())


def test_trees_find_what_no_sum_over_columns_can():
    columns, z = draw_rows(2000)
    predicted = fit_forest(columns[:1500], z[:1500], TreeSettings(max_iter=100)).predict(columns[1500:])
    assert np.square(predicted - z[1500:]).mean() < 0.25 * z[1500:].var()  # a sum leaves over 0.8


def test_the_seed_alone_decides_and_threads_do_not(monkeypatch):
    columns, z = draw_rows()
    fit, used = HistGradientBoostingRegressor.fit, []

    def spy(estimator, *rows):
        used.append({pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "openmp"})
        return fit(estimator, *rows)

    monkeypatch.setattr(HistGradientBoostingRegressor, "fit", spy)
    tiny = replace(FEW, max_iter=3)
    alone, threaded = fit_forest(columns, z, tiny), fit_forest(columns, z, tiny, threads=2)
    assert used == [{1}, {2}]
    for name, tensor in alone.tensors().items():
        np.testing.assert_array_equal(threaded.tensors()[name], tensor)
    reseeded = fit_forest(columns, z, replace(tiny, seed=1))
    assert (reseeded.predict(columns) != alone.predict(columns)).any()


@pytest.fixture(scope="module")
def fitted() -> FittedTrees:
    columns, z = draw_rows()
    return FittedTrees.fit(columns, z, ("image", "text", "age"), np.array([0, 1, 1, 2, 0]), FEW)


def test_a_coalition_sees_its_own_columns_and_the_means_of_the_others(fitted):
    columns, _ = draw_rows(seed=1)
    predictions = fitted.coalition_predictions(columns)
    assert len(predictions) == 8
    for coalition, predicted in enumerate(predictions):
        seen = [k for k, modality in enumerate(fitted.modality_of) if coalition >> int(modality) & 1]
        masked = np.tile(fitted.column_means, (len(columns), 1))
        masked[:, seen] = columns[:, seen]
        np.testing.assert_array_equal(predicted, fitted.forest.predict(masked))
    np.testing.assert_array_equal(predictions[-1], fitted.predict(columns))
    assert np.ptp(predictions[0]) == 0
    assert np.ptp(predictions[1:], axis=1).all()


def test_a_video_at_the_means_of_a_modality_does_not_feel_it(fitted):
    columns, _ = draw_rows(seed=2)
    columns = np.where(fitted.modality_of == 1, fitted.column_means, columns)
    predictions = fitted.coalition_predictions(columns)
    with_text = coalitions(3)[:, 1]
    np.testing.assert_array_equal(predictions[with_text], predictions[~with_text])


def test_fitted_trees_survive_being_written_down(fitted):
    columns, _ = draw_rows(seed=3)
    again = FittedTrees.from_tensors(fitted.tensors(), fitted.modalities)
    np.testing.assert_array_equal(again.coalition_predictions(columns), fitted.coalition_predictions(columns))


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("modality_of", np.array([0, 1, 1, 2, 3]), "must belong to one of"),
        ("modality_of", np.array([0, 1, 1, 2, -1]), "must belong to one of"),
        ("modality_of", np.zeros(5), "modality_of, 5 numbers of type int64"),
        ("modality_of", np.array([0, 1, 1, 2]), "modality_of, 5 numbers"),
        ("column_means", np.zeros((1, 5)), "column_means, 5 numbers of type float64"),
        ("column_means", np.full(5, np.nan), "must be finite"),
        ("gain", np.zeros(5), "gain must be left out"),
    ],
)
def test_damaged_fitted_trees_are_refused(name, array, message, fitted):
    with pytest.raises(ValueError, match=message):
        FittedTrees.from_tensors({**fitted.tensors(), name: array}, fitted.modalities)


@pytest.mark.parametrize("name", ["modality_of", "column_means"])
def test_fitted_trees_without_an_array_are_refused(name, fitted):
    tensors = fitted.tensors()
    del tensors[name]
    with pytest.raises(ValueError, match=f"the trees need {name}"):
        FittedTrees.from_tensors(tensors, fitted.modalities)


def test_every_column_needs_a_modality_and_a_mean(fitted):
    with pytest.raises(ValueError, match=r"a modality and a mean, given \(5, 4, 4\)"):
        replace(fitted, modality_of=fitted.modality_of[:4], column_means=fitted.column_means[:4])


def test_means_are_over_what_is_known():
    columns = np.array([[1e8, np.nan], [np.nan, np.nan], [1.0, np.nan]], dtype=np.float32)
    assert known_means(columns).tolist() == [50_000_000.5, 0.0]


@pytest.mark.parametrize(
    ("columns", "z", "message"),
    [
        (np.zeros((0, 1)), np.zeros(0), "given 0 rows"),
        (np.zeros((2, 1)), np.array([0.0, np.nan]), "finite targets"),
        (np.array([[0.0, 1.0], [0.0, -np.inf]]), np.zeros(2), "row 1 of column 1 is infinite"),
    ],
)
def test_rows_that_cannot_train_are_refused(columns, z, message):
    with pytest.raises(UnfitDataError, match=message):
        fit_forest(columns, z, FEW)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("learning_rate", 0.0),
        ("max_iter", 0),
        ("max_leaf_nodes", 1),
        ("min_samples_leaf", 0),
        ("l2_regularization", -1.0),
        ("max_features", 0.0),
        ("max_features", 1.5),
        ("seed", -1),
    ],
)
def test_a_setting_out_of_its_range_is_refused_by_name(setting, value):
    with pytest.raises(ValueError, match=f"{setting} must"):
        TreeSettings(**{setting: value})
