"""The table that every command ends with."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.outcome import table

CELLS = st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=6) | st.integers()
TABLES = st.integers(1, 4).flatmap(lambda n: st.lists(st.lists(CELLS, min_size=n, max_size=n), min_size=1, max_size=4))


@settings(deadline=None, derandomize=True, max_examples=50)
@given(TABLES)
def test_every_cell_stands_in_its_column_the_first_to_the_left_the_others_to_the_right(rows):
    widths = [max(len(str(row[column])) for row in rows) for column in range(len(rows[0]))]
    for row, line in zip(rows, table(rows), strict=True):
        start = 0
        for column, (cell, width) in enumerate(zip(row, widths, strict=True)):
            place = line.ljust(start + width)[start : start + width]
            assert place == (str(cell).rjust(width) if column else str(cell).ljust(width))
            start += width + 2
        assert line == line.rstrip()


def test_no_rows_are_no_lines():
    assert table([]) == []


def test_a_row_that_lacks_a_cell_is_a_bug():
    with pytest.raises(ValueError, match="zip"):
        table([["a", 1], ["b"]])
