"""The charts of a report, each from its own part of the numbers; nothing here looks at the data."""

from collections.abc import Mapping, Sequence
from math import inf, log, log1p, sqrt
from typing import Any

from pipeline.reporting.svg import ACCENT, GRID, INK, MUTED, PAPER, drawn, nice_factors, series_colour
from pipeline.reporting.words import Number, Words, percent, plain_number, short

NAMES = ("reliability", "year", "age_effect", "coverage", "training", "training_weights")

FEW_ROWS = 20
"""Groups with fewer rows are drawn hollow: their error is mostly chance."""

BEST_SHOWN = 3.0
"""A curve of errors is cut at so many times its best, because the first epochs would flatten the others."""


def charts(numbers: Mapping[str, Any], words: Words) -> dict[str, str]:
    """Name -> SVG of every chart, empty where the numbers do not suffice for it."""
    found: dict[str, str] = dict.fromkeys(NAMES, "") | {"reliability": _reliability(numbers["reliability"], words)}
    typical = numbers["score"]["final"]["rmse"]
    if len(numbers["errors"]["year"]) > 1:
        found["year"] = _by_year(numbers["errors"]["year"], typical, words)
    if numbers["age_effect"]:
        colour = series_colour(numbers["colours"][_age_of(numbers)])
        found["age_effect"] = _age_effect(numbers["age_effect"], words, colour)
    if numbers["coverage"]:
        found["coverage"] = _coverage(numbers["coverage"])
    if numbers["training"]:
        found["training"] = _training(numbers["training"])
        if (
            numbers["run"]["head"] == "mlp"
        ):  # the networks of hybrid learn what linear leaves over: no weights of a model
            found["training_weights"] = _training_weights(numbers["training"], numbers["colours"])
    return found


def _age_of(numbers: Mapping[str, Any]) -> str:
    return next(str(source["modality"]) for source in numbers["run"]["sources"] if source["kind"] == "age")


def _reliability(numbers: Mapping[str, Any], words: Words) -> str:
    from matplotlib.collections import PatchCollection  # noqa: PLC0415 - see report_svg
    from matplotlib.patches import Rectangle  # noqa: PLC0415

    edges, cells = numbers["density"]["edges"], numbers["density"]["cells"]
    deciles = numbers["deciles"]
    low, high, width = edges[0], edges[-1], edges[1] - edges[0]
    ring = {"marker": "o", "markersize": 5, "markerfacecolor": PAPER, "markeredgecolor": INK, "markeredgewidth": 1.4}
    most = max(rows for _, _, rows in cells)

    def draw(axes: Any) -> None:
        for strength in range(1, 7):  # six shades, so that the page stays small
            own = [(x, y) for x, y, rows in cells if _shade(rows, most) == strength]
            squares = [Rectangle((edges[x], edges[y]), width, width) for x, y in own]
            axes.add_collection(
                PatchCollection(squares, facecolor=ACCENT, edgecolor="none", alpha=round(0.1 + 0.1 * strength, 2))
            )
        axes.plot([low, high], [low, high], color=MUTED, linewidth=1.0, linestyle=(0, (4, 3)))
        axes.plot(
            *([entry[key] for entry in deciles] for key in ("log_pred", "log_views")),
            color=INK,
            linewidth=1.4,
            **ring,
        )
        unit = " views" if words.is_count else ""
        axes.set(xlim=(low, high), ylim=(low, high), xlabel=f"predicted{unit}", ylabel=f"actual{unit}")
        for axis in (axes.xaxis, axes.yaxis):
            _ticks_of_views(axis, low, high, words)

    label = "Predicted against actual: how many videos lie where, and the mean of each tenth of the predictions"
    return drawn("reliability", label, draw, height_pt=300.0)


def _shade(rows: int, most: int) -> int:
    return 1 + min(5, int(6 * sqrt(rows / most) - 1e-9))


