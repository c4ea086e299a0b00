"""How far each fold goes from the frozen weights."""

from hypothesis import given
from hypothesis import strategies as st

from pipeline.tuning.loop import FACTORS, chosen_factor

ERRORS = st.lists(st.floats(0, 10), min_size=len(FACTORS), max_size=len(FACTORS))


def test_the_factor_is_chosen_by_the_other_folds():
    errors = {0: {"best": [9.0] * 5 + [8.0]}, 1: {"best": [5.0, 1.0, 5.0, 5.0, 5.0, 9.0]}}
    errors[2] = {"best": [5.0, 5.0, 1.0, 5.0, 5.0, 9.0]}
    assert [chosen_factor(errors, fold, "best") for fold in range(3)] == [0.2, 0.4, 0.2]


def test_under_an_expanding_plan_only_earlier_folds_choose():
    errors = {0: {"best": [5.0, 1.0, 5.0, 5.0, 5.0, 9.0]}, 1: {"best": [5.0, 5.0, 1.0, 5.0, 5.0, 9.0]}}
    errors[2] = {"best": [9.0] * 5 + [0.0]}
    assert [chosen_factor(errors, fold, "best", expanding=True) for fold in range(3)] == [0.0, 0.2, 0.2]


@given(st.lists(ERRORS, min_size=3, max_size=3), ERRORS)
def test_a_fold_has_no_say_in_its_own_factor(errors, others):
    plain = {fold: {"best": own} for fold, own in enumerate(errors)}
    assert chosen_factor(plain, 1, "best") == chosen_factor(plain | {1: {"best": others}}, 1, "best")


def test_of_factors_that_are_as_good_the_nearest_to_frozen_is_taken():
    assert chosen_factor({0: {"final": []}, 1: {"final": [2.0] * 6}}, 0, "final") == 0
