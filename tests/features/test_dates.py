"""Dates and years of a CSV file, and the ages that follow."""

from datetime import UTC, date, datetime, timedelta

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features import dates
from features.dates import (
    CLOCK_FLOOR,
    NOT_A_TIME,
    DateReader,
    Published,
    ages_years,
    calendar_columns,
    calendar_year,
    newest,
    today_utc,
    utc_second,
)

TODAY = date(2025, 6, 1)
NOTHING = Published(NOT_A_TIME, 0, "")


def read(date_text: str, year_text: str = "") -> Published:
    return DateReader(TODAY).read(date_text, year_text)


def as_table(moments: list[datetime | None], years: list[int]) -> tuple[np.ndarray, np.ndarray]:
    stamps = ["NaT" if moment is None else moment.isoformat() for moment in moments]
    published = np.array(stamps, dtype="datetime64[s]")
    return published, calendar_year(published, np.array(years, dtype=np.int64))


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2025-03-01", "2025-03-01T00:00:00"),
        ("2025-03-01T18:20:14Z", "2025-03-01T18:20:14"),
        ("2025-03-01T18:20:14.987Z", "2025-03-01T18:20:14"),
        ("2025-03-01T18:20:14", "2025-03-01T18:20:14"),
        ("2020-12-15 05:00:01+00:00", "2020-12-15T05:00:01"),
        ("2020-12-15 05:00:01+05:30", "2020-12-14T23:30:01"),
        (" 2020-12-15 ", "2020-12-15T00:00:00"),
    ],
)
def test_the_shapes_of_a_date_are_read_as_utc(text, moment):
    assert np.datetime64(read(text).second, "s") == np.datetime64(moment)


@pytest.mark.parametrize("text", ["March 2020", "2020-13-01", "01/02/2020", "2020", "1e9", "nan", "2020-3-1", "\ud800"])
def test_what_is_no_date_is_missing_and_named(text):
    assert read(text) == NOTHING._replace(fault="bad_date")


@pytest.mark.parametrize("text", ["1900-01-01", "1970-01-01", "1989-12-31T23:59:59Z", "2025-06-03", "9999-12-31"])
def test_a_date_that_cannot_be_is_missing_and_named(text):
    assert read(text) == NOTHING._replace(fault="date_out_of_range")


@pytest.mark.parametrize("text", ["1990-01-01", "2025-06-02T23:59:59Z"])
def test_the_ends_of_the_range_are_believed(text):
    assert read(text) == Published(utc_second(text), 0, "")


@pytest.mark.parametrize(
    ("text", "year", "fault"),
    [
        ("2021", 2021, ""),
        ("2021.0", 2021, ""),
        (" 1990 ", 1990, ""),
        ("2025", 2025, ""),
        ("", 0, ""),
        ("1989", 0, "date_out_of_range"),
        ("2026", 0, "date_out_of_range"),
        ("0", 0, "date_out_of_range"),
        ("2021.5", 0, "bad_date"),
        ("-2021", 0, "bad_date"),
        ("２０２１", 0, "bad_date"),
        ("9" * 5000, 0, "bad_date"),
    ],
)
def test_the_year_stands_in_for_a_missing_date(text, year, fault):
    assert read("", text) == Published(NOT_A_TIME, year, fault)


def test_a_usable_date_is_not_overruled_by_the_year():
    assert read("2024-01-01", "2019") == Published(utc_second("2024-01-01"), 0, "")


def test_the_year_mends_a_bad_date_and_the_date_is_still_named():
    assert read("soon", "2021") == Published(NOT_A_TIME, 2021, "bad_date")
    assert read("2031-01-01", "x") == NOTHING._replace(fault="date_out_of_range")


@settings(max_examples=200)
@given(date_text=st.text(max_size=30), year_text=st.text(max_size=10))
def test_no_text_breaks_the_reader(date_text, year_text):
    found = read(date_text, year_text)
    assert (found.second == NOT_A_TIME) or not found.fault


@settings(max_examples=100)
@given(moment=st.datetimes(datetime(1990, 1, 1), datetime(2025, 6, 2), timezones=st.just(UTC)))
def test_any_moment_is_read_back_to_the_second(moment):
    assert read(moment.isoformat()).second == int(moment.replace(microsecond=0).timestamp())


@pytest.mark.parametrize("offset", ["+23:59", "-23:59"])
def test_offsets_at_the_ends_of_the_calendar_do_not_overflow(offset):
    assert read(f"0001-01-01T00:00:00{offset}").fault == "date_out_of_range"
    assert read(f"9999-12-31T23:59:59{offset}").fault == "date_out_of_range"


