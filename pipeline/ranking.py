"""Predictions as people read them: a table with the highest first, and who wins, by how much, and why."""

from collections.abc import Callable, Sequence
from math import exp

from pipeline.outcome import table
from pipeline.prediction import Prediction

TITLE_CHARACTERS = 48
NO_DIFFERENCE = 1e-9
"""Log views; a smaller difference is rounding."""

WORTH_TELLING = 0.005
"""Log views; a modality that makes less of a difference is not named beside others, as it would show as x1.00."""


def ranking(predictions: Sequence[Prediction], channel: str) -> list[str]:
    """The table of some predictions, highest first, and what their factors multiply."""
    modalities = list(predictions[0].contributions)
    header = ["", "views", "50 %", "90 %", "percentile", *([f"in {channel}"] if channel else []), *modalities]
    lines: list[list[str]] = [header]
    for name, one in zip(names(predictions), predictions, strict=True):
        cells = [name, _amount(one.views, one), *(_ends(ends, one) for ends in (one.interval_50, one.interval_90))]
        cells.append(f"{one.percentile:.0f}")
        if channel:
            cells.append("-" if one.percentile_in_channel is None else f"{one.percentile_in_channel:.0f}")
        lines.append([*cells, *(_factor(one.factors[modality], one) for modality in modalities)])
    first = predictions[0]
    verb = "multiplies" if first.target == "log1p" else "adds to"
    told = f"each modality {verb} the baseline of {_amount(first.baseline, first)}, the mean of the training videos"
    return [*table(lines), "", told if first.target != "log1p" else f"{told} in log views"]


def names(predictions: Sequence[Prediction]) -> list[str]:
    """What tells the predictions apart: the image, the title, or both.

    The whole of both where there is one prediction alone.
    """
    images, titles = (len({getattr(one, part) for one in predictions}) > 1 for part in ("image", "title"))
    both = images == titles
    return [
        " + ".join(
            part
            for part, wanted in ((one.image, images or both), (_quoted(one.title), titles or both))
            if part and wanted
        )
        for one in predictions
    ]


def sentence(predictions: Sequence[Prediction], chance_of_order: Callable[[float], float]) -> str:
    """One sentence on the first two: who wins, by how much, which modality makes the difference, how sure that is."""
    first = predictions[0]
    if len(predictions) == 1:
        return f"{names(predictions)[0]}: {_amount(first.views, first)} views, most likely {_range(first)}."
    second = predictions[1]
    one, other = names(predictions)[:2]
    lead = first.log_views - second.log_views
    if lead <= NO_DIFFERENCE:
        return f"{one} and {other} are predicted alike: nothing that the run reads tells them apart."
    added = {name: first.contributions[name] - second.contributions[name] for name in first.contributions}
    apart = sorted((name for name in added if abs(added[name]) > NO_DIFFERENCE), key=lambda name: -abs(added[name]))
    told = [name for name in apart if abs(added[name]) >= WORTH_TELLING] or apart
    why = ", ".join(f"{name} {_factor(_factor_of(added[name], first), first)}" for name in told)
    return (
        f"{one} wins over {other}: {_amount(first.views, first)} against {_amount(second.views, second)} views "
        f"({_factor(_factor_of(lead, first), first)}: {why}); of pairs of different videos predicted this far apart "
        f"{100 * chance_of_order(lead):.0f} % come in this order."
    )


def _quoted(title: str) -> str:
    title = " ".join(title.split())
    cut = title if len(title) <= TITLE_CHARACTERS else f"{title[: TITLE_CHARACTERS - 3]}..."
    return f'"{cut}"' if cut else ""


def _factor_of(log_difference: float, like: Prediction) -> float:
    return exp(log_difference) if like.target == "log1p" else log_difference


def _factor(value: float, like: Prediction) -> str:
    return f"x{value:.2f}" if like.target == "log1p" else f"{value:+.4g}"


def _amount(value: float, like: Prediction) -> str:
    return f"{value:,.0f}" if like.target == "log1p" else f"{value:.4g}"


def _range(one: Prediction) -> str:
    low, high = one.interval_50
    return f"between {_amount(low, one)} and {_amount(high, one)} (50 %)"


def _ends(ends: tuple[float, float], like: Prediction) -> str:
    return f"{_amount(ends[0], like)} - {_amount(ends[1], like)}"
