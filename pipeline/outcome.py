"""What a command has done: the same shape for every command, so that the command line only prints it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Outcome:
    """The result of one command.

    summary
        Lines for people, on stdout.
    facts
        The same as one JSON object (`--json`).
    next_command
        What a user would type next.
    error
        Why the command fails although its work is done and kept.
    """

    summary: Sequence[str]
    facts: Mapping[str, Any] = field(default_factory=dict)
    next_command: str = ""
    error: Exception | None = None


def table(rows: Sequence[Sequence[object]]) -> list[str]:
    """Align cells in columns: the first to the left, the others to the right.

    >>> table([["rows", 540], ["bad", 3]])
    ['rows  540', 'bad     3']
    """
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]


def size_told(size_bytes: int) -> str:
    """Bytes as people read them.

    >>> size_told(512), size_told(5_824_000), size_told(3_000_000_000)
    ('512 B', '5.8 MB', '3.0 GB')
    """
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size_bytes >= factor:
            return f"{size_bytes / factor:.1f} {unit}"
    return f"{size_bytes} B"


def counted(count: int, noun: str) -> str:
    """A number and its noun.

    >>> counted(1, "run"), counted(2, "run")
    ('1 run', '2 runs')
    """
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
