"""Numbers and foreign texts as a reader wants them: 1.2 M, 3.4 times too high, and no character that acts."""

import math
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from features.texts import cleaned
from heads.targets import Target

Number = int | float
"""What JSON gives."""

NBSP = "\u00a0"
MAX_SHOWN_CHARACTERS = 160

_JOINERS = {"\u200c", "\u200d"}  # emoji and Indic and Persian words fall apart without them
_TERMINAL_CODE = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")
_SCALES = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K"))


def plain_text(text: str, limit: int = MAX_SHOWN_CHARACTERS) -> str:
    r"""A title as inert text on one line: entities unescaped, controls and direction overrides gone, cut to a length.

    >>> plain_text("Tom &amp; \x1b[31mJerry\x1b[0m \u202etxt.exe")
    'Tom & Jerry txt.exe'
    """
    kept = [char if _is_harmless(char) else " " for char in _TERMINAL_CODE.sub("", cleaned(text))]
    line = " ".join("".join(kept).split())
    return line if len(line) <= limit else f"{line[: limit - 1].rstrip()}…"


def _is_harmless(char: str) -> bool:
    return char in _JOINERS or unicodedata.category(char) not in {"Cc", "Cf", "Cs", "Zl", "Zp"}


def count(number: Number) -> str:
    """A whole number with its thousands apart.

    >>> count(12345)
    '12,345'
    """
    return f"{number:,.0f}"


def short(number: Number) -> str:
    """A number of views in two or three digits.

    >>> [short(number).replace(NBSP, " ") for number in (7, 999.6, 1_234, 45_678, 340_000, 15_685_415_432)]
    ['7', '1.0 K', '1.2 K', '46 K', '340 K', '16 B']
    """
    for scale, unit in _SCALES:
        if number >= scale * 0.9995:
            scaled = number / scale
            return f"{scaled:.1f}{NBSP}{unit}" if scaled < 9.95 else f"{scaled:.0f}{NBSP}{unit}"
    return f"{number:.0f}"


def factor(value: Number) -> str:
    """A factor in two digits or so; a small one as a divisor.

    >>> [factor(value).replace(NBSP, " ") for value in (1.84, 23.4, 0.7, 0.0025, 4321.0)]
    ['×1.8', '×23', '×0.70', '÷400', '×4,300']
    """
    if value < 0.01:
        return f"÷{_digits(1 / value)}" if value > 0 else "÷∞"
    if value < 0.1:
        return f"×{value:.2g}"
    return f"×{value:.2f}" if value < 0.995 else f"×{_digits(value)}"


def percent(share: Number | None) -> str:
    """A share in whole per cent.

    >>> percent(0.367).replace(NBSP, " ")
    '37 %'
    """
    return "–" if share is None else f"{round(100 * share)}{NBSP}%".replace("-", "−")


def decimal(value: Number | None, digits: int = 2) -> str:
    """A number with so many decimals; a dash where there is none.

    >>> decimal(3.31749), decimal(None)
    ('3.32', '–')
    """
    return "–" if value is None else f"{value:,.{digits}f}".replace("-", "−")


def plain_number(value: Number) -> str:
    """Any number in three digits.

    >>> [plain_number(value) for value in (423764.05, -2.5, 0.01234)]
    ['424,000', '−2.5', '0.0123']
    """
    rounded = float(f"{value:.3g}")
    told = f"{rounded:,.0f}" if 1000 <= abs(rounded) < 1e15 else f"{rounded:g}"
    return told.replace("-", "−")


def age(years: Number) -> str:
    """An age in its own unit.

    >>> [age(years).replace(NBSP, " ") for years in (0.04, 0.4, 1.96, 12.0)]
    ['15 days', '5 months', '2.0 years', '12 years']
    """
    if years < 0.1:
        return f"{365.25 * years:.0f}{NBSP}days"
    if years < 1:
        return f"{12 * years:.0f}{NBSP}months"
    return f"{_digits(years)}{NBSP}years"


def between_ages(low: Number | None, high: Number | None) -> str:
    """A bin of ages.

    >>> [between_ages(*ends).replace(NBSP, " ") for ends in ((None, 2.0), (2.0, 4.5), (0.5, 2.0), (4.5, None))]
    ['under 2.0 years', '2.0–4.5 years', '6 months to 2.0 years', 'over 4.5 years']
    """
    if low is None and high is None:
        return "unknown"
    if low is None or high is None:
        return f"over {age(low)}" if low is not None else f"under {age(high or 0.0)}"
    (first, unit), (last, other) = (age(end).split(NBSP) for end in (low, high))
    return f"{first}–{last}{NBSP}{unit}" if unit == other else f"{age(low)} to {age(high)}"


