"""A matplotlib drawing as SVG that belongs into a page: its colours and letters are the page's, light or dark.

Colours are drawn as placeholders that become CSS variables. Equal drawings give equal bytes.
"""

import re
from collections.abc import Callable, Sequence
from io import StringIO
from math import floor, log
from typing import Any

WIDTH_PT, HEIGHT_PT = 360.0, 236.0
"""About as wide as a phone, so that letters keep their size where pages are read most narrowly."""

SERIES = 8
"""Colours for modalities; `--series-0` to `--series-7` in the style sheet."""

INK, MUTED, GRID, ACCENT, PAPER = (f"#0a0b{index:02x}" for index in range(5))

_VARIABLES = {INK: "--ink", MUTED: "--muted", GRID: "--line", ACCENT: "--accent", PAPER: "--paper"}
_VARIABLES |= {f"#0a0c{index:02x}": f"--series-{index}" for index in range(SERIES)}
_PLACEHOLDER = re.compile("|".join(_VARIABLES))

_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",  # letters stay letters: they can be read aloud, searched and copied
    "text.parse_math": False,
    "axes.unicode_minus": True,
    "font.size": 9.5,
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.linewidth": 1.0,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "text.color": INK,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.minor.bottom": False,
    "ytick.minor.left": False,
    "lines.solid_capstyle": "round",
    "legend.frameon": False,
    "legend.fontsize": 9.0,
}

_NOISE = re.compile(
    r"<metadata>.*?</metadata>|<defs>\s*<style.*?</style>\s*</defs>|<!--.*?-->|(?<=<g) id=\"[^\"]*\"", re.DOTALL
)
_OPENING = re.compile(r".*?<svg\b[^>]*?viewBox=\"([^\"]*)\"[^>]*>", re.DOTALL)
_FONT = re.compile(r"'DejaVu Sans'[^;\"]*")


def series_colour(index: int) -> str:
    """The placeholder of a modality's colour; beyond the last it begins again."""
    return f"#0a0c{index % SERIES:02x}"


def drawn(name: str, label: str, draw: Callable[[Any], None], *, height_pt: float = HEIGHT_PT) -> str:
    """An SVG element with what `draw` puts on its axes; `name` tells its ids from those of others on the page.

    `label` is what a screen reader says; it is trusted, as only our own words and numbers are in it.
    """
    from matplotlib import style  # noqa: PLC0415 - a second that only a report should cost
    from matplotlib.backends.backend_svg import FigureCanvasSVG  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415

    with style.context({**_STYLE, "svg.hashsalt": name}, after_reset=True):
        figure = Figure(figsize=(WIDTH_PT / 72, height_pt / 72), layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure.add_subplot())
        text = StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    return _for_page(text.getvalue(), label)


def _for_page(svg: str, label: str) -> str:
    opened = _OPENING.sub(rf'<svg role="img" aria-label="{label}" viewBox="\1">', svg, count=1)
    quiet = _NOISE.sub("", opened)
    coloured = _PLACEHOLDER.sub(lambda found: f"var({_VARIABLES[found.group()]})", quiet)
    return re.sub(r"\s*\n\s*", "\n", _FONT.sub("var(--font)", coloured)).strip()


def nice_factors(low: int | float, high: int | float, most: int = 7) -> list[float]:
    """Round factors whose logarithms lie between `low` and `high`, at most so many.

    >>> nice_factors(log(0.4), log(6))
    [0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 5.0]
    >>> nice_factors(log(0.0002), log(60000))
    [0.001, 0.1, 10.0, 1000.0]
    """
    for steps in ((1.0, 1.5, 2.0, 3.0, 5.0, 7.0), (1.0, 2.0, 5.0), (1.0, 3.0), (1.0,)):
        found = _between(steps, low, high)
        if len(found) <= most:
            return found
    return found[:: -(-len(found) // most)]


def _between(steps: Sequence[float], low: int | float, high: int | float) -> list[float]:
    powers = range(floor(low / log(10)) - 1, floor(high / log(10)) + 2)
    values = [float(f"{step:g}e{power}") for power in powers for step in steps]
    return [value for value in values if low <= log(value) <= high]
