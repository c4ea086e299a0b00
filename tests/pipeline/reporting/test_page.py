"""The page: inert, whole, readable without anything else."""

import re
from html.parser import HTMLParser
from importlib.resources import files as resources

import pytest

from pipeline.reporting.cases import extremes
from pipeline.reporting.numbers import numbers_of
from pipeline.reporting.page import colours, page
from pipeline.reporting.sources import Notices, find_videos
from pipeline.reporting.svg import SERIES
from tests.pipeline.reporting.world import ReportWorld, Told

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)> \x1b[31m\u202e\"' onload=x {{ 7 * 7 }} &lt;b&gt;"


class Reader(HTMLParser):
    """Collects elements, attributes and visible text."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.attributes, self.words, self.open, self.ids = [], [], [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in {"meta", "img", "br", "link", "input", "hr"}:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def page_of(world, pictures=None, **more):
    files, notices = world.files(), Notices(Told())
    videos = find_videos(world.config, files, notices)
    numbers = numbers_of(files, videos)
    numbers |= {"extremes": extremes(files, videos, [], notices), "caches": [], "notices": notices.texts}
    return page(numbers | more, pictures or {})


@pytest.fixture
def world(tmp_path):
    world = ReportWorld(tmp_path)
    world.titles = [HOSTILE] * len(world.titles)
    world.channels = ["<i>big" if name == "big" else name for name in world.channels]
    world.write_dataset()
    world.write_run()
    return world


@pytest.fixture
def html(world):
    return page_of(world)


def test_a_hostile_title_is_words(html):
    reader = Reader(html)
    assert not {"script", "iframe", "object", "embed", "form", "link", "base", "img"} & set(reader.tags)
    assert not [name for name, _ in reader.attributes if name.startswith("on")]
    assert "<script>alert(1)</script>" in "".join(reader.words)
    assert "{{ 7 * 7 }}" in "".join(reader.words)
    assert "<i>big" in "".join(reader.words)
    assert not set(html) & set("\x1b\u202e")


def test_the_page_names_no_address_and_forbids_all(html):
    assert not re.search(r"https?:|//[a-z]|@import|url\((?!#)", html)
    policy = dict(Reader(html).attributes)["content"]
    assert "default-src 'none'" in html
    assert "script-src" not in html
    assert policy
    sources = [value for name, value in Reader(html).attributes if name in {"src", "href", "xlink:href"}]
    assert all(value.startswith(("#", "data:image/jpeg;base64,")) for value in sources)


def test_elements_are_closed_and_ids_occur_once(html):
    reader = Reader(html)
    assert reader.open == []
    assert len(reader.ids) == len(set(reader.ids))
    targets = {value[1:] for name, value in reader.attributes if name == "href"}
    assert targets <= set(reader.ids)


def test_pictures_have_a_text_and_the_page_a_language(world):
    worst = extremes(world.files(), None, [], Notices(Told()))["over"][0]["video"]
    html = page_of(world, {worst: "data:image/jpeg;base64,AAAA"})
    assert '<html lang="en">' in html
    images = re.findall(r"<img [^>]*>", html)
    assert len(images) == 1
    assert re.search(r'alt="Thumbnail of &lt;script&gt;', images[0])
    labelled = re.findall(r"<svg [^>]*>", html)
    assert all('aria-label="' in svg for svg in labelled)
    assert len(labelled) == 6


def test_the_verdict_is_in_words(world, html):
    factor = numbers_of(world.files(), None)["score"]["final"]["typical_factor"]
    assert f"Typically off by a factor of\xa0{factor:.1f}" in html
    assert "a constant" in html


@pytest.mark.usefixtures("undrawn")
def test_a_model_that_is_no_better_than_a_constant_is_told_so(world):
    assert "does no better" not in page_of(world)
    world.final = world.final + 5
    world.write_run()
    assert "<strong>this model does no better</strong>" in page_of(world)


@pytest.mark.usefixtures("undrawn")
def test_harder_splits_are_part_of_the_verdict_and_easier_ones_are_not(world):
    world.write_run(diagnostics={"linear_msle_by_split": {"kfold": 1.0, "group": 9.0, "time": 1.0}})
    lead = page_of(world).partition('class="lead"')[2].partition("</p>")[0]
    assert "channels never seen, a factor of" in lead
    assert "newest" not in lead


@pytest.mark.usefixtures("undrawn")
def test_contributions_are_told_as_factors(tmp_path):
    world = ReportWorld(tmp_path, modalities=("image", "age"))
    world.best[7], world.contributions[:, 7] = 40.0, [0.588, -0.357]
    world.write_run()
    card = page_of(world).partition('<article class="card">')[2].partition("</article>")[0]
    assert re.findall(r"<b>([^<]*)</b>", card)[1:] == ["×1.8", "×0.70"]


@pytest.mark.usefixtures("undrawn")
def test_notices_are_on_the_page(world):
    assert "<li>no thumbnails &amp; no cache</li>" in page_of(world, notices=["no thumbnails & no cache"])


@pytest.mark.usefixtures("undrawn")
def test_a_part_with_a_list_of_mappings_has_a_table_and_the_rest_beside_it(world):
    sweep = {"chosen": {"lr": 0.1}, "configurations": [{"lr": 0.1, "oof_msle": 2.5}, {"lr": 0.2, "oof_msle": 3.5}]}
    section = page_of(world, other={"sweep": sweep}).partition(">Sweep<")[2].partition("</section>")[0]
    assert "<caption>configurations</caption>" in section
    assert re.findall(r"<td>([^<]*)</td>", section) == ["0.1", "2.5", "0.2", "3.5"]
    assert re.findall(r"<dt>([^<]*)</dt><dd>([^<]*)</dd>", section) == [("chosen lr", "0.1")]


@pytest.mark.usefixtures("undrawn")
def test_a_term_that_is_no_modality_has_its_bar(tmp_path):
    world = ReportWorld(tmp_path, modalities=("image", "joint"))
    world.write_run()
    card = page_of(world).partition('<article class="card">')[2].partition("</article>")[0]
    assert "what they do together" in card


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("value", [[{"seed": 1, "msle": 2.0}], {"best": {"lr": 0.1}}, "none", []])
def test_parts_that_only_some_runs_have_are_shown_whatever_they_hold(world, value):
    assert ">Sweep<" in page_of(world, other={"sweep": value})


def test_a_target_that_is_no_count_has_no_factors(tmp_path):
    world = ReportWorld(tmp_path, target="none")
    world.write_dataset()
    world.write_run()
    html = page_of(world)
    assert "factor of" not in html
    assert "×" not in html.replace("within ×2", "")


def test_templates_travel_with_the_package():
    names = {entry.name for entry in resources("pipeline.reporting").joinpath("templates").iterdir()}
    assert {"report.html.j2", "report.css"} <= names


def test_colours_differ_and_stay_with_their_modality():
    several = ["image", "text", "age", "image@ViT-B-32", "text@ViT-B-32", "interaction"]
    found = colours(several)
    assert len(set(found.values())) == len(several)
    assert {name: found[name] for name in ("image", "text", "age")} == colours(["age", "text", "image"])
    assert set(colours([f"m{index}" for index in range(SERIES + 3)]).values()) <= set(range(SERIES))


def test_every_series_and_variable_of_the_charts_is_in_the_style_sheet():
    from pipeline.reporting.svg import _VARIABLES

    css = resources("pipeline.reporting").joinpath("templates", "report.css").read_text(encoding="utf-8")
    light, _, dark = css.partition("prefers-color-scheme: dark")
    for variable in _VARIABLES.values():
        assert f"{variable}:" in light
        assert f"{variable}:" in dark
