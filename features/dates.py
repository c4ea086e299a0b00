"""When a video was published: dates and years as they stand in a CSV file, and the ages that follow from them."""

import re
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import cached_property
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int32, Int64, Shaped

FIRST_YEAR = 1990  # older than the web; 1900 and 1970 are what broken exports write
CLOCK_FLOOR = date(2026, 11, 1)  # a machine whose clock says 1970 must not void every date
NOT_A_TIME = int(np.iinfo(np.int64).min)  # how datetime64 spells NaT
SECONDS_PER_YEAR = 31_556_952  # 365.2425 days, the mean year of the Gregorian calendar

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SECOND, _DAY = timedelta(seconds=1), timedelta(days=1)
_YEAR = re.compile(r"(\d{1,9})(?:\.0*)?", re.ASCII)  # tables that passed through floats hold 2021.0


class Published(NamedTuple):
    """What one row says about its day of publication."""

    second: int  # UTC, seconds since 1970; NOT_A_TIME where the date is missing or unusable
    year: int  # the row's year column where it stands in for the date, else 0
    fault: str  # "", "bad_date" (not a date) or "date_out_of_range"


def today_utc() -> date:
    """Today's date in UTC by this machine's clock, but never before `CLOCK_FLOOR`."""
    return max(datetime.now(UTC).date(), CLOCK_FLOOR)


