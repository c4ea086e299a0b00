"""`vp score`: ids exactly as written, every number checked, the error as anybody would compute it."""

import math
import random
from pathlib import Path

import pytest

from features.errors import DataError, UsageError
from features.progress import Silent
from pipeline.config import ScoreConfig
from pipeline.score import score

IDS = ["NA", "null", "nan", "007", "7", "7.0", "-Abc", "=1+1", "", " x", "Ünï", "a,b", 'say "hi"', "two\nlines"]


class Told(Silent):
    def __init__(self):
        self.warnings = []

    def warn(self, text):
        self.warnings.append(text)


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Two small files that agree; a test changes one of them."""
    monkeypatch.chdir(tmp_path)
    for name in ("s.csv", "t.csv"):
        Path(name).write_text("id,views\na,1\nb,20\nc,300\n")


def scored(progress=None):
    return score(ScoreConfig(submission=Path("s.csv"), truth=Path("t.csv")), progress or Silent()).facts


def refused(match):
    return pytest.raises(DataError, match=match)


def quoted(cell):
    return '"' + str(cell).replace('"', '""') + '"'


def write(name, header, rows):
    lines = [",".join(map(quoted, row)) for row in [header, *rows]]
    Path(name).write_text("\n".join(lines) + "\n", encoding="utf-8", newline="")


@pytest.mark.parametrize("seed", range(5))
def test_the_error_is_the_mean_of_squared_differences_of_log1p_whatever_the_order(files, seed):
    rng = random.Random(seed)
    predicted = {id_: rng.choice([0, rng.random(), 10 ** rng.uniform(0, 9)]) for id_ in IDS}
    true = {id_: rng.randrange(10**6) for id_ in rng.sample(IDS, len(IDS))}
    write("s.csv", ("ID", "views"), predicted.items())
    write("t.csv", ("id", "views"), true.items())
    squares = [(math.log1p(predicted[id_]) - math.log1p(true[id_])) ** 2 for id_ in IDS]
    facts = scored()
    assert facts["rows"] == len(IDS)
    assert facts["msle"] == pytest.approx(sum(squares) / len(squares), rel=1e-12)


def test_a_constant_is_scored_for_comparison(files):
    Path("t.csv").write_text(f"id,views\na,0\nb,{math.expm1(2)}\nc,{math.expm1(4)}\n")
    assert scored()["msle_constant"] == pytest.approx((4 + 0 + 4) / 3)


@pytest.mark.parametrize(("written", "mistaken"), [("007", "7"), ("NA", ""), ("1.0", "1"), ("a ", "a"), ("Abc", "abc")])
def test_ids_that_only_look_alike_are_not_the_same(files, written, mistaken):
    write("t.csv", ("id", "views"), [(written, 1)])
    write("s.csv", ("id", "views"), [(mistaken, 1)])
    with refused(rf"^s\.csv lacks 1 ids of t\.csv: {written}$"):
        scored()


def test_missing_ids_are_counted_and_the_first_ones_named(files):
    write("t.csv", ("id", "views"), [(f"v{number}", 1) for number in range(9)])
    write("s.csv", ("id", "views"), [("v3", 1)])
    with refused(r"lacks 8 ids of t\.csv: v0, v1, v2, v4, v5$"):
        scored()


def test_extra_ids_are_told_and_do_not_count(files):
    before = scored()
    with Path("s.csv").open("a") as file:
        file.write("extra,999999\nNA,5\n")
    told = Told()
    assert scored(told) == before
    assert told.warnings == ["2 ids of s.csv have no true views and do not count: NA, extra"]


@pytest.mark.parametrize("name", ["s.csv", "t.csv"])
def test_an_id_that_occurs_twice_is_refused(files, name):
    with Path(name).open("a") as file:
        file.write("b,20\n")
    with refused(rf"^{name}, line 5: ids must occur once, however 'b' occurs again$"):
        scored()


@pytest.mark.parametrize("name", ["s.csv", "t.csv"])
@pytest.mark.parametrize("cell", ["", "-1", "-0.001", "nan", "NA", "inf", "1e999", "many", '"1,000"', "0x10", "True"])
def test_what_is_no_number_of_views_is_refused_with_its_row(files, name, cell):
    Path(name).write_text(f"id,views\na,1\nb,{cell}\nc,300\n")
    with refused(rf"^{name}, line 3: views must be a number of 0 or more, however: "):
        scored()


def test_the_case_of_the_header_does_not_matter(files):
    expected = scored()
    Path("s.csv").write_text("ID,Views\na,1\nb,20\nc,300\n")
    Path("t.csv").write_text("Id,VIEWS\na,1\nb,20\nc,300\n")
    assert scored() == expected


def test_the_second_column_of_a_submission_may_have_any_name(files):
    expected = scored()
    Path("s.csv").write_text("ID,TARGET\na,1\nb,20\nc,300\n")
    assert scored() == expected


def test_the_truth_may_have_more_columns_in_any_order(files):
    expected = scored()
    Path("t.csv").write_text('title,views,id\n"x, y",1,a\n"2\nlines",20,b\n,300,c\n')
    assert scored() == expected


def test_a_byte_order_mark_is_no_part_of_the_header(files):
    expected = scored()
    Path("s.csv").write_bytes(b"\xef\xbb\xbf" + Path("s.csv").read_bytes())
    assert scored() == expected


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"id,views\n", "must hold at least one row"),
        (b"id,views\na,1\nb,2,3\n", "line 3: 3 fields, however the header has 2"),
        (b'id,views\n"a,1\n', "line 2: a quote is opened"),
        (b"id,views\n\xff,1\n", "line 2: the bytes must be utf-8"),
        (b"id;views\na;1\n", "it has 'id;views'"),
        (b"views,id\n1,a\n20,b\n300,c\nx,d\n", "however: 'x'|two columns, first id, then views"),
        (b"id,views\na\nb,20\nc,300\n", "line 2: 1 fields, however the header has 2"),
    ],
)
@pytest.mark.parametrize("name", ["s.csv", "t.csv"])
def test_what_is_no_table_of_ids_and_views_is_refused(files, name, content, said):
    Path(name).write_bytes(content)
    with refused(f"^{name}.*{said}"):
        scored()


def test_the_truth_needs_its_column_of_views(files):
    Path("t.csv").write_text("id,likes\na,1\n")
    with refused(r"^t\.csv needs the columns id and views, it has 'id', 'likes'$"):
        scored()


@pytest.mark.parametrize(("name", "option"), [("s.csv", "--submission"), ("t.csv", "--truth")])
def test_a_file_that_is_not_there_is_named_with_its_option(files, name, option):
    Path(name).unlink()
    with refused(f"^{name} does not exist: {option} names it, relative to the current folder$"):
        scored()


@pytest.mark.parametrize("given", [{"submission": Path("s.csv")}, {"truth": Path("t.csv")}])
def test_both_files_must_be_given(files, given):
    with pytest.raises(UsageError, match="give both files"):
        score(ScoreConfig(**given), Silent())


def test_a_submission_of_one_or_three_columns_is_refused(files):
    for header, row in (("id", "a"), ("id,views,year", "a,1,2020")):
        Path("s.csv").write_text(f"{header}\n{row}\n")
        with refused(r"^s\.csv needs two columns, first id, then views"):
            scored()


def test_a_submission_with_its_columns_turned_is_refused_and_not_scored_on_its_ids(files):
    Path("s.csv").write_text("views,id\n1,a\n20,b\n300,c\n")
    with refused(r"^s\.csv needs two columns, first id, then views, it has 'views', 'id'"):
        scored()


def test_a_submission_with_the_header_of_any_sample_can_be_scored(files):
    expected = scored()
    Path("s.csv").write_text("video_id,TARGET\na,1\nb,20\nc,300\n")
    assert scored() == expected
