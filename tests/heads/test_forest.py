import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heads import forest as forest_module
from heads.forest import LEAF, Forest


def draw_forest(seed: int, n_trees: int = 3, n_columns: int = 4) -> Forest:
    """Trees that were never fitted: thresholds and amounts are small integers, so that ties are common."""
    rng = np.random.default_rng(seed)
    column: list[int] = []
    children: list[list[int]] = []

    def grow(depth: int) -> int:
        node = len(column)
        column.append(LEAF)
        children.append([node] * 3)
        if depth < 4 and rng.random() < 0.8:
            column[node] = int(rng.integers(n_columns))
            sides = [grow(depth + 1), grow(depth + 1)]
            children[node] = [*sides, sides[rng.integers(2)]]
        return node

    roots = [grow(0) for _ in range(n_trees)]
    return Forest(
        roots=np.array(roots),
        column=np.array(column),
        threshold=rng.integers(-2, 3, size=len(column)).astype(np.float64),
        children=np.array(children),
        value=rng.normal(size=len(column)),
        baseline=float(rng.normal()),
        n_columns=n_columns,
    )


def draw_amounts(seed: int, n_videos: int = 40, n_columns: int = 4) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.choice([-2.0, -1.0, 0.0, 1.0, 2.0, np.nan, np.inf], size=(n_videos, n_columns))


def walk(forest: Forest, row: np.ndarray) -> float:
    """The slow, obvious prediction of one row."""
    total = forest.baseline
    for root in forest.roots:
        node = root
        while forest.column[node] != LEAF:
            amount = row[forest.column[node]]
            left, right, missing = forest.children[node]
            node = missing if np.isnan(amount) else left if amount <= forest.threshold[node] else right
        total += forest.value[node]
    return total


@given(st.integers(0, 10_000))
@settings(max_examples=30)
def test_a_forest_predicts_what_a_walk_from_node_to_node_gives(seed):
    forest, amounts = draw_forest(seed), draw_amounts(seed)
    assert forest.predict(amounts).tolist() == [walk(forest, row) for row in amounts]


@pytest.mark.parametrize("walkers", [1, 17])
def test_predicting_in_chunks_changes_nothing(walkers, monkeypatch):
    forest, amounts = draw_forest(1), draw_amounts(1)
    whole = forest.predict(amounts)
    monkeypatch.setattr(forest_module, "WALKERS", walkers)
    np.testing.assert_array_equal(forest.predict(amounts), whole)


def test_no_rows_have_no_predictions():
    assert draw_forest(0).predict(np.empty((0, 4))).shape == (0,)


def test_a_forest_survives_being_written_down():
    forest, amounts = draw_forest(2), draw_amounts(2)
    tensors = forest.tensors()
    assert {str(tensor.dtype) for tensor in tensors.values()} == {"float64", "int64"}
    again = Forest.from_tensors(
        {name: np.frombuffer(t.tobytes(), t.dtype).reshape(t.shape) for name, t in tensors.items()}
    )
    np.testing.assert_array_equal(again.predict(amounts), forest.predict(amounts))


# Node 0 splits column 0 into the leaf 1 and node 2, which splits column 1 into the leaves 3 and 4.
SOUND = {
    "roots": np.array([0]),
    "column": np.array([0, LEAF, 1, LEAF, LEAF]),
    "threshold": np.zeros(5),
    "children": np.array([[1, 2, 2], [1, 1, 1], [3, 4, 3], [3, 3, 3], [4, 4, 4]]),
    "value": np.arange(5.0),
    "baseline": np.array([0.5]),
    "n_columns": np.array([2]),
}


def test_the_forest_to_be_damaged_is_sound():
    assert Forest.from_tensors(SOUND).predict(np.array([[-1.0, 0.0], [1.0, 1.0], [1.0, np.nan]])).tolist() == [
        1.5,
        4.5,
        3.5,
    ]


@pytest.mark.parametrize(
    ("name", "index", "value", "message"),
    [
        ("children", (2, 0), 0, "a leaf must lead to itself and a split to nodes that stand after it"),
        ("children", (2, 2), 2, "stand after it"),
        ("children", (0, 1), 5, "stand after it"),
        ("children", (0, 1), -1, "stand after it"),
        ("children", (1, 0), 3, "a leaf must lead to itself"),
        ("column", 1, 0, "stand after it"),
        ("column", 2, LEAF, "a leaf must lead to itself"),
        ("column", 0, 2, "columns must be 0 to 1, or -1"),
        ("column", 0, -2, "columns must be 0 to 1, or -1"),
        ("n_columns", 0, 1, "columns must be 0 to 0, or -1"),
        ("roots", 0, 5, "roots must be nodes, 0 to 4"),
        ("roots", 0, -1, "roots must be nodes, 0 to 4"),
        ("threshold", 0, np.nan, "thresholds must not be NaN"),
        ("value", 4, np.inf, "must be finite"),
        ("baseline", 0, np.nan, "must be finite"),
    ],
)
def test_damaged_trees_are_refused(name, index, value, message):
    damaged = SOUND[name].copy()
    damaged[index] = value
    with pytest.raises(ValueError, match=message):
        Forest.from_tensors({**SOUND, name: damaged})


@pytest.mark.parametrize("name", sorted(SOUND))
def test_arrays_that_do_not_fit_together_are_refused(name):
    wrong = [SOUND[name][:0], SOUND[name][None], SOUND[name].astype(np.float32)]
    for array in wrong:
        with pytest.raises(ValueError, match=r"fit together|there must be a tree"):
            Forest.from_tensors({**SOUND, name: array})
    with pytest.raises(ValueError, match=f"{name} must be .* given nothing"):
        Forest.from_tensors({other: array for other, array in SOUND.items() if other != name})


def test_an_array_that_no_forest_has_is_refused():
    with pytest.raises(ValueError, match="gain must be left out"):
        Forest.from_tensors({**SOUND, "gain": np.zeros(5)})


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 2), st.integers(-1, 5)), max_size=4))
@settings(max_examples=200)
def test_whatever_stands_among_the_children_a_path_ends_or_the_trees_are_refused(changes):
    children = SOUND["children"].copy()
    for node, side, child in changes:
        children[node, side] = child
    try:
        forest = Forest.from_tensors({**SOUND, "children": children})
    except ValueError:
        return
    leaves = SOUND["value"][SOUND["column"] == LEAF] + 0.5
    assert np.isin(forest.predict(np.array([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [np.nan, np.nan]])), leaves).all()


def test_another_number_of_columns_is_refused():
    with pytest.raises(ValueError, match="read 2 columns, given 3"):
        Forest.from_tensors(SOUND).predict(np.zeros((1, 3)))


@given(st.integers(0, 10_000))
@settings(max_examples=40)
def test_a_column_held_at_an_amount_is_a_column_full_of_it(seed):
    forest, amounts = draw_forest(seed), draw_amounts(seed)
    rng = np.random.default_rng(seed)
    held, at = rng.random(4) < 0.6, draw_amounts(seed + 1, n_videos=1)[0]
    written = np.where(held, at, amounts)
    np.testing.assert_array_equal(forest.holding(at, held).predict(amounts), forest.predict(written))
