"""When a fold stops, from curves that a reader can follow."""

from types import SimpleNamespace

import numpy as np
import pytest

from heads.stopping import WAIT, Course, Moment, best_elsewhere, has_ended


def bare(kind: type, **fields) -> object:
    """One of a kind of which nothing but these fields is looked at."""
    made = object.__new__(kind)
    for name, value in fields.items():
        object.__setattr__(made, name, value)
    return made


def course(fold: int, *errors: float, rows: int = 1) -> Course:
    member = SimpleNamespace(fold=fold, val_rows=np.arange(rows))
    moments = [bare(Moment, record=SimpleNamespace(msle=float(error))) for error in errors]
    return bare(Course, member=member, moments=moments)


def test_a_fold_stops_where_the_others_together_were_best_each_row_counting_once():
    courses = [course(0, 9, 0, 9), course(1, 3, 2, 1, rows=1), course(2, 1, 2, 3, rows=3)]
    assert best_elsewhere(courses, 0) == 0
    assert best_elsewhere(courses, 1) == 1
    assert best_elsewhere([course(0, 9, 0, 9), course(1, 2, 2, 1)], 0) == 2


def test_of_equal_epochs_the_first_is_taken():
    assert best_elsewhere([course(0, 0), course(1, 2, 1, 1, 1)], 0) == 1


def test_a_member_that_stopped_before_stands_where_it_stopped():
    courses = [course(0, 1), course(1, 5, 3), course(2, 5, 5, 2)]
    assert best_elsewhere(courses, 0) == 2
    assert courses[1].at(7).record.msle == 3


@pytest.mark.parametrize("late", [0.0, 1.0])
def test_what_comes_after_a_long_wait_is_not_seen(late):
    """So that a fold stops alike, however long another fold makes its team run."""
    curve = [5.0, 4.0, *[4.5] * WAIT, late]
    assert best_elsewhere([course(0, 1), course(1, *curve)], 0) == 1
    assert best_elsewhere([course(0, 1), course(1, *curve[:-2], late)], 0) == WAIT + 1


def test_a_team_ends_when_no_fold_can_stop_later():
    flat, falling = [5.0] * (WAIT + 1), np.linspace(5, 1, WAIT + 1).tolist()
    assert has_ended([course(0, *flat), course(1, *flat)])
    assert not has_ended([course(0, *flat[:-1]), course(1, *flat[:-1])])
    assert not has_ended([course(0, *flat), course(1, *falling)])
    assert has_ended([course(0, *flat, *flat), course(1, *falling, *[1.0] * WAIT)])
