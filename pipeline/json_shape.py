"""What a JSON document has to hold: one that was changed is refused at the first place that is not right.

A shape is a type, a list of one shape (an array of any length), a dict of shapes (an object that has at least these
keys), a tuple of texts (one of them), or one of the classes below.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

Shape = Any
LARGEST = 1e300
"""Of numbers that vp writes; larger ones would overflow where they are used."""


@dataclass(frozen=True)
class Number:
    """A number within these bounds; NaN counts as one, as it stands for what could not be computed."""

    low: float = -LARGEST
    high: float = LARGEST


@dataclass(frozen=True)
class Whole:
    """A whole number that is not too small, and fits into 64 bits."""

    low: int = 0


@dataclass(frozen=True)
class Every:
    """An object with any keys, whose values have one shape; `whole_keys` are numbers written as text."""

    shape: Shape
    whole_keys: bool = False


@dataclass(frozen=True)
class Maybe:
    """A shape, null, or no such key at all."""

    shape: Shape


@dataclass(frozen=True)
class Either:
    """One of two shapes."""

    one: Shape
    other: Shape


def fault_in(document: Any, shape: Shape, where: str = "it") -> str:
    """Say where a document first differs from its shape; empty where it does not.

    >>> fault_in({"rows": 3, "folds": [{"n": "2"}]}, {"rows": Whole(1), "folds": [{"n": Whole(2)}]})
    "it.folds[0].n must be a whole number of at least 2, not '2'"
    >>> fault_in({"seconds": 1.5}, {"seconds": Number(), "note": Maybe(str)})
    ''
    """
    return next(_faults(document, shape, where), "")


def _faults(value: Any, shape: Shape, where: str) -> Iterator[str]:
    match shape:
        case Maybe():
            yield from () if value is None else _faults(value, shape.shape, where)
        case Either():
            if fault_in(value, shape.one):
                yield from _faults(value, shape.other, where)
        case dict() | Every():
            yield from _faults_of_object(value, shape, where)
        case list():
            if not isinstance(value, list):
                yield _wrong(where, "a list", value)
                return
            for at, item in enumerate(value):
                yield from _faults(item, shape[0], f"{where}[{at}]")
        case _:
            if not _is(value, shape):
                yield _wrong(where, _in_words(shape), value)


def _faults_of_object(value: Any, shape: dict[str, Shape] | Every, where: str) -> Iterator[str]:
    if not isinstance(value, dict):
        yield _wrong(where, "an object", value)
    elif isinstance(shape, Every):
        for key, item in value.items():
            if shape.whole_keys and not key.removeprefix("-").isdecimal():
                yield _wrong(where, "an object whose keys are whole numbers", key)
            yield from _faults(item, shape.shape, f"{where}.{key}")
    else:
        for key, own in shape.items():
            if key in value:
                yield from _faults(value[key], own, f"{where}.{key}")
            elif not isinstance(own, Maybe):
                yield f"{where} lacks {key!r}"


def _is(value: Any, shape: Shape) -> bool:
    match shape:
        case Number():
            if type(value) not in {int, float}:
                return False
            return bool(shape.low <= value <= shape.high or value != value)  # noqa: PLR0124 - NaN; isnan takes no huge int
        case Whole():
            return type(value) is int and shape.low <= value < 2**63
        case tuple():
            return isinstance(value, str) and value in shape
        case _:
            return type(value) is shape


def _in_words(shape: Shape) -> str:
    match shape:
        case Number(low, high):
            return "a number" if (low, high) == (-LARGEST, LARGEST) else f"a number from {low:g} to {high:g}"
        case Whole(low):
            return f"a whole number of at least {low}"
        case tuple():
            return f"one of {', '.join(shape)}"
        case _:
            return {str: "text", bool: "true or false", dict: "an object"}[shape]


def _wrong(where: str, wanted: str, value: Any) -> str:
    said = repr(value)
    return f"{where} must be {wanted}, not {said[:60]}{'...' * (len(said) > 60)}"
