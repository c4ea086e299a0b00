"""Numbers for people; and titles, which come from anybody, made inert."""

import html
import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heads.targets import Target
from pipeline.reporting.words import NBSP, Words, factor, flat, percent, plain_text, said, short

COUNTS, NUMBERS = Words(Target("log1p")), Words(Target("none"))


@settings(deadline=None, derandomize=True, max_examples=200)
@given(st.text())
def test_no_character_of_a_title_acts(title):
    shown = plain_text(title)
    assert all(unicodedata.category(char) not in {"Cc", "Cs", "Zl", "Zp"} for char in shown)
    assert not set(shown) & set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f\u061c\ufeff")
    assert len(shown) <= 160
    assert shown == shown.strip()


@pytest.mark.parametrize(
    ("title", "shown"),
    [
        ("\x1b[31mred\x1b[0m", "red"),
        ("two\r\nlines\ttab", "two lines tab"),
        ("a\u202egnp.exe\u2069", "a gnp.exe"),
        ("&lt;script&gt;", "<script>"),
        ("নতুন ক্\u200dষ", "নতুন ক্\u200dষ"),
        ("👩\u200d🚀", "👩\u200d🚀"),
        ("", ""),
    ],
)
def test_a_title_keeps_its_words(title, shown):
    assert plain_text(title) == unicodedata.normalize("NFC", shown)


def test_a_long_title_is_cut_with_a_sign():
    assert plain_text("word " * 100, limit=12) == "word word w…"


@settings(deadline=None, derandomize=True, max_examples=200)
@given(st.floats(1, 1e15))
def test_a_short_number_is_right_within_five_per_cent(number):
    text = short(number).replace(NBSP, " ")
    digits, _, unit = text.partition(" ")
    told = float(digits) * {"": 1, "K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}[unit]
    assert told == pytest.approx(number, rel=0.05, abs=0.5)
    assert len(digits) <= 4


@settings(deadline=None, derandomize=True, max_examples=200)
@given(st.floats(-9, 9))
def test_a_factor_is_right_within_six_per_cent(log_factor):
    text = factor(np.exp(log_factor))
    told = float(text[1:].replace(",", ""))
    assert (1 / told if text[0] == "÷" else told) == pytest.approx(np.exp(log_factor), rel=0.06)


def test_views_come_back_from_the_log_scale():
    assert COUNTS.views(np.log1p(1_200_000)) == f"1.2{NBSP}M"
    assert COUNTS.views(-3.0) == "0"
    assert NUMBERS.views(-3.0) == "−3"


def test_a_miss_says_which_way():
    assert COUNTS.miss(np.log(2)).replace(NBSP, " ") == "2.0 times too high"
    assert NUMBERS.miss(-0.5) == "0.5 too low"


def test_an_absurd_error_is_no_overflow():
    assert COUNTS.typical(1e6).startswith("a factor of")
    assert factor(0.0) == "÷∞"


def test_a_negative_share_has_a_minus_and_no_share_a_dash():
    assert percent(-0.031) == f"−3{NBSP}%"
    assert percent(None) == "–"


def test_nested_facts_become_lines_that_lose_nothing():
    assert flat({"a": {"b_c": {"d": 1}}, "e": {}, "f": [{"g": 2.0}]}) == [
        ("a b c d", "1"),
        ("e", "–"),
        ("f", "g 2"),
    ]
    assert said("") == "–"
    assert html.escape(said("<b>")) == "&lt;b&gt;"
