"""A table of candidates: every row keeps its place, with numbers or a reason."""

import contextlib
import csv
import io
import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from features import durable
from features.csv_rows import open_csv
from features.status import Status
from pipeline import predict_table as stage
from pipeline.drawn_dataset import draw_dataset
from pipeline.predictor import Predictor
from tests.command_line import copy_to_work_in, vp

HEADER = ["line", "image", "title", "status", "views", "low_50", "high_50", "low_90", "high_90", "percentile"]
HEADER += ["percentile_in_channel", "factor_age", "factor_channel", "factor_words"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    root = tmp_path_factory.mktemp("table")
    with contextlib.chdir(root):
        draw_dataset(root / "dataset", n_train=90, n_test=6)
        which = ("--head", "linear", "--modalities", "words,channel,age", "--no-diagnostics", "--quiet")
        assert vp("train-heads", *which).exit_code == 0
    return root


@pytest.fixture
def job(trained, tmp_path, monkeypatch):
    """A trained run, and a folder of candidates: a good image, a bad one, a link that leads out, a FIFO."""
    root = copy_to_work_in(trained, tmp_path, monkeypatch)
    Path("new/deeper").mkdir(parents=True)
    Image.new("RGB", (64, 48), (10, 20, 30)).save("new/deeper/a.jpg")
    Image.new("RGB", (64, 48)).save("outside.jpg")
    Path("new/bad.jpg").write_text("<html>")
    Path("new/link.jpg").symlink_to(Path("outside.jpg").resolve())
    os.mkfifo("new/fifo.jpg")
    return root


def write(rows, header=("image", "title", "date", "channel", "other")):
    with Path("new/c.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])


def predicted(*arguments):
    result = vp("predict", "--csv", "new/c.csv", *arguments)
    assert result.exit_code == 0, result.output
    return list(csv.DictReader(io.StringIO(result.stdout))), result


@pytest.mark.parametrize(
    ("cells", "status", "scored"),
    [
        (["deeper/a.jpg", "a title", "2024-01-01"], "ok", True),
        (["deeper/a.jpg", "", ""], "ok", True),
        (["", "a title", ""], "ok", True),
        (["bad.jpg", "a title", ""], "unidentified", True),
        (["bad.jpg", "", ""], "unidentified", False),
        (["gone.jpg", "a title", ""], "missing", True),
        (["gone.jpg", "", "someday"], "missing+bad_date", False),
        (["", "a title", "1066-10-14"], "date_out_of_range", True),
        (["", "a title", "2999-01-01"], "date_out_of_range", True),
        (["", "a title", str(datetime.now(UTC).date() + timedelta(days=300))], "ok", True),
        (["fifo.jpg", "a title", ""], "unreadable", True),
        (["deeper", "a title", ""], "unreadable", True),
        (["link.jpg", "a title", ""], "outside_root", True),
        (["../outside.jpg", "a title", ""], "outside_root", True),
        (["/etc/passwd", "a title", ""], "outside_root", True),
        (["x" * 5000, "a title", ""], "unreadable", True),
        (["", "", ""], "nothing_given", False),
        ([" ", " ", "2020"], "bad_date+nothing_given", False),
    ],
)
def test_a_row_has_numbers_or_a_reason(job, cells, status, scored):
    write([[*cells, "", "x"]])
    ((row,), result) = predicted()
    assert list(row) == HEADER
    assert row["status"] == status
    assert all((cell != "") == scored for name, cell in row.items() if name in HEADER[4:10])
    assert (f"1 of 1 rows have something that cannot be used: 1 {status}" in result.stderr) == (status != "ok")


@given(
    st.lists(st.sampled_from(["..", ".", "deeper", "a.jpg", "link.jpg", "", "~", "\0", "\ud800", "new"]), max_size=6)
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_cell_leads_out_of_the_root(job, parts):
    write([])
    root = Path("new").resolve()
    found = stage._image(open_csv(Path("new/c.csv")), root, "/".join(parts))
    assert found is None or isinstance(found, Status) or (found.is_relative_to(root) and found.is_file())


def test_what_cannot_be_used_counts_as_not_given(job):
    write([["bad.jpg", "a title", "someday", "", ""], ["", "a title", "", "", ""]])
    bad, good = predicted()[0]
    assert [bad[name] for name in HEADER[4:]] == [good[name] for name in HEADER[4:]]


def test_rows_get_what_the_command_line_gives_one_by_one(job):
    title, channel = "How I made a giant cake challenge", "UCtG9dWlBf7xRiO1CpYj6aHv"
    write([["deeper/a.jpg", title, "2024-05-01", channel, ""]])
    ((row,), _) = predicted()
    arguments = ("--image", "new/deeper/a.jpg", "--title", title, "--date", "2024-05-01", "--channel", channel)
    (one,) = json.loads(vp("predict", *arguments, "--json").stdout.splitlines()[-1])["results"]
    assert float(row["views"]) == one["views"]
    assert [float(row["low_90"]), float(row["high_90"])] == one["interval_90"]
    assert float(row["percentile_in_channel"]) == one["percentile_in_channel"]
    assert float(row["factor_words"]) == one["factors"]["words"]


def test_rows_do_not_depend_on_their_chunk(job, monkeypatch):
    rows = [["", f"title {number} of a cake", "", "", ""] for number in range(7)]
    write(rows)
    whole = predicted()[0]
    monkeypatch.setattr(stage, "CHUNK_ROWS", 3)
    assert predicted()[0] == whole
    assert [row["line"] for row in whole] == [str(line) for line in range(2, 9)]


def test_a_wider_root_lets_images_lie_outside_the_folder_of_the_table(job):
    write([["../outside.jpg", "", "", "", ""], ["link.jpg", "", "", "", ""]])
    assert [row["status"] for row in predicted("--root", ".")[0]] == ["ok", "ok"]


def test_cells_from_outside_are_neither_formulas_nor_lines_of_their_own(job):
    titles = ["=cmd()", "+1", "@x", "-Abc", "two\nlines\tand \x0b more", "half \ud83d"]
    with Path("new/c.csv").open("w", newline="", encoding="utf-8", errors="surrogatepass") as file:
        csv.writer(file).writerows([["title"], *([title] for title in titles)])
    shown = [row["title"] for row in predicted()[0]]
    assert shown == ["'=cmd()", "'+1", "'@x", "'-Abc", "two lines and more", "half ?"]
    assert vp("predict", "--csv", "new/c.csv", "--out", "r.csv").exit_code == 0
    written = csv.DictReader(io.StringIO(Path("r.csv").read_text(encoding="utf-8")))
    assert [row["title"] for row in written] == shown


def test_the_results_go_to_a_file_whole_and_to_json_as_numbers(job):
    write([["deeper/a.jpg", "a title", "", "", ""], ["bad.jpg", "", "", "", ""]])
    to_stdout = vp("predict", "--csv", "new/c.csv").stdout
    result = vp("predict", "--csv", "new/c.csv", "--out", "results/r.csv", "--json")
    assert result.stdout.splitlines()[0] == "2 rows, 1 with a fault -> results/r.csv"
    assert Path("results/r.csv").read_text(encoding="utf-8") == to_stdout
    facts = json.loads(result.stdout.splitlines()[-1])
    assert facts["statuses"] == {"ok": 1, "unidentified": 1}
    assert [type(row["views"]) for row in facts["results"]] == [float, type(None)]


@pytest.mark.parametrize("out", ["new/deeper/a.jpg", "new/deeper/../deeper/a.jpg"])
def test_the_results_never_overwrite_a_picture_that_the_table_names(job, out):
    write([["deeper/a.jpg", "a title", "", "", ""]])
    before = Path("new/deeper/a.jpg").read_bytes()
    result = vp("predict", "--csv", "new/c.csv", "--out", out)
    assert (result.exit_code, "which is read" in result.stderr) == (2, True)
    assert Path("new/deeper/a.jpg").read_bytes() == before


def test_a_full_disk_leaves_the_old_results(job, monkeypatch):
    class Full(durable.DiskCalls):
        def write(self, descriptor, data):
            raise OSError(28, "No space left on device")

    write([["", "a title", "", "", ""]])
    Path("r.csv").write_text("old")
    monkeypatch.setattr(durable, "calls", Full())
    assert vp("predict", "--csv", "new/c.csv", "--out", "r.csv").exit_code == 5
    assert Path("r.csv").read_text() == "old"
    assert sorted(path.name for path in Path().glob(".tmp-*")) == []


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "is empty"),
        ("name,date\na,2020\n", "must have a column image or title"),
        ("title,title\na,b\n", "must occur once"),
        ("title,date\nno date\n", "line 2: 1 fields"),
        ('title\n"never closed\n', "never closed"),
    ],
)
def test_a_table_that_is_none_is_refused_with_the_reason(job, content, said):
    Path("new/c.csv").write_text(content)
    result = vp("predict", "--csv", "new/c.csv", "--out", "r.csv")
    assert (result.exit_code, said in result.stderr) == (3, True), result.stderr
    assert not Path("r.csv").exists()


@pytest.mark.parametrize("name", ["nowhere.csv", "new", "new/fifo.jpg"])
def test_what_is_no_file_is_refused(job, name):
    result = vp("predict", "--csv", name)
    assert (result.exit_code, "--csv must name a file" in result.stderr) == (3, True)


def test_a_table_without_rows_has_a_header_alone(job):
    write([])
    assert vp("predict", "--csv", "new/c.csv").stdout == ",".join(HEADER) + "\n"


def test_an_encoding_and_a_delimiter_can_be_named(job):
    Path("new/c.csv").write_bytes("title;date\nKüche;2020-01-01\n".encode("latin-1"))
    rows, _ = predicted("--sep", ";", "--encoding", "latin-1")
    expected = Predictor.open().predict(titles=["Küche"], date=np.datetime64("2020-01-01").item())[0].views
    assert (rows[0]["title"], float(rows[0]["views"])) == ("Küche", expected)
