"""Tables are written so that every cell comes back, with plain newlines."""

import csv
import io

import pandas as pd
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.csv_text import CRLF, CsvText

CELLS = st.text(st.sampled_from(list('ab,"\n\r ')) | st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
TABLES = st.integers(2, 4).flatmap(lambda width: st.lists(st.lists(CELLS, min_size=width, max_size=width), min_size=1))


@settings(deadline=None, derandomize=True, max_examples=150)
@given(TABLES)
def test_every_cell_comes_back_from_rows_and_from_a_frame(rows):
    text = CsvText()
    csv.writer(text, lineterminator=CRLF).writerows(rows)
    assert list(csv.reader(io.StringIO(text.getvalue(), newline=""))) == rows
    names, *others = [[f"{place}{cell}" for place, cell in enumerate(row)] for row in rows]
    framed = CsvText()
    pd.DataFrame(others, columns=names).to_csv(framed, index=False, lineterminator=CRLF)
    assert list(csv.reader(io.StringIO(framed.getvalue(), newline=""))) == [names, *others]


def test_lines_end_with_a_newline_alone():
    text = CsvText()
    pd.DataFrame({"id": ["a", "b"], "x": [0.1, None]}).to_csv(text, index=False, lineterminator=CRLF)
    assert text.getvalue() == "id,x\na,0.1\nb,\n"