def test_a_clock_that_lost_its_time_does_not_void_every_date(monkeypatch):
    class Clock(datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(1970, 1, 1, tzinfo=tz)

    monkeypatch.setattr(dates, "datetime", Clock)
    assert today_utc() == CLOCK_FLOOR


def test_ages_by_hand():
    published, year = as_table([datetime(2024, 1, 1), None, None, datetime(2025, 7, 2)], [0, 2021, 0, 0])
    ages = ages_years(published, year, np.datetime64("2025-01-01"))
    np.testing.assert_allclose(ages, [366 / 365.2425, 4.0, np.nan, -182 / 365.2425])


def test_without_a_reference_nothing_has_an_age():
    published, year = as_table([datetime(2024, 1, 1), None], [0, 2021])
    assert np.isnan(ages_years(published, year, np.datetime64("NaT"))).all()


def test_the_newest_of_nothing_is_unknown():
    assert np.isnat(newest(*as_table([None], [0])))


def test_the_year_of_a_date_is_that_of_utc():
    year = as_table([datetime(2024, 12, 31, 23, 59), None, None], [2019, 2019, 0])[1]
    assert year.tolist() == [2024, 2019, 0]


ROWS = st.lists(
    st.tuples(
        st.none() | st.datetimes(datetime(1990, 1, 1), datetime(2025, 6, 2)), st.integers(1990, 2025) | st.just(0)
    ),
    min_size=1,
    max_size=8,
)


@settings(max_examples=100, deadline=timedelta(seconds=2))
@given(rows=ROWS)
def test_no_age_is_negative_at_the_newest(rows):
    published, year = as_table([moment for moment, _ in rows], [year for _, year in rows])
    ages = ages_years(published, year, newest(published, year))
    known = [moment is not None or year > 0 for moment, year in rows]
    assert (~np.isnan(ages)).tolist() == known
    assert (ages[known] >= 0).all()


def calendar(*moments: datetime | None) -> np.ndarray:
    return calendar_columns(np.array(moments, dtype="datetime64[s]"))


@settings(max_examples=200, deadline=None, derandomize=True)
@given(moment=st.datetimes(datetime(1890, 1, 1), datetime(2110, 1, 1)))
def test_places_in_year_week_and_day_are_those_of_datetime(moment):
    moment = moment.replace(microsecond=0)
    of_year = (moment.timetuple().tm_yday - 1) / 365.25
    of_day = (moment.hour * 3600 + moment.minute * 60 + moment.second) / 86_400
    expected = [
        circle(2 * np.pi * share) for share in (of_year, moment.weekday() / 7, of_day) for circle in (np.cos, np.sin)
    ]
    np.testing.assert_allclose(calendar(moment)[0], expected, atol=1e-9)


def test_the_end_of_december_is_as_near_to_january_as_any_day_is_to_the_next():
    days = calendar(*(datetime(2023, 1, 1) + timedelta(days=day) for day in range(366)))
    steps = np.linalg.norm(np.diff(days[:, :2], axis=0), axis=1)
    np.testing.assert_allclose(steps[:-1], steps[0])
    assert 0 < steps[-1] < 1.3 * steps[0]  # a year is not quite 365.25 days


def test_sunday_is_as_near_to_monday_as_any_weekday_is_to_the_next():
    days = calendar(*(datetime(2024, 5, 6) + timedelta(days=day) for day in range(8)))[:, 2:4]
    steps = np.linalg.norm(np.diff(days, axis=0), axis=1)
    np.testing.assert_allclose(steps, steps[0])
    np.testing.assert_allclose(days[7], days[0], atol=1e-12)
    assert len(np.unique(days.round(9), axis=0)) == 7


def test_the_last_second_of_sunday_is_next_to_midnight_by_the_clock_and_in_another_day_by_the_week():
    before, after = calendar(datetime(2024, 5, 5, 23, 59, 59), datetime(2024, 5, 6))
    np.testing.assert_allclose(before[4:], after[4:], atol=1e-4)
    np.testing.assert_allclose(after[2:4], [1, 0], atol=1e-12)
    np.testing.assert_allclose(before[2:4], [np.cos(2 * np.pi / 7), -np.sin(2 * np.pi / 7)])


def test_an_unknown_date_has_no_place_in_the_calendar():
    columns = calendar(datetime(2024, 5, 6), None)
    assert np.isnan(columns).tolist() == [[False] * 6, [True] * 6]
