"""Charts say what the numbers say, and are absent where there are none."""

import re

import numpy as np

from heads.targets import Target
from pipeline.reporting.charts import NAMES, charts, spread
from pipeline.reporting.groups import scored
from pipeline.reporting.numbers import numbers_of
from pipeline.reporting.page import colours
from pipeline.reporting.sources import Notices, find_videos
from pipeline.reporting.words import Words
from tests.pipeline.reporting.world import ReportWorld, Told


def drawn_of(world):
    files = world.files()
    videos = find_videos(world.config, files, Notices(Told()))
    numbers = numbers_of(files, videos) | {"colours": colours(world.modalities)}
    return charts(numbers, Words(files.target)), numbers


def test_a_full_run_has_every_chart(world):
    found, _ = drawn_of(world)
    assert list(found) == list(NAMES)
    assert all(svg.startswith('<svg role="img"') for svg in found.values())


def test_what_is_not_known_is_not_drawn(tmp_path, monkeypatch):
    monkeypatch.setattr(ReportWorld, "_epochs", lambda _self: [])
    world = ReportWorld(tmp_path, modalities=("words",))
    world.write_run(coverage=[])
    found, _ = drawn_of(world)
    assert {name for name, svg in found.items() if svg} == {"reliability"}


def test_every_square_that_holds_videos_is_drawn(world):
    found, numbers = drawn_of(world)
    squares = re.findall(r'style="fill: var\(--accent\); fill-opacity: 0\.\d+"', found["reliability"])
    assert len(squares) == len(numbers["reliability"]["density"]["cells"])


def test_the_age_curve_has_the_colour_of_age(world):
    found, _ = drawn_of(world)
    assert f"var(--series-{colours(world.modalities)['age']})" in found["age_effect"]


def test_axes_are_in_views_and_factors_for_counts_and_plain_otherwise(world, tmp_path):
    counts, _ = drawn_of(world)
    assert "predicted views" in counts["reliability"]
    assert re.search(r">\d+\xa0K<", counts["reliability"])
    assert ">×1<" in counts["age_effect"]
    other = ReportWorld(tmp_path / "other", target="none")
    other.write_dataset()
    other.write_run()
    plain, _ = drawn_of(other)
    assert "×" not in plain["age_effect"] + plain["year"]
    assert "views" not in plain["reliability"]


def test_years_of_few_videos_are_hollow(world):
    _, numbers = drawn_of(world)
    numbers["errors"]["year"] = [
        {"label": 2000 + at, "rows": rows} | off_by(at + 1.0) for at, rows in enumerate((5, 50, 60))
    ]
    svg = charts(numbers, Words(Target("log1p")))["year"]
    assert svg.count("fill: var(--paper)") == 1


def off_by(error):
    return scored(np.zeros(2), np.full(2, error))


def test_labels_keep_their_order_and_a_distance():
    assert spread([3.0, 1.0, 1.0, 1.2], 0.5) == [3.0, 1.0, 1.5, 2.0]
    assert spread([], 0.5) == []
