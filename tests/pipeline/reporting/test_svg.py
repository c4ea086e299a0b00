"""Drawings that belong into a page: its colours, its letters, nobody else's names or addresses."""

import re
import xml.etree.ElementTree as ET
from math import log

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.reporting.svg import ACCENT, INK, SERIES, drawn, nice_factors, series_colour


def sketch(axes):
    axes.plot([0, 1], [0, 1], color=ACCENT, marker="o")
    axes.fill_between([0, 1], [0, 0], [1, 2], color=series_colour(3), alpha=0.2)
    axes.set(xlabel="$a < b$", title="50 % & more")


@pytest.fixture(scope="module")
def svg():
    return drawn("one", "A line", sketch)


def test_colours_are_those_of_the_page(svg):
    used = set(re.findall(r"#[0-9a-f]{6}", svg)) - {"#000000"}
    assert used == set()
    assert {"var(--accent)", "var(--series-3)", "var(--line)", "var(--muted)"} <= set(re.findall(r"var\([^)]*\)", svg))


def test_nothing_is_white_so_that_it_fits_on_a_dark_page(svg):
    assert "#fff" not in svg
    assert "white" not in svg


def test_letters_are_text_in_the_font_of_the_page_and_dollars_are_dollars(svg):
    assert "$a &lt; b$" in svg
    assert "50 % &amp; more" in svg
    assert "DejaVu" not in svg
    assert "var(--font)" in svg


def test_no_address_no_date_no_style_for_the_rest_of_the_page(svg):
    assert "http" not in svg
    assert "<style" not in svg
    assert "metadata" not in svg
    assert "Matplotlib" not in svg


def test_it_is_well_formed_and_says_what_it_is(svg):
    root = ET.fromstring(svg.replace("<svg ", '<svg xmlns:xlink="x" ', 1))
    assert (root.tag, root.get("role"), root.get("aria-label")) == ("svg", "img", "A line")
    assert root.get("width") is None


def test_ids_are_told_apart_by_the_name_of_the_drawing(svg):
    other = drawn("two", "A line", sketch)
    ids = [set(re.findall(r' id="([^"]*)"', text)) for text in (svg, other)]
    assert ids[0]
    assert not ids[0] & ids[1]
    assert {target for target in re.findall(r"#(\w+)[\")]", svg) if target in ids[0]} == ids[0]


def test_equal_drawings_give_equal_bytes_whatever_the_user_has_set(svg):
    import matplotlib as mpl

    with mpl.rc_context({"font.size": 30, "axes.facecolor": "red", "svg.fonttype": "path"}):
        assert drawn("one", "A line", sketch) == svg


def test_every_series_has_a_colour_of_its_own():
    assert len({series_colour(index) for index in range(SERIES)} | {INK, ACCENT}) == SERIES + 2
    assert series_colour(SERIES) == series_colour(0)


@settings(deadline=None, derandomize=True, max_examples=200)
@given(st.floats(-20, 20), st.floats(0.5, 40))
def test_ticks_are_few_in_order_and_inside(low, size):
    found = nice_factors(low, low + size)
    assert len(found) <= 7
    assert found == sorted(found)
    assert all(low - 1e-9 <= log(value) <= low + size + 1e-9 for value in found)
    assert found or size < log(10)