def _ticks_of_views(axis: Any, low: Number, high: Number, words: Words) -> None:
    if not words.is_count:
        axis.set_major_locator(_few_ticks())
        axis.set_major_formatter(lambda value, _place: plain_number(value))
        return
    powers = [10**power for power in range(16) if low <= log1p(10**power) <= high]
    kept = powers[:: -(-len(powers) // 6)] if powers else []
    axis.set_ticks([log1p(views) for views in kept], [_tick(views) for views in kept])


def _tick(views: int) -> str:
    return short(views).replace(".0", "")


def _ticks_of_factors(axis: Any, low: Number, high: Number, words: Words) -> None:
    if not words.is_count:
        axis.set_major_formatter(lambda value, _place: plain_number(value))
        return
    kept = nice_factors(low, high)
    axis.set_ticks([log(value) for value in kept], [f"×{value:g}" for value in kept])


def _few_ticks() -> Any:
    from matplotlib.ticker import MaxNLocator  # noqa: PLC0415

    return MaxNLocator(nbins=4)


def _by_year(entries: Sequence[Mapping[str, Any]], typical: Number, words: Words) -> str:
    known = [entry for entry in entries if entry["label"] != "unknown"]
    most = max(entry["rows"] for entry in known)

    def draw(axes: Any) -> None:
        axes.axhline(typical, color=MUTED, linewidth=1.0, linestyle=(0, (4, 3)))
        solid = [entry for entry in known if entry["rows"] >= FEW_ROWS]
        axes.plot(*_points(solid), color=ACCENT, linewidth=1.4)
        for hollow in (False, True):
            own = [entry for entry in known if (entry["rows"] < FEW_ROWS) == hollow]
            sizes = [14 + 150 * entry["rows"] / most for entry in own]
            axes.scatter(*_points(own), s=sizes, color=PAPER if hollow else ACCENT, edgecolor=ACCENT, linewidth=1.2)
        top = max(entry["rmse"] for entry in known) * 1.08
        axes.set(ylim=(0, top), ylabel="typical error")
        axes.xaxis.get_major_locator().set_params(integer=True, nbins=7)
        _ticks_of_factors(axes.yaxis, 0, top, words)

    return drawn("year", "Typical error by year of publication", draw)


def _points(entries: Sequence[Mapping[str, Any]]) -> tuple[list[Any], list[Any]]:
    return [entry["label"] for entry in entries], [entry["rmse"] for entry in entries]


def _age_effect(bins: Sequence[Mapping[str, Any]], words: Words, colour: str) -> str:
    ages = [entry["age_years"] for entry in bins]
    means = [entry["contribution"] for entry in bins]
    folds = [[value for value in entry["by_fold"] if value is not None] for entry in bins]
    lows, highs = [min(values) for values in folds], [max(values) for values in folds]

    def draw(axes: Any) -> None:
        axes.axhline(0, color=MUTED, linewidth=1.0, linestyle=(0, (4, 3)))
        axes.fill_between(ages, lows, highs, color=colour, alpha=0.22, linewidth=0)
        axes.plot(ages, means, color=colour, linewidth=2.0, marker="o", markersize=3.5)
        axes.set(xlabel="age in years", ylabel="effect on predicted views" if words.is_count else "effect")
        low, high = axes.get_ylim()
        _ticks_of_factors(axes.yaxis, low, high, words)

    return drawn("age_effect", "What the age adds to a prediction, by age", draw)


def _coverage(levels: Sequence[Mapping[str, Any]]) -> str:
    folds, bins = list(levels[0]["by_fold"]), list(levels[0]["by_bin"])
    names = [f"fold {fold}" for fold in folds] + ["unknown" if at == "-1" else f"age {int(at) + 1}" for at in bins]

    def draw(axes: Any) -> None:
        for colour, level in zip((ACCENT, INK), levels, strict=False):
            tallies = [*level["by_fold"].values(), *level["by_bin"].values()]
            shares = [tally["share"] for tally in tallies]
            # Twice the deviation of a share that is right: what chance alone would do.
            chance = [2 * sqrt(level["level"] * (1 - level["level"]) / tally["rows"]) for tally in tallies]
            axes.axhline(level["level"], color=colour, linewidth=1.0, linestyle=(0, (4, 3)))
            places = range(len(shares))
            axes.bar(
                places,
                [2 * size for size in chance],
                bottom=[level["level"] - size for size in chance],
                width=0.55,
                color=colour,
                alpha=0.16,
                linewidth=0,
            )
            axes.plot(places, shares, color=colour, marker="o", markersize=5, linestyle="none")
        axes.axvline(len(folds) - 0.5, color=GRID, linewidth=1.0)
        axes.grid(visible=False, axis="x")
        axes.set(ylim=(0, 1.02), xlim=(-0.6, len(names) - 0.4), ylabel="actually inside")
        axes.set_xticks(range(len(names)), names, rotation=35, ha="right", rotation_mode="anchor")
        axes.set_yticks([0, 0.25, 0.5, 0.75, 0.9], [percent(share) for share in (0, 0.25, 0.5, 0.75, 0.9)])

    return drawn("coverage", "Share of videos inside their interval, by fold and by age", draw)


def _training(curves: Sequence[Mapping[str, Any]]) -> str:
    best = min(min(curve["val_msle"]) for curve in curves if curve["val_msle"])

    def draw(axes: Any) -> None:
        for curve in curves:
            strength = 1 - 0.25 * (curve["fold"] % 4)
            axes.plot(curve["epoch"], curve["val_msle"], color=ACCENT, alpha=strength, linewidth=1.6)
            if curve["best_epoch"] in curve["epoch"]:
                at = curve["epoch"].index(curve["best_epoch"])
                axes.plot(curve["epoch"][at], curve["val_msle"][at], color=INK, marker="o", markersize=4.5)
        low, high = axes.get_ylim()
        high = min(high, BEST_SHOWN * best)
        axes.set(xlabel="epoch", ylabel="MSLE on unseen videos", ylim=(low, high))
        axes.xaxis.get_major_locator().set_params(integer=True)
        ends = [curve for curve in curves if curve["epoch"]]
        places = spread([curve["val_msle"][-1] for curve in ends], (high - low) / 14)
        for curve, place in zip(ends, places, strict=True):
            beside = {"xytext": (8, 0), "textcoords": "offset points", "va": "center"}
            axes.annotate(f"fold {curve['fold']}", (curve["epoch"][-1], place), color=MUTED, **beside)

    return drawn("training", "Error on the validation rows by epoch, for each fold", draw)


def spread(values: Sequence[Number], gap: Number) -> list[Number]:
    """The values moved up as far as needed to be at least `gap` apart, in their order.

    >>> spread([1.0, 5.0, 1.1], 0.5)
    [1.0, 5.0, 1.5]
    """
    moved: list[Number] = list(values)
    least: Number = -inf
    for at in sorted(range(len(moved)), key=moved.__getitem__):
        moved[at] = max(moved[at], least)
        least = moved[at] + gap
    return moved


def _training_weights(curves: Sequence[Mapping[str, Any]], colours: Mapping[str, int]) -> str:
    def draw(axes: Any) -> None:
        for curve in curves:
            for modality, weights in curve["weights"].items():
                axes.plot(curve["epoch"], weights, color=series_colour(colours[modality]), linewidth=1.4, alpha=0.85)
        axes.set(xlabel="epoch", ylabel="weight", ylim=(0, None))
        axes.xaxis.get_major_locator().set_params(integer=True)

    return drawn("training_weights", "Weight of each modality by epoch, one line per fold", draw)


def bar_share(value: Number, most: Number) -> str:
    """The width of a bar as a CSS percentage.

    >>> bar_share(1.0, 4.0), bar_share(1.0, 0.0)
    ('25.0%', '0.0%')
    """
    return f"{100 * min(max(value / most, 0.0), 1.0) if most > 0 else 0.0:.1f}%"