def utc_second(text: str) -> int:
    """Seconds since 1970 of an ISO 8601 date or time; without an offset it is UTC.

    Raises
    ------
    ValueError
        The text is no ISO 8601 date.

    >>> utc_second("1970-01-02"), utc_second("1970-01-01T02:00:00.9+01:00")
    (86400, 3600)
    """
    moment = datetime.fromisoformat(text)
    return ((moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - _EPOCH) // _SECOND


@dataclass(frozen=True)
class DateReader:
    """Reads the date of a row, or the year that stands in for it.

    Dates before `FIRST_YEAR` or later than the day after `today` (somewhere it is already tomorrow), and years
    before `FIRST_YEAR` or after this one, are not believed.
    """

    today: date

    def read(self, date_text: str, year_text: str) -> Published:
        """The date where it is usable, else the year where that is; the first fault met is named.

        >>> reader = DateReader(date(2025, 6, 1))
        >>> reader.read("2025-03-01", "")
        Published(second=1740787200, year=0, fault='')
        >>> reader.read("March", "2021.0").year, reader.read("March", "2021.0").fault
        (2021, 'bad_date')
        """
        second, date_fault = self._second(date_text.strip())
        if second != NOT_A_TIME:
            return Published(second, 0, "")
        year, year_fault = self._year(year_text.strip())
        return Published(NOT_A_TIME, year, date_fault or year_fault)

    def _second(self, text: str) -> tuple[int, str]:
        if not text:
            return NOT_A_TIME, ""
        try:
            second = utc_second(text)
        except ValueError:
            return NOT_A_TIME, "bad_date"
        if not self._first_second <= second < self._end_second:
            return NOT_A_TIME, "date_out_of_range"
        return second, ""

    def _year(self, text: str) -> tuple[int, str]:
        if not text:
            return 0, ""
        if not (match := _YEAR.fullmatch(text)):
            return 0, "bad_date"
        year = int(match[1])
        return (year, "") if FIRST_YEAR <= year <= self.today.year else (0, "date_out_of_range")

    def accepted(self, fault: str) -> str:
        """What a cell with this fault should hold.

        >>> DateReader(date(2025, 6, 1)).accepted("date_out_of_range")
        'dates lie between 1990-01-01 and 2025-06-02'
        """
        if fault == "bad_date":
            return "dates are ISO 8601, such as 2020-12-31, and years whole numbers, such as 2020"
        return f"dates lie between {self.first_day} and {self.last_day}"

    @property
    def first_day(self) -> date:
        """The first day that is believed."""
        return date(FIRST_YEAR, 1, 1)

    @property
    def last_day(self) -> date:
        """The last day that is believed: tomorrow, which it is already somewhere."""
        return min(self.today, date.max - _DAY) + _DAY

    @cached_property
    def _first_second(self) -> int:
        return utc_second(self.first_day.isoformat())

    @cached_property
    def _end_second(self) -> int:
        return utc_second(self.last_day.isoformat()) + 86_400


def ages_years(
    published: Shaped[np.ndarray, " video"], year: Int32[np.ndarray, " video"], reference: np.datetime64
) -> Float64[np.ndarray, " video"]:
    """Age of each video at `reference`, in years: fractional where the date is known, else whole calendar years.

    Parameters
    ----------
    published
        datetime64[s], UTC; NaT where unknown.
    year
        Calendar year, 0 where unknown.
    reference
        The moment at which the videos are that old. NaT gives no ages.

    Returns
    -------
    Years, NaN where neither date nor year is known; negative for what is newer than `reference`.

    >>> published = np.array(["2024-01-01", "NaT", "NaT"], dtype="datetime64[s]")
    >>> ages_years(published, np.array([2024, 2020, 0], dtype=np.int32), np.datetime64("2024-12-31")).round(2)
    array([ 1.,  4., nan])
    """
    reference_years = _calendar_years(np.array([reference], dtype="datetime64[s]"))
    whole = np.where((year > 0) & ~np.isnat(reference), reference_years - year, np.nan)
    elapsed = reference.astype("datetime64[s]") - published
    return np.where(np.isnat(published), whole, elapsed / np.timedelta64(SECONDS_PER_YEAR, "s"))


def newest(published: Shaped[np.ndarray, " video"], year: Int32[np.ndarray, " video"]) -> np.datetime64:
    """The latest publication in UTC, NaT if nothing is known.

    A video of which only the year is known counts from 1 January: that claims least about it, and no video is
    then younger than 0 at the newest of all.

    >>> newest(np.array(["2024-05-06", "NaT"], dtype="datetime64[s]"), np.array([2024, 2025], dtype=np.int32))
    np.datetime64('2025-01-01T00:00:00')
    """
    january = (year.astype(np.int64) - 1970).view("datetime64[Y]").astype("datetime64[s]")
    moments = np.where(np.isnat(published) & (year > 0), january, published)
    known = moments[~np.isnat(moments)]
    return np.datetime64(known.max() if len(known) else "NaT", "s")


def calendar_columns(published: Shaped[np.ndarray, " video"]) -> Float64[np.ndarray, "video 6"]:
    """Where in the year, the week and the day each video was published, as cosine and sine; NaN where unknown.

    Places on a circle, so that December is next to January. A date without a time counts as midnight in UTC.

    >>> calendar_columns(np.array(["2024-01-01T06:00:00"], dtype="datetime64[s]")).round(1)[0, [0, 4, 5]]
    array([1., 0., 1.])
    """
    days = published.astype("datetime64[D]")
    of_year = (days - published.astype("datetime64[Y]").astype("datetime64[D]")) / np.timedelta64(1, "D") / 365.25
    of_week = ((days - np.datetime64("1970-01-05", "D")) / np.timedelta64(1, "D") % 7) / 7
    of_day = (published - days.astype("datetime64[s]")) / np.timedelta64(86_400, "s")
    angles = 2 * np.pi * np.stack([of_year, of_week, of_day])
    columns = np.stack([np.cos(angles), np.sin(angles)], axis=1).reshape(6, -1).T
    return np.where(np.isnat(published)[:, None], np.nan, columns)


def calendar_year(
    published: Shaped[np.ndarray, " video"], year: Int64[np.ndarray, " video"]
) -> Int32[np.ndarray, " video"]:
    """The year of the date in UTC; where there is no date, the given year (0: unknown)."""
    return np.where(np.isnat(published), year, _calendar_years(published)).astype(np.int32)


def _calendar_years(moments: Shaped[np.ndarray, " video"]) -> Int64[np.ndarray, " video"]:
    return moments.astype("datetime64[Y]").astype(np.int64) + 1970  # meaningless for NaT, which callers mask