def said(value: Any) -> str:
    """Any JSON value on one line.

    >>> said([0.1 + 0.2, "a"]), said({"b": True}), said(None)
    ('0.3, a', 'b yes', '–')
    """
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {said(part)}" for name, part in value.items()) or "–"
    if isinstance(value, list | tuple):
        return ", ".join(map(said, value)) or "–"
    return "–" if value is None or value == "" else str(value)


def flat(mapping: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """A nested mapping as lines: what it is, and what it says.

    >>> flat({"rows": 3, "image": {"stored_as": "float16"}})
    [('rows', '3'), ('image stored as', 'float16')]
    """
    lines: list[tuple[str, str]] = []
    for key, value in mapping.items():
        name = f"{prefix}{key}".replace("_", " ")
        lines += flat(value, f"{name} ") if isinstance(value, Mapping) and value else [(name, said(value))]
    return lines


def tables(value: Any) -> list[tuple[str, list[Mapping[str, Any]]]]:
    """The lists of mappings that a JSON value is, or holds by name: each is told best as a table.

    >>> tables({"rows": 3, "tried": [{"lr": 0.1}]}), tables([{"lr": 0.1}]), tables("none")
    ([('tried', [{'lr': 0.1}])], [('', [{'lr': 0.1}])], [])
    """
    parts = value.items() if isinstance(value, Mapping) else [("", value)]
    return [(name, part) for name, part in parts if _is_table(part)]


def _is_table(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(row, Mapping) for row in value)


@dataclass(frozen=True)
class Words:
    """How numbers of the log scale are told: as views and factors, or as they are where the target is no count."""

    target: Target

    @property
    def is_count(self) -> bool:
        """Whether a difference in log units is a factor."""
        return self.target.kind == "log1p"

    def views(self, log_views: Number) -> str:
        """Views of a place on the log scale.

        >>> Words(Target("log1p")).views(np.log1p(1_234_000)).replace(NBSP, " "), Words(Target("none")).views(-2.5)
        ('1.2 M', '−2.5')
        """
        if not self.is_count:
            return plain_number(log_views)
        return short(float(self.target.from_log(np.array([float(log_views)]))[0]))

    def effect(self, contribution: Number) -> str:
        """What a contribution does to a prediction.

        >>> Words(Target("log1p")).effect(np.log(1.8)), Words(Target("none")).effect(-0.5)
        ('×1.8', '−0.5')
        """
        if self.is_count:
            return factor(_exp(contribution))
        return ("" if contribution < 0 else "+") + plain_number(contribution)

    def miss(self, error: Number) -> str:
        """How far a prediction is off, and which way.

        >>> Words(Target("log1p")).miss(-np.log(3.4)).replace(NBSP, " ")
        '3.4 times too low'
        """
        size = f"{_digits(_exp(abs(error)))}{NBSP}times" if self.is_count else plain_number(abs(error))
        return f"{size} {'too high' if error > 0 else 'too low'}"

    def typical(self, rmse: Number) -> str:
        """The typical size of an error.

        >>> Words(Target("log1p")).typical(np.log(6.2)).replace(NBSP, " "), Words(Target("none")).typical(0.5)
        ('a factor of 6.2', '0.5')
        """
        return f"a factor of{NBSP}{_digits(_exp(rmse))}" if self.is_count else plain_number(rmse)

    def measure(self, value: Number, digits: int = 4) -> str:
        """A measure of error with enough digits to tell runs apart.

        >>> Words(Target("log1p")).measure(3.31746), Words(Target("none")).measure(35_279_313_413.0)
        ('3.3175', '35,300,000,000')
        """
        return decimal(value, digits) if self.is_count else plain_number(value)

    def times(self, rmse: Number) -> str:
        """The same in a table.

        >>> Words(Target("log1p")).times(np.log(6.2)), Words(Target("none")).times(0.5)
        ('×6.2', '0.5')
        """
        return f"×{_digits(_exp(rmse))}" if self.is_count else plain_number(rmse)


def _digits(value: Number) -> str:
    """Two digits, and zeros for the rest."""
    if value < 9.95:
        return f"{value:.1f}"
    return f"{float(f'{value:.2g}'):,.0f}"


def _exp(value: Number) -> float:
    return math.exp(min(value, 700.0))
