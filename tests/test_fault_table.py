"""The table of faults in README.md is whole, and names tests that there are."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

HERE = Path(__file__).parent
IDS = [
    f"{part}{n:02d}" for part, last in {"F": 24, "I": 16, "D": 22, "C": 12, "S": 10}.items() for n in range(1, last + 1)
]
ROW = re.compile(r"\| ([A-Z]\d\d) \| (.+?) \| (.+?) \| (.+) \|")


def rows():
    return [
        match.groups() for match in map(ROW.fullmatch, (HERE / "README.md").read_text("utf-8").splitlines()) if match
    ]


@cache
def names_in(file):
    return {node.name for node in ast.parse(file.read_text("utf-8")).body if isinstance(node, ast.FunctionDef)}


def test_every_fault_has_one_row():
    assert [id_ for id_, *_ in rows()] == IDS


@pytest.mark.parametrize(("id_", "shown_by"), [(id_, shown_by) for id_, _, _, shown_by in rows()])
def test_every_test_that_is_named_exists(id_, shown_by):
    named = re.findall(r"`([^`]+)`", shown_by)
    assert shown_by == "<br>".join(f"`{name}`" for name in named)
    assert named, f"{id_} is shown by no test"
    for name in named:
        file, _, test = name.partition("::")
        assert test in names_in(HERE.parent / file), name
