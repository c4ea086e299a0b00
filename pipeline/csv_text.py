r"""CSV with plain newlines whose cells come back whole, whatever is in them.

Told to end lines with `\n`, Python's csv module leaves a cell that holds a bare `\r` unquoted (3.11), which
readers take for the end of a row. Told to end them with `\r\n`, it quotes both; then the ends are replaced.
"""

import io
from pathlib import Path

import pandas as pd

from features import durable

CRLF = "\r\n"


class CsvText(io.StringIO):
    r"""What a csv writer with `CRLF` as its line terminator writes, row by row; lines end with `\n`.

    >>> import csv
    >>> text = CsvText()
    >>> csv.writer(text, lineterminator=CRLF).writerows([["id", "views"], ["a\rb", 1]])
    >>> text.getvalue()
    'id,views\n"a\rb",1\n'
    """

    def write(self, row: str, /) -> int:
        """Keep one row."""
        return super().write(row.removesuffix(CRLF) + "\n" if row.endswith(CRLF) else row)


def publish_table(path: Path, frame: pd.DataFrame) -> None:
    """Publish a table as CSV, without its index."""
    text = CsvText()
    frame.to_csv(text, index=False, lineterminator=CRLF)
    durable.publish(path, text.getvalue())
