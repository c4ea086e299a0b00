"""Rows of a CSV file: what is read, where it stands, and what is refused."""

import csv
import io
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.csv_rows import FIELD_LIMIT, CsvFile, CsvRow, open_csv
from features.errors import DataError, UsageError

HEADER = ["id", "title"]
# Cells that have broken readers of CSV files, and characters whose UTF-16 bytes hold 0x0A without being newlines.
CELLS = st.text(st.sampled_from(list("ab01 ,;\t\"'\n\r\0é日ਊĊ਀😀\u202e\x85\u2028")), max_size=12)
TABLES = st.lists(st.lists(CELLS, min_size=2, max_size=2), min_size=1, max_size=6)
UNICODE = ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "gb18030"]


def written(path: Path, rows: list[list[str]], encoding: str = "utf-8", newline: str = "\n") -> Path:
    text = io.StringIO(newline="")
    csv.writer(text, quoting=csv.QUOTE_ALL, lineterminator=newline).writerows([HEADER, *rows])
    path.write_bytes(text.getvalue().encode(encoding))
    return path


def content(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def read_all(path: Path, **options: str) -> tuple[CsvFile, list[list[str]]]:
    file = open_csv(path, **options)
    return file, [row.fields for row in file.rows()]


def spans_of(rows: Iterable[CsvRow]) -> np.ndarray:
    return np.array([(row.start, row.end) for row in rows])


@settings(max_examples=60, deadline=None)
@given(rows=TABLES, encoding=st.sampled_from(UNICODE), newline=st.sampled_from(["\n", "\r\n"]))
def test_rows_are_read_back_as_written_and_again_from_their_bytes(tmp_path_factory, rows, encoding, newline):
    path = written(tmp_path_factory.mktemp("csv") / "t.csv", rows, encoding, newline)
    file = open_csv(path, encoding=encoding)
    found = list(file.rows())
    assert file.header == ("id", "title")
    assert [row.fields for row in found] == rows
    assert list(file.fields_at(spans_of(reversed(found)))) == rows[::-1]
    assert [row.end for row in found] == [*(row.start for row in found[1:]), path.stat().st_size]
    concrete = path.read_bytes()
    for row in found:
        assert row.line == 1 + concrete[: row.start].decode(encoding).count("\n")


@settings(max_examples=60, deadline=None)
@given(body=st.text(st.sampled_from(list('ab,"\n\r')), max_size=20))
def test_unquoted_text_is_read_as_the_standard_library_reads_it(tmp_path_factory, body):
    path = content(tmp_path_factory.mktemp("csv") / "t.csv", f"id,title\n{body}")
    try:
        with path.open(newline="\n") as text:
            expected = [row for row in csv.reader(text, strict=True) if row]
    except csv.Error:
        expected = None
    if expected is None or any(len(row) != 2 for row in expected):
        with pytest.raises(DataError, match=r"t\.csv, line \d+: "):
            read_all(path)
    else:
        assert read_all(path)[1] == expected[1:]


def test_a_byte_order_mark_is_no_part_of_the_first_name_even_before_a_quote(tmp_path):
    file, rows = read_all(content(tmp_path / "t.csv", b'\xef\xbb\xbf"id", title \r\n"1","x"\r\n'))
    assert file.header == ("id", "title")
    assert rows == [["1", "x"]]


def test_blank_lines_are_passed_over_and_lines_still_counted(tmp_path):
    file = open_csv(content(tmp_path / "t.csv", '\nid,title\n\n\r\n1,"a\nb"\n\n2,c'))
    assert [(row.fields, row.line) for row in file.rows()] == [(["1", "a\nb"], 5), (["2", "c"], 8)]


def test_a_carriage_return_inside_quotes_belongs_to_the_text(tmp_path):
    assert read_all(content(tmp_path / "t.csv", '"id","title"\r\n"1","a\rb"\r\n'))[1] == [["1", "a\rb"]]


def test_a_doubled_quote_is_one_quote(tmp_path):
    assert read_all(content(tmp_path / "t.csv", 'id,title\n1,"say ""hi"""\n'))[1] == [["1", 'say "hi"']]


@pytest.mark.parametrize(
    ("body", "line", "words"),
    [
        ("1,a\n2,b,c\n", 3, "3 fields, however the header has 2"),
        ('1,"a\nb"\n2\n', 4, "1 fields, however the header has 2"),
        ('1,a\n2,"b\n3,c\n', 3, "a quote is opened in this row and never closed"),
        ('1,"a" b\n', 2, "text follows a closing quote"),
        ("1,a\rb\n", 2, "a carriage return stands outside quotes"),
    ],
)
def test_a_malformed_row_is_refused_with_the_line_where_it_begins(tmp_path, body, line, words):
    with pytest.raises(DataError) as refused:
        read_all(content(tmp_path / "t.csv", "id,title\n" + body))
    assert f"t.csv, line {line}: {words}" in str(refused.value)


def test_a_quote_that_is_never_closed_does_not_fill_the_memory(tmp_path):
    path = content(tmp_path / "t.csv", 'id,title\n1,"' + "a b c d\n" * (FIELD_LIMIT // 8 + 1))
    with pytest.raises(DataError, match=r"line 2: a field longer than 16,777,216 characters"):
        read_all(path)


def test_a_field_beyond_the_default_limit_of_the_csv_module_is_read(tmp_path):
    assert read_all(content(tmp_path / "t.csv", f"id,title\n1,{'x' * 200_000}\n"))[1] == [["1", "x" * 200_000]]


def test_other_bytes_than_utf_8_are_refused_with_their_offset(tmp_path):
    path = content(tmp_path / "t.csv", 'id,title\n1,"a\ncafé"\n'.encode("latin-1"))
    with pytest.raises(
        DataError, match=r"line 3: the bytes must be utf-8, however byte 17 is 0xe9; .*--encoding latin-1"
    ):
        read_all(path)
    assert read_all(path, encoding="latin-1")[1] == [["1", "a\ncafé"]]


@pytest.mark.parametrize(("encoding", "offset"), [("utf-16", 3), ("utf-16-le", 1), ("utf-16-be", 0)])
def test_utf_16_is_recognised_with_and_without_its_mark(tmp_path, encoding, offset):
    path = written(tmp_path / "t.csv", [["1", "a"]], encoding)
    with pytest.raises(DataError, match=f"byte {offset} is 0x00, as in UTF-16: pass --encoding utf-16"):
        open_csv(path)


def test_a_utf_16_file_cut_inside_a_character_is_refused(tmp_path):
    path = content(tmp_path / "t.csv", "id,title\n1,a".encode("utf-16")[:-1])
    with pytest.raises(DataError, match="line 2: the bytes must be utf-16-le"):
        read_all(path, encoding="utf-16")


def test_half_of_a_surrogate_pair_is_read_not_refused(tmp_path):
    path = content(tmp_path / "t.csv", b"id,title\n1,a\xed\xa0\xbdb\n")
    file = open_csv(path)
    (row,) = file.rows()
    assert row.fields == ["1", "a\ud83db"]
    assert list(file.fields_at(spans_of([row]))) == [["1", "a\ud83db"]]


@pytest.mark.parametrize("encoding", ["iso2022_jp", "utf-7", "hz", "cp037", "unicode_escape"])
def test_an_encoding_that_cannot_be_read_from_the_middle_must_be_converted(tmp_path, encoding):
    with pytest.raises(DataError, match="convert it to utf-8"):
        open_csv(content(tmp_path / "t.csv", "id,title\n"), encoding=encoding)


@pytest.mark.parametrize("encoding", ["klingon", "rot13", "hex", "a\0b", ""])
def test_an_encoding_that_does_not_exist_is_a_wrong_option(tmp_path, encoding):
    with pytest.raises(UsageError, match="--encoding must name a text encoding"):
        open_csv(content(tmp_path / "t.csv", "id,title\n"), encoding=encoding)


@pytest.mark.parametrize("sep", ["", ";;", "\n", '"'])
def test_a_delimiter_is_one_character_that_is_no_quote_and_no_newline(tmp_path, sep):
    with pytest.raises(UsageError, match="--sep must be one character"):
        open_csv(content(tmp_path / "t.csv", "id,title\n"), sep=sep)


@pytest.mark.parametrize("sep", ["\t", "\\t"])
def test_a_tab_can_be_given_as_a_shell_passes_it(tmp_path, sep):
    assert read_all(content(tmp_path / "t.csv", "id\ttitle\n1\ta,b\n"), sep=sep)[1] == [["1", "a,b"]]


def test_a_quoted_header_with_another_delimiter_suggests_it(tmp_path):
    with pytest.raises(DataError, match=r"line 1: .*the delimiter is ';'\? pass --sep ';'"):
        open_csv(content(tmp_path / "t.csv", '"id";"title"\n'))


@pytest.mark.parametrize("text", ["", "\n\n", b"\xef\xbb\xbf"])
def test_an_empty_file_is_refused(tmp_path, text):
    with pytest.raises(DataError, match="is empty"):
        open_csv(content(tmp_path / "t.csv", text))


@pytest.mark.parametrize(("named_by", "said"), [("", "exist"), ("--truth names it", "exist: --truth names it")])
def test_a_missing_file_is_told_with_the_option_that_names_it(tmp_path, named_by, said):
    with pytest.raises(DataError, match=rf"none\.csv does not {said}$"):
        open_csv(tmp_path / "none.csv", named_by=named_by)


@pytest.mark.parametrize("text", ["id,title\r1,a | b\r2,c; d\r", 'id,title\r1,"a | b"\r'])
def test_line_ends_of_old_macs_are_named_and_no_delimiter_is_guessed(tmp_path, text):
    with pytest.raises(DataError, match=r"line 1: .*lines must end in LF or CRLF \(.*\)$"):
        open_csv(content(tmp_path / "t.csv", text))


def test_only_a_regular_file_is_opened(tmp_path):
    os.mkfifo(tmp_path / "fifo.csv")
    for path in (tmp_path, tmp_path / "fifo.csv"):
        with pytest.raises(DataError, match="must be a file"):
            open_csv(path)


def test_a_file_that_cannot_be_reached_is_bad_data_not_a_bug(tmp_path):
    (tmp_path / "loop.csv").symlink_to("loop.csv")
    with pytest.raises(DataError, match=r"loop\.csv cannot be read: "):
        open_csv(tmp_path / "loop.csv")


def test_a_file_that_changed_is_not_read_again(tmp_path):
    path = content(tmp_path / "t.csv", "id,title\n1,a\n")
    file = open_csv(path)
    spans = spans_of(file.rows())
    content(path, "id,title\n1,aa\n")
    for read in (lambda: list(file.rows()), lambda: list(file.fields_at(spans))):
        with pytest.raises(DataError, match="has changed since it was read"):
            read()


@pytest.mark.parametrize("row", [b'1,"\xff', b"1,2,3", b'"a"b,', b"\n\n\n\n\n"])
def test_a_change_that_keeps_size_and_time_is_found_in_the_row(tmp_path, row):
    path = content(tmp_path / "t.csv", b"id,title\n" + b"x" * (len(row) - 1) + b",")
    file, facts = open_csv(path), path.stat()
    content(path, b"id,title\n" + row)
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    with pytest.raises(DataError, match="has changed since it was read"):
        list(file.fields_at(np.array([[9, 9 + len(row)]])))
