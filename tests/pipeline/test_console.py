"""The terminal: a line per tenth of the work, nothing animated where nobody watches, nothing that bites."""

import contextlib
import io
import itertools
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.console import Console


@pytest.fixture(autouse=True, scope="module")
def no_opinion_of_the_environment():
    """Variables by which whoever runs the tests declares every output a terminal, or none."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
            patch.delenv(name, raising=False)
        patch.setenv("TERM", "xterm")
        patch.setenv("COLUMNS", "100")
        yield


@pytest.fixture
def clock(monkeypatch):
    """A clock that a test turns by hand."""
    clock = SimpleNamespace(seconds=1000.0)
    monkeypatch.setattr("pipeline.console.time", SimpleNamespace(monotonic=lambda: clock.seconds))
    return clock


class Terminal(io.StringIO):
    """Somebody watches."""

    def isatty(self):
        return True


def printed_by(act, stderr=None, **options):
    """What reaches stderr; without a terminal it is a file."""
    stderr = stderr or io.StringIO()
    with contextlib.redirect_stderr(stderr):
        act(Console(**options))
    return stderr.getvalue()


def test_a_line_tells_how_far_how_fast_and_how_long(clock, capsys):
    console = Console()
    console.begin("encoding", 40, "rows")
    for _ in range(8):
        clock.seconds += 0.5
        console.advance(1)
    assert capsys.readouterr().err.splitlines() == [
        "encoding: 4/40 rows, 2.0/s (mean 2.0/s), 0:00:18 left",
        "encoding: 8/40 rows, 2.0/s (mean 2.0/s), 0:00:16 left",
    ]


def test_the_rate_is_that_of_the_last_five_seconds_and_the_time_left_that_of_the_mean(clock, capsys):
    console = Console()
    console.begin("encoding", 100, "rows")
    for _ in range(9):
        clock.seconds += 1
        console.advance(1)
    clock.seconds += 1
    console.advance(11)  # 20 rows in 10 s; 16 of them in the last 5 s
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "encoding: 20/100 rows, 3.0/s (mean 2.0/s), 0:00:40 left"


def test_a_step_that_takes_longer_than_five_seconds_has_a_rate_too(clock, capsys):
    console = Console()
    console.begin("encoding", 5000, "rows")
    for seconds in (100, 25):
        clock.seconds += seconds
        console.advance(500)
    assert capsys.readouterr().err.splitlines() == [
        "encoding: 500/5000 rows, 5.0/s (mean 5.0/s), 0:15:00 left",
        "encoding: 1000/5000 rows, 20.0/s (mean 8.0/s), 0:08:20 left",
    ]


def test_days_are_told_in_hours(clock, capsys):
    console = Console()
    console.begin("encoding", 100, "rows")
    clock.seconds += 3600
    console.advance(10)
    clock.seconds += 360_000
    console.advance(10)
    lines = capsys.readouterr().err.splitlines()
    assert [line.rpartition(", ")[2] for line in lines] == ["9:00:00 left", "404:00:00 left"]


def test_bad_rows_add_up_and_the_bottleneck_is_named(clock, capsys):
    console = Console()
    console.begin("encoding", 10, "rows")
    clock.seconds += 1
    console.advance(1, bad=1)
    clock.seconds += 1
    console.advance(1, bad=2, bottleneck="decode")
    assert capsys.readouterr().err.splitlines() == [
        "encoding: 1/10 rows, 1.0/s (mean 1.0/s), 1 bad, 0:00:09 left",
        "encoding: 2/10 rows, 1.0/s (mean 1.0/s), 3 bad, most time in: decode, 0:00:08 left",
    ]


def test_several_devices_are_told_each_with_its_own_rate(clock, capsys):
    console = Console()
    console.begin("encoding", 40, "rows")
    clock.seconds += 2
    console.advance(8, device="cuda:1")
    console.advance(4, device="cuda:0")
    console.advance(0, bad=1)
    assert capsys.readouterr().err.splitlines()[-1] == (
        "encoding: 12/40 rows, 6.0/s (mean 6.0/s), cuda:0 2.0/s, cuda:1 4.0/s, 0:00:05 left"
    )


def test_what_is_lost_again_is_counted_back_and_its_tenths_are_not_told_twice(clock, capsys):
    console = Console()
    console.begin("encoding", 10, "rows")
    clock.seconds += 1
    for units in (2, -2, 2, 1):
        console.advance(units)
    told = [line.partition(",")[0] for line in capsys.readouterr().err.splitlines()]
    assert told == ["encoding: 2/10 rows", "encoding: 3/10 rows"]


def test_the_next_piece_of_work_begins_at_nothing(clock, capsys):
    console = Console()
    for label in ("image", "text"):
        console.begin(label, 4, "rows")
        clock.seconds += 2
        console.advance(4, bad=1)
        console.end()
    assert capsys.readouterr().err.splitlines() == [
        f"{label}: 4/4 rows, 2.0/s (mean 2.0/s), 1 bad, 0:00:00 left" for label in ("image", "text")
    ]


@settings(deadline=None, derandomize=True, max_examples=50)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=40))
def test_there_is_a_line_whenever_another_tenth_is_done(steps):
    total = max(sum(steps), 1)

    def work(console):
        console.begin("encoding", total, "rows")
        for step in steps:
            console.advance(step)

    told = [line.split()[1] for line in printed_by(work).splitlines()]
    done = [sum(steps[:count]) for count in range(len(steps) + 1)]
    passed = [now for before, now in itertools.pairwise(done) if before * 10 // total < now * 10 // total]
    assert told == [f"{rows}/{total}" for rows in passed]
    assert len(told) <= 10


def test_work_that_is_nothing_is_no_trouble(clock, capsys):
    console = Console()
    console.begin("encoding", 0, "rows")
    console.advance(0)
    console.end()
    console.end()
    console.advance(1)
    assert capsys.readouterr().err == ""


def test_work_of_unknown_size_is_no_flood_of_lines():
    def work(console):
        console.begin("downloading", 0, "bytes")
        for _ in range(100):
            console.advance(1)

    assert len(printed_by(work).splitlines()) <= 10


def work_ten(console):
    console.begin("encoding", 10, "rows")
    for _ in range(10):
        console.advance(1)
    console.end()
    console.note("a note")


def test_nothing_is_animated_where_nobody_watches():
    printed = printed_by(work_ten)
    assert len(printed.splitlines()) == 11
    assert printed.replace("\n", "").isprintable()


def test_quiet_leaves_warnings_errors_and_results(capsys):
    console = Console(quiet=True)
    work_ten(console)
    console.warn("look at this")
    console.error("this is why")
    console.data(["result"])
    console.json({"rows": 1})
    assert capsys.readouterr() == ('result\n{"rows": 1}\n', "warning: look at this\nerror: this is why\n")


def test_a_terminal_gets_a_bar_that_goes_away_and_its_cursor_back():
    shown = printed_by(work_ten, Terminal())
    assert "10/10" in shown
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h") == 1
    assert shown.endswith("\x1b[2Ka note\n")


def test_a_note_does_not_tear_the_bar():
    def work(console):
        console.begin("encoding", 10, "rows")
        console.note("a note")
        console.end()

    assert "\x1b[2Ka note\n" in printed_by(work, Terminal())


def test_work_that_begins_anew_before_it_ended_gives_the_cursor_back_too():
    def work(console):
        console.begin("downloading", 5, "bytes")
        console.begin("downloading", 10, "bytes")
        console.end()

    shown = printed_by(work, Terminal())
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h") == 2


def test_a_terminal_that_cannot_animate_gets_lines(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    printed = printed_by(work_ten, Terminal())
    assert len(printed.splitlines()) == 11
    assert printed.replace("\n", "").isprintable()


def test_quiet_animates_nothing_on_a_terminal_either():
    assert printed_by(work_ten, Terminal(), quiet=True) == ""


HOSTILE = "\x1b]0;owned\x07\x1b[31mred\r\n\x9b2J\u202etxt\udcff\x00"
HARMLESS = r"\x1b]0;owned\x07\x1b[31mred\r\n\x9b2J\u202etxt\udcff\x00"


@pytest.mark.parametrize(("say", "prefix"), [("note", ""), ("warn", "warning: "), ("error", "error: ")])
def test_control_characters_are_shown_not_obeyed(capsys, say, prefix):
    getattr(Console(), say)(HOSTILE)
    assert capsys.readouterr().err == f"{prefix}{HARMLESS}\n"


def test_control_characters_in_results_and_labels_are_shown_not_obeyed(clock, capsys):
    console = Console()
    console.data([HOSTILE, ""])
    console.begin(HOSTILE, 1, "rows")
    clock.seconds += 1
    console.advance(1)
    out, err = capsys.readouterr()
    assert out == f"{HARMLESS}\n\n"
    assert err == f"{HARMLESS}: 1/1 rows, 1.0/s (mean 1.0/s), 0:00:00 left\n"


@pytest.mark.parametrize(
    "text", ["[bold red]title[/bold red]", "[/]", "[link=file:///etc]x[/link]", "{0} %s \\[x]", ":smile:"]
)
def test_markup_is_text(clock, capsys, text):
    console = Console()
    console.note(text)
    console.data([text])
    console.begin(text, 1, "rows")
    clock.seconds += 1
    console.advance(1)
    out, err = capsys.readouterr()
    assert out == f"{text}\n"
    assert err == f"{text}\n{text}: 1/1 rows, 1.0/s (mean 1.0/s), 0:00:00 left\n"


@pytest.mark.parametrize("label", ["[/x]", "[red]x", ":smile:"])
def test_markup_is_text_on_a_terminal_too(label):
    def work(console):
        console.begin(label, 10, "rows")
        console.advance(1, bottleneck="[/b]")
        console.end()

    shown = printed_by(work, Terminal())
    assert label in shown
    assert "most time in: [/b]" in shown


@settings(deadline=None, derandomize=True)
@given(st.text())
def test_whatever_is_said_is_one_line_that_can_be_printed(text):
    printed = printed_by(lambda console: console.note(text))
    assert printed.endswith("\n")
    assert printed[:-1].isprintable()
    assert printed[:-1] == text or not text.isprintable()


def test_a_long_message_is_not_broken_into_lines(capsys):
    message = "a path that somebody copies from here " * 20
    Console().error(message)
    assert capsys.readouterr().err == f"error: {message}\n"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=4,
)


@settings(deadline=None, derandomize=True, max_examples=30)
@given(st.dictionaries(st.text(), JSON, max_size=3))
def test_json_is_one_line_that_says_the_same(facts):
    stdout = io.StringIO()
    with contextlib.redirect_stdout(stdout):
        Console().json(facts)
    line, end, rest = stdout.getvalue().partition("\n")
    assert (json.loads(line), end, rest) == (facts, "\n", "")


@pytest.mark.parametrize("text", ["\udcff", "\x9b31m", "\u2028", "\u202e", "\x7f"])
def test_json_holds_nothing_that_a_terminal_obeys_or_a_file_cannot_hold(text):
    stdout = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", newline="")
    with contextlib.redirect_stdout(stdout):
        Console().json({"path": text})
    line = stdout.buffer.getvalue().decode("utf-8")
    assert json.loads(line) == {"path": text}
    assert line.removesuffix("\n").isprintable()


def test_json_takes_paths_as_text(capsys):
    Console().json({"path": Path("a/b")})
    assert capsys.readouterr().out == '{"path": "a/b"}\n'
