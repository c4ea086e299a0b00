"""Rows of a CSV file and the place of their bytes, so that single rows can be read again without the rest.

The whole file is never in memory. What is not a clean table (a row with a field too many, a quote that is never
closed, bytes of another encoding) is refused with its line, instead of being guessed at.
"""

import codecs
import csv
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from io import BufferedReader
from itertools import islice
from operator import methodcaller
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

from features.errors import DataError, UsageError

FIELD_LIMIT = 1 << 24  # characters; a longer field is a quote that is never closed, not a long description

_BOMS = {
    "utf-8": codecs.BOM_UTF8,
    "utf-16-le": codecs.BOM_UTF16_LE,
    "utf-16-be": codecs.BOM_UTF16_BE,
    "utf-32-le": codecs.BOM_UTF32_LE,
    "utf-32-be": codecs.BOM_UTF32_BE,
}
_STATEFUL = ("iso2022", "utf-7", "hz")  # what a byte means depends on all bytes before it
_BARE_RETURN = "new-line character"
_CSV_FAULTS = {  # what the csv module says: what a reader of the message can act on
    "unexpected end of data": "a quote is opened in this row and never closed",
    "field larger than": f"a field longer than {FIELD_LIMIT:,} characters, probably a quote that is never closed",
    "expected after": "text follows a closing quote; a quote inside quotes is written twice",
    _BARE_RETURN: "a carriage return stands outside quotes; lines must end in LF or CRLF (\\n or \\r\\n)",
}


class CsvRow(NamedTuple):
    """One row and where it stands."""

    fields: list[str]
    line: int  # 1-based line of the file where the row begins
    start: int  # bytes [start, end) of the file are the row and its newline
    end: int


@dataclass(frozen=True)
class CsvFile:
    """A CSV file as it was when `open_csv` looked at it."""

    path: Path
    sep: str
    encoding: str  # Python's name, with its byte order
    header: tuple[str, ...]  # without surrounding blanks
    bom_bytes: int  # length of the byte order mark before the header
    size_bytes: int
    modified_ns: int

    @property
    def names(self) -> str:
        """The header, as messages show it."""
        return ", ".join(map(shown, self.header))

    def position(self, name: str) -> int | None:
        """Index of the column with this name, None if there is none; DataError if there are several."""
        if self.header.count(name) > 1:
            raise DataError(f"{self.path}: the column {name!r} must occur once, however its columns are: {self.names}")
        return self.header.index(name) if name in self.header else None

    def rows(self) -> Iterator[CsvRow]:
        """Every row after the header, in order; blank lines are passed over.

        Raises
        ------
        DataError
            A row is malformed, or has more or fewer fields than the header.
        """
        with self._reopened() as file:
            file.seek(self.bom_bytes)
            for row in islice(_parse(file, self.path, self.sep, self.encoding), 1, None):
                if len(row.fields) != len(self.header):
                    raise DataError(
                        f"{self.path}, line {row.line}: {len(row.fields)} fields, however the header has "
                        f"{len(self.header)}; a field that holds {self.sep!r} or a newline must be quoted"
                    )
                yield row

    def fields_at(self, spans: Int64[np.ndarray, "row 2"]) -> Iterator[list[str]]:
        """The fields of single rows, read again from their bytes [start, end); DataError if the file has changed."""
        with self._reopened() as file:
            for start, end in spans.tolist():
                file.seek(start)
                yield self._fields(file.read(end - start))

    def changed(self) -> DataError:
        """The error to raise when the file is no longer what it was."""
        return DataError(f"{self.path} has changed since it was read: run the command again")

    def _fields(self, row: bytes) -> list[str]:
        _lift_field_limit()
        try:
            text = row.decode(self.encoding, "surrogatepass")
            fields = next(csv.reader([text], delimiter=self.sep, strict=True), [])
        except (UnicodeDecodeError, csv.Error):
            raise self.changed() from None
        if len(fields) != len(self.header):
            raise self.changed()
        return fields

    def _reopened(self) -> BufferedReader:
        file = _open(self.path)
        if _version(file) != (self.size_bytes, self.modified_ns):
            file.close()
            raise self.changed()
        return file


def open_csv(path: Path, *, sep: str = ",", encoding: str = "utf-8", named_by: str = "") -> CsvFile:
    r"""Look at a CSV file: its encoding, byte order and header.

    Parameters
    ----------
    path
        A regular file.
    sep
        One character; a backslash and a t, as a shell passes it, is the tab.
    encoding
        Any encoding in which lines can be told apart without what precedes them: utf-8, utf-16, utf-32 (all with
        or without a byte order mark), latin-1, cp1252, gb18030, ...
    named_by
        What to say of a path that does not exist: which option it comes from.

    Raises
    ------
    DataError
        The file is missing, empty or of another encoding.
    UsageError
        `sep` or `encoding` means nothing.
    """
    sep = _delimiter(sep)
    with _open(path, named_by) as file:
        beginning = file.peek(4)[:4]
        codec = _line_codec(encoding, beginning, path)
        bom = _BOMS.get(codec, b"")
        bom_bytes = len(bom) if beginning.startswith(bom) else 0
        file.seek(bom_bytes)
        header = next(_parse(file, path, sep, codec), None)
        size_bytes, modified_ns = _version(file)
    if header is None:
        raise DataError(f"{path} is empty: its first row must name the columns")
    return CsvFile(path, sep, codec, tuple(name.strip() for name in header.fields), bom_bytes, size_bytes, modified_ns)


