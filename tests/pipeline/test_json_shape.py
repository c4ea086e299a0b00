"""A document is right, or the first place where it is not is told."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.json_shape import Either, Every, Maybe, Number, Whole, fault_in
from tests.mutations import changed

SHAPE = {
    "name": str,
    "kind": ("a", "b"),
    "rows": Whole(1),
    "share": Number(0.0, 1.0),
    "done": bool,
    "note": Maybe(str),
    "folds": [{"n": Whole()}],
    "by_bin": Every(Number(), whole_keys=True),
    "score": Either(Number(0.0), str),
    "anything": dict,
}
RIGHT = {
    "name": "x",
    "kind": "b",
    "rows": 3,
    "share": 0.5,
    "done": False,
    "folds": [{"n": 0, "more": None}],
    "by_bin": {"-1": 2, "3": 0.1},
    "score": 1,
    "anything": {"a": []},
}
WRONG = [
    ({"name": 5}, "it.name must be text, not 5"),
    ({"kind": "c"}, "it.kind must be one of a, b, not 'c'"),
    ({"kind": ["a"]}, "it.kind must be one of a, b, not ['a']"),
    ({"rows": 0}, "it.rows must be a whole number of at least 1, not 0"),
    ({"rows": 3.0}, "it.rows must be a whole number of at least 1, not 3.0"),
    ({"rows": True}, "it.rows must be a whole number of at least 1, not True"),
    ({"rows": 2**63}, "it.rows must be a whole number of at least 1, not 9223372036854775808"),
    ({"share": 1.1}, "it.share must be a number from 0 to 1, not 1.1"),
    ({"share": "1"}, "it.share must be a number from 0 to 1, not '1'"),
    ({"done": 1}, "it.done must be true or false, not 1"),
    ({"note": 1}, "it.note must be text, not 1"),
    ({"folds": {}}, "it.folds must be a list, not {}"),
    ({"folds": [{"n": 1}, {}]}, "it.folds[1] lacks 'n'"),
    ({"by_bin": {"x": 1}}, "it.by_bin must be an object whose keys are whole numbers, not 'x'"),
    ({"by_bin": {"1": None}}, "it.by_bin.1 must be a number, not None"),
    ({"by_bin": {"1": 10**400}}, "it.by_bin.1 must be a number, not 1000000"),
    ({"by_bin": {"1": float("inf")}}, "it.by_bin.1 must be a number, not inf"),
    ({"score": -1}, "it.score must be text, not -1"),
    ({"anything": None}, "it.anything must be an object, not None"),
]


def test_a_right_document_has_no_fault():
    assert fault_in(RIGHT, SHAPE) == ""
    assert fault_in(RIGHT | {"note": None, "unknown": 1, "share": float("nan")}, SHAPE) == ""
    assert fault_in(RIGHT | {"note": "x", "score": "none", "folds": []}, SHAPE) == ""


@pytest.mark.parametrize(("change", "said"), WRONG, ids=str)
def test_what_is_wrong_is_told_with_its_place(change, said):
    assert fault_in(RIGHT | change, SHAPE).startswith(said)


@pytest.mark.parametrize("document", [None, [], "x", 5])
def test_what_is_no_object_at_all_is_told(document):
    assert fault_in(document, SHAPE).startswith("it must be an object, not ")


def test_a_long_value_is_cut():
    assert len(fault_in(RIGHT | {"rows": "x" * 10_000}, SHAPE)) < 150


@settings(deadline=None, derandomize=True, max_examples=150)
@given(changed(RIGHT), st.sampled_from(sorted(SHAPE)))
def test_any_document_is_right_or_has_one_fault_of_one_line(document, name):
    said = fault_in(document, SHAPE)
    assert "\n" not in said
    if not said:
        assert fault_in(json.loads(json.dumps(document)), {name: SHAPE[name]}) == ""
