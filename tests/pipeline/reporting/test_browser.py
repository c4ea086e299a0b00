"""The page in a real browser: it renders, asks for nothing, and fits a phone."""

import shutil
from functools import partial
from pathlib import Path

import pytest

from pipeline.config import ReportConfig
from pipeline.report import report
from tests.pipeline.reporting.world import ReportWorld, Told

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
ARGUMENTS = ["--no-sandbox", "--headless=new", "--disable-background-networking", "--disable-gpu"]
WIDTHS_PX = (360, 768, 1280)

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def page_path(tmp_path, cache_world, fake_encoder) -> Path:
    """A report with titles that try to break out, to stretch and to turn the page around."""
    world = ReportWorld(tmp_path)
    hostile = ["<script>document.title = 'x'</script>", "W" * 150, "\u202eلعبة " * 20, "<img src='http://a.test/x'>"]
    world.titles = [hostile[row % 4] for row in range(len(world.titles))]
    world.channels = ["UC" + "w" * 70] * 30 + ["c"] * 30
    world.write_dataset()
    world.paint(size=(320, 180))
    world.embed(partial(cache_world.make, fake_encoder()))
    splits = {
        "kfold": 1.0,
        "group": 9.0,
        "time": "all videos have the same date, so that no fold is later than another",
    }
    world.write_run(diagnostics={"linear_msle_by_split": splits}, sweep=[{"penalty": "x" * 200, "msle": 1.0}])
    report(ReportConfig(data=world.data, work=world.work.root), Told())
    return world.work.run("hand") / "report.html"


class Visit:
    """One look at a page, with all it said and asked for."""

    def __init__(self, browser, path: Path, *, width_px: int = 1280, scheme: str = "light") -> None:
        self.said: list[str] = []
        self.asked: list[str] = []
        context = browser.new_context(color_scheme=scheme, viewport={"width": width_px, "height": 800})
        self.page = context.new_page()
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(path.as_uri())


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_renders_without_a_word_of_complaint_and_asks_for_nothing(browser, page_path, scheme):
    visit = Visit(browser, page_path, scheme=scheme)
    assert visit.said == []
    assert [url for url in visit.asked if not url.startswith("data:")] == [page_path.as_uri()]
    assert visit.page.title() == "hand – how well views are predicted"
    assert visit.page.locator("h1").inner_text().startswith("Typically off by")
    shown = visit.page.evaluate("Array.from(document.images, image => image.complete && image.naturalWidth > 0)")
    assert len(shown) > 10
    assert all(shown)


@pytest.mark.parametrize("width_px", WIDTHS_PX)
def test_nothing_sticks_out_at_the_side_even_with_all_details_open(browser, page_path, width_px):
    page = Visit(browser, page_path, width_px=width_px).page
    page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") <= width_px
    outside = page.evaluate(
        """width => Array.from(document.querySelectorAll('body *'))
            .filter(each => !each.closest('.scroll, svg') && each.getBoundingClientRect().right > width + 1)
            .map(each => each.outerHTML.slice(0, 80))""",
        width_px,
    )
    assert outside == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_letters_stand_out_from_their_ground(browser, page_path, scheme):
    page = Visit(browser, page_path, scheme=scheme).page
    colours = page.evaluate(
        """() => { const style = getComputedStyle(document.documentElement);
            return Object.fromEntries(['ink', 'muted', 'paper', 'soft', 'accent',
                ...Array(8).keys().map(index => 'series-' + index)]
                .map(name => [name, style.getPropertyValue('--' + name).trim()])) }"""
    )
    assert contrast(colours["ink"], colours["paper"]) >= 7
    assert contrast(colours["muted"], colours["paper"]) >= 4.5
    assert contrast(colours["muted"], colours["soft"]) >= 4.5
    for name in ("accent", *(f"series-{index}" for index in range(8))):
        assert contrast(colours[name], colours["paper"]) >= 3, name
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == f"rgb({', '.join(str(part) for part in rgb(colours['paper']))})"


def test_charts_take_the_colours_of_the_scheme(browser, page_path):
    strokes = {}
    for scheme in ("light", "dark"):
        page = Visit(browser, page_path, scheme=scheme).page
        strokes[scheme] = page.evaluate(
            "getComputedStyle(document.querySelector('#age svg path[style*=series]')).stroke"
            " + getComputedStyle(document.querySelector('figure svg text')).fill"
        )
    assert strokes["light"] != strokes["dark"]


def test_details_open_with_the_keyboard(browser, page_path):
    page = Visit(browser, page_path).page
    page.locator("summary").first.focus()
    page.keyboard.press("Enter")
    assert page.evaluate("document.querySelector('details').open")


def rgb(colour: str) -> tuple[int, int, int]:
    return tuple(bytes.fromhex(colour.removeprefix("#")))


def contrast(one: str, other: str) -> float:
    """Contrast ratio of two colours, WCAG 2.2."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def luminance(colour: str) -> float:
    parts = [part / 255 for part in rgb(colour)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