def other_delimiter(header: str, sep: str) -> str:
    """What to say of a header that another delimiter than `sep` would split; empty if none would.

    >>> other_delimiter("id;title;views", ",")
    "the delimiter is ';'? pass --sep ';'"
    """
    found = next((other for other in ";\t|," if other != sep and other in header), None)
    return f"the delimiter is {found!r}? pass --sep {found!r}" if found else ""


def shown(text: str) -> str:
    r"""A cell as messages show it: one line, no control characters, not too long.

    >>> shown("a\x1b[1m\n"), shown("x" * 100) == repr("x" * 60) + "..."
    ("'a\\x1b[1m\\n'", True)
    """
    return repr(text[:60]) + "..." * (len(text) > 60)


def _parse(file: BufferedReader, path: Path, sep: str, encoding: str) -> Iterator[CsvRow]:
    """Rows from where `file` stands, which is the beginning of line 1."""
    _lift_field_limit()
    reader = csv.reader(_lines(file, encoding), delimiter=sep, strict=True)
    line, start = 1, file.tell()
    try:
        # csv takes one line at a time and not more than it needs, so the file stands at the end of the row.
        for fields in reader:
            end = file.tell()
            if fields:
                yield CsvRow(fields, line, start, end)
            line, start = reader.line_num + 1, end
    except UnicodeDecodeError as error:
        raise DataError(_undecodable(error, path, reader.line_num + 1, file.tell())) from None
    except csv.Error as error:
        reason = next((reason for fault, reason in _CSV_FAULTS.items() if fault in str(error)), str(error))
        is_header = line == 1 and _BARE_RETURN not in str(error)  # else line 1 may be the whole file
        hint = _header_hint(file, start, sep, encoding) if is_header else ""
        raise DataError(f"{path}, line {line}: {'; '.join(filter(None, (reason, hint)))}") from None


def _lift_field_limit() -> None:
    # The limit belongs to the whole process. It is raised and never lowered again: lowering it would break readers
    # that are still at work, and nobody depends on a field being too long.
    csv.field_size_limit(max(csv.field_size_limit(), FIELD_LIMIT))


def _lines(file: BufferedReader, encoding: str) -> Iterator[str]:
    newline = "\n".encode(encoding)
    raw = file if len(newline) == 1 else _wide_lines(file, newline)
    # surrogatepass: some exporters write the halves of an emoji apart; the text is repaired where it is used.
    return map(methodcaller("decode", encoding, "surrogatepass"), raw)


def _wide_lines(file: BufferedReader, newline: bytes) -> Iterator[bytes]:
    """Lines of UTF-16 and UTF-32, where the byte 0x0A also occurs inside other characters."""
    line = b""
    while part := file.readline():
        line += part
        line += file.read(-len(line) % len(newline))  # to the end of the character that holds this 0x0A
        if line.endswith(newline):
            yield line
            line = b""
    if line:
        yield line


def _header_hint(file: BufferedReader, start: int, sep: str, encoding: str) -> str:
    file.seek(start)
    return other_delimiter(next(_lines(file, encoding), ""), sep)


def _undecodable(error: UnicodeDecodeError, path: Path, line: int, line_end: int) -> str:
    offset = line_end - len(error.object) + error.start
    found = " ".join(f"0x{byte:02x}" for byte in error.object[error.start : error.end])
    return (
        f"{path}, line {line}: the bytes must be {error.encoding}, however byte {offset} is {found}; "
        "name the encoding of the file, such as --encoding latin-1 or --encoding utf-16"
    )


def _delimiter(sep: str) -> str:
    character = "\t" if sep == "\\t" else sep
    if len(character) != 1 or character in '"\r\n\0':
        raise UsageError(f"--sep must be one character that can stand between fields, however: {sep!r}")
    return character


def _line_codec(encoding: str, beginning: bytes, path: Path) -> str:
    """Python's name of an encoding in which a file can be read from the middle."""
    try:
        codec = codecs.lookup(encoding).name.removesuffix("-sig")
        newline = "\n".encode(codec)
    except (LookupError, ValueError):
        raise UsageError(f"--encoding must name a text encoding such as utf-8, however: {encoding!r}") from None
    if codec in {"utf-16", "utf-32"}:
        return f"{codec}-be" if beginning.startswith(_BOMS[f"{codec}-be"]) else f"{codec}-le"
    if len(newline) == 1 and b"\0" in beginning:
        raise DataError(
            f"{path}: byte {beginning.index(0)} is 0x00, as in UTF-16: pass --encoding utf-16, or utf-16-le or "
            "utf-16-be where the file has no byte order mark"
        )
    if codec in _BOMS or (newline == b"\n" and not codec.startswith(_STATEFUL)):
        return codec
    raise DataError(f"{path} cannot be read by lines in the encoding {encoding!r}: convert it to utf-8")


def _open(path: Path, named_by: str = "") -> BufferedReader:
    try:
        regular = stat.S_ISREG(path.stat().st_mode)  # before opening: a FIFO would wait for a writer
        file = path.open("rb") if regular else None
    except FileNotFoundError:
        raise DataError(": ".join(filter(None, (f"{path} does not exist", named_by)))) from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    if file is None:
        raise DataError(f"{path} must be a file, however it is a folder or a device")
    return file


def _version(file: BufferedReader) -> tuple[int, int]:
    facts = os.fstat(file.fileno())
    return facts.st_size, facts.st_mtime_ns
