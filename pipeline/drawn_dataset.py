"""A small dataset drawn from a known rule, so that a demo can check offline what the heads find.

    log1p(views) = base + image + text + age + channel + noise

The image term follows the background colour and the number of shapes, the text term the words of the title, and the
age term rises and levels off. The files have the quirks of real ones: mixed date formats, ids that begin with `-`,
titles that a spreadsheet takes for formulas, thumbnails that are missing, cut short or no image at all.
"""

import colorsys
import json
import math
import string
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw, ImageFont, ImageOps

from features import durable
from features.errors import UsageError

LAYOUT = 1  # raised whenever the same parameters would draw other files
NEWEST = datetime(2025, 4, 15, tzinfo=UTC)  # no video is newer; ages count back from here
BASE_LOG_VIEWS = 6.1
NOISE_SD = 0.5

# A title is lead, mood, subject and kind. Subjects have no effect, so the word on a thumbnail says nothing of the text.
LEADS = {"Never open the": 0.7, "Why we built a": 0.4, "How I made a": 0.1, "My first": -0.3, "A look at the": -0.6}
MOODS = {"secret": 0.8, "giant": 0.5, "perfect": 0.3, "little": -0.1, "simple": -0.5, "old": -0.7}
SUBJECTS = ("house", "robot", "cake", "game", "car", "phone", "garden", "guitar")
KINDS = {"challenge": 0.8, "disaster": 0.4, "story": 0.1, "review": -0.4, "update": -0.7}
TITLE_QUIRKS = ("{} 😱🔥", "নতুন {}", "{} 日本語", "{} &amp; more", '"{}", they said', "={}", "{} – الجزء")
DESCRIPTIONS = ("Thanks for watching.", "A new film every week.", "", "Made at home, with friends & family.")
CHAPTERS = 'Chapters:\n0:00 start\n5:10 the end\n\n"Thank you," she said.'
CHANNELS = {
    "UCk3wXyPd0hVbTq9LmZr4sNa": -0.45,
    "UCBq7_eRfUj2oGx5YtHc8vWd": -0.25,
    "UCz-1nMpKs6iDaQ0EwLb3gTf": -0.05,
    "UC5hJyVrXo4cNuS8AkZe2mPq": 0.1,
    "UCtG9dWlBf7xRiO1CpYj6aHv": 0.25,
    "UC-u2SzEn8mKqT4FbDr0oLwx": 0.4,
}

FORMATS = {17: "PNG", 29: "WEBP"}  # one row in 45 each; they too are named .jpg
SHAPE_PLACES_PX = ((26, 66), (126, 176), (126, 66), (26, 176))  # beside the middle, below the top
SKINS = ("#f2c9a5", "#d9a066", "#a5673f", "#6b4226")
HAIRS = ("#2b1d12", "#5a3a1e", "#c9a24b", "#8a8a8a")
NOT_FOUND_PAGE = "<!DOCTYPE html>\n<html><head><title>404 Not Found</title></head><body>Not Found</body></html>\n"


@dataclass(frozen=True, kw_only=True)
class DrawnRule:
    """Standard deviation of each term of the rule over the training rows, on the log1p(views) scale."""

    image: float
    text: float
    age: float
    channel: float
    noise: float

    @property
    def weights(self) -> dict[str, float]:
        """Share of each modality: the weights that perfect heads for image, text and age would get.

        >>> DrawnRule(image=1.0, text=0.5, age=0.5, channel=0.3, noise=0.5).weights
        {'image': 0.5, 'text': 0.25, 'age': 0.25}
        """
        total = self.image + self.text + self.age
        return {"image": self.image / total, "text": self.text / total, "age": self.age / total}


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What a thumbnail shows: red, green and blue of the background in [0, 1], how many shapes, one word."""

    background: tuple[float, float, float]
    n_shapes: int
    word: str

    @property
    def effect(self) -> float:
        """The image term: warm, bright and busy thumbnails are watched more.

        >>> round(Scene(background=(0.75, 0.5, 0.25), n_shapes=4, word="CAKE").effect, 6)
        3.8
        """
        red, green, blue = self.background
        return 1.6 * (red - blue) + 4.0 * (red + green + blue) / 3 + 0.25 * self.n_shapes


@dataclass(frozen=True, kw_only=True)
class DrawnVideo:
    """One row: its columns, its thumbnail, and the terms that add up to log1p(views) with the base."""

    id: str
    channel: str
    title: str
    date: str
    description: str
    year: int
    scene: Scene
    terms: Mapping[str, float]

    @property
    def views(self) -> int:
        """Views as a whole number."""
        return max(0, round(math.expm1(BASE_LOG_VIEWS + sum(self.terms.values()))))


def draw_dataset(folder: Path, *, n_train: int = 450, n_test: int = 90, seed: int = 7) -> DrawnRule:
    """Draw `train_val.csv`, `test.csv`, `test_views.csv` and the thumbnails into `folder`, whole or not at all.

    The tables are byte-identical for equal parameters, and so are the thumbnails on one machine. At most three
    training thumbnails, and at most 1 % of them, are unusable on purpose. A drawing that is already there is kept.

    Raises
    ------
    ValueError
        If there are fewer than two training rows or no test row.
    UsageError
        If `folder` exists and is not this very drawing.
    StorageError
        If it cannot be written.
    """
    if n_train < 2 or n_test < 1:
        raise ValueError(f"a drawing needs at least 2 training rows and 1 test row, given {n_train=} and {n_test=}")
    parameters = {"layout": LAYOUT, "n_train": n_train, "n_test": n_test, "seed": seed}
    if folder.exists():
        return _rule_drawn_before(folder, parameters)
    with durable.whole_folder(folder) as drawing:
        rule = _draw_into(drawing, n_train, n_test, seed)
        (drawing / "drawn.json").write_text(json.dumps({"parameters": parameters, "rule": asdict(rule)}, indent=2))
    return rule


def draw_thumbnail(scene: Scene, size_px: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    """Paint a scene; everything but the backdrop keeps to the middle square, which is what an encoder crops."""
    picture = _paint_backdrop(scene.background, size_px)
    canvas = ImageDraw.Draw(picture)
    middle, side = size_px[0] // 2, int(rng.choice((-1, 1)))
    for across, down in SHAPE_PLACES_PX[: scene.n_shapes]:
        _paint_shape(canvas, middle + side * across, down, rng)
    if rng.random() < 0.85:
        _paint_face(canvas, middle - side * 95, 165, rng)
    _paint_caption(canvas, middle, 305, scene.word, rng)
    return picture


def _rule_drawn_before(folder: Path, parameters: Mapping[str, int]) -> DrawnRule:
    record = folder / "drawn.json"
    drawn = json.loads(record.read_text()) if record.is_file() else {}
    if drawn.get("parameters") != parameters:
        raise UsageError(
            f"{folder} must not exist yet, or hold the drawing of {parameters}; "
            f"it holds {drawn.get('parameters', 'something else')}: remove it or choose another folder"
        )
    return DrawnRule(**drawn["rule"])


def _draw_into(folder: Path, n_train: int, n_test: int, seed: int) -> DrawnRule:
    train = _draw_split(folder / "train_val", n_train, (seed, 0))
    test = _draw_split(folder / "test", n_test, (seed, 1))
    _spoil_thumbnails([folder / "train_val" / f"{video.id}.jpg" for video in train])
    _write_tables(folder, train, test)
    return DrawnRule(**{term: float(np.std([video.terms[term] for video in train])) for term in train[0].terms})


def _draw_split(folder: Path, n_videos: int, seed: tuple[int, int]) -> list[DrawnVideo]:
    """Draw the videos and write their thumbnails; quirks go by row number, so that none is left to chance."""
    folder.mkdir(parents=True)
    videos = []
    for row in range(n_videos):
        rng = np.random.default_rng((*seed, row))
        video = _draw_video(rng, row, folder.name)
        picture = draw_thumbnail(video.scene, (640, 360) if row % 40 == 6 else (480, 360), rng)
        picture.save(folder / f"{video.id}.jpg", format=FORMATS.get(row % 45, "JPEG"), quality=85)
        videos.append(video)
    return videos


def _draw_video(rng: np.random.Generator, row: int, split: str) -> DrawnVideo:
    lead, mood, kind = (str(rng.choice(list(words))) for words in (LEADS, MOODS, KINDS))
    subject, channel = str(rng.choice(SUBJECTS)), str(rng.choice(list(CHANNELS)))
    title, scene, published = f"{lead} {mood} {subject} {kind}", _draw_scene(rng, subject), _draw_date(rng, split)
    return DrawnVideo(
        id=_draw_id(rng, row) if split == "train_val" else str(row),
        channel=channel,
        title=TITLE_QUIRKS[row // 9 % len(TITLE_QUIRKS)].format(title) if row % 9 == 2 else title,
        date=str(published).removesuffix(" 00:00:00+00:00"),
        description=CHAPTERS if row % 60 == 11 else str(rng.choice(DESCRIPTIONS)),
        year=published.year,
        scene=scene,
        terms={
            "image": scene.effect,
            "text": LEADS[lead] + MOODS[mood] + KINDS[kind],
            "age": _age_effect((NEWEST - published) / timedelta(days=365.25)),
            "channel": CHANNELS[channel],
            "noise": float(rng.normal(0, NOISE_SD)),
        },
    )


def _draw_scene(rng: np.random.Generator, subject: str) -> Scene:
    background = colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.4, 0.95), rng.uniform(0.3, 1))
    return Scene(background=background, n_shapes=int(rng.integers(5)), word=subject.upper())


def _draw_date(rng: np.random.Generator, split: str) -> datetime:
    """Training rows reach back to 2011 and test rows to 2020; of three in ten only the day is known."""
    likeliest_years, most_years = (1.5, 14.25) if split == "train_val" else (0.5, 5.0)
    age = timedelta(days=365.25 * rng.triangular(0, likeliest_years, most_years))
    published = (NEWEST - age).replace(microsecond=0)
    return published.replace(hour=0, minute=0, second=0) if rng.random() < 0.3 else published


def _draw_id(rng: np.random.Generator, row: int) -> str:
    """Eleven characters as on YouTube, where a leading `-` is rare but looks like an option to every tool."""
    drawn = "".join(rng.choice(list(string.ascii_letters + string.digits + "-_"), size=11))
    return "-" + drawn[1:] if row % 30 == 4 else drawn


def _age_effect(age_years: float) -> float:
    """Views keep coming in, but fewer every year."""
    return 3.7 * (1 - math.exp(-age_years / 3))


def _write_tables(folder: Path, train: list[DrawnVideo], test: list[DrawnVideo]) -> None:
    """Write the three tables; in `test.csv` the columns stand in another order, as in the real challenge."""
    train_columns = ["id", "channel", "title", "date", "description", "views", "year"]
    table = pd.DataFrame([{name: getattr(video, name) for name in train_columns} for video in train])
    table.index = pd.Index([row + row // 4 for row in range(len(train))])  # nameless, and with gaps
    table.to_csv(folder / "train_val.csv", lineterminator="\n")
    test_columns = ["channel", "title", "date", "description", "year", "id"]
    table = pd.DataFrame([{name: getattr(video, name) for name in [*test_columns, "views"]} for video in test])
    table[test_columns].to_csv(folder / "test.csv", lineterminator="\n")
    table[["id", "views"]].to_csv(folder / "test_views.csv", index=False, lineterminator="\n")


def _spoil_thumbnails(paths: list[Path]) -> None:
    """Of the first three hundreds of thumbnails lose one, cut one short, and put a web page in place of one."""
    spoilt = dict(zip(("missing", "truncated", "page"), paths[99:300:100], strict=False))
    if "missing" in spoilt:
        spoilt["missing"].unlink()
    if "truncated" in spoilt:
        whole = spoilt["truncated"].read_bytes()
        spoilt["truncated"].write_bytes(whole[: len(whole) // 2])
    if "page" in spoilt:
        spoilt["page"].write_text(NOT_FOUND_PAGE)


def _paint_backdrop(background: tuple[float, float, float], size_px: tuple[int, int]) -> Image.Image:
    """From the background colour at the top to a darker shade of it at the bottom."""
    light, dark = (tuple(round(255 * shade * value) for value in background) for shade in (1.0, 0.6))
    return ImageOps.colorize(Image.linear_gradient("L").resize(size_px), black=light, white=dark)


def _paint_shape(canvas: ImageDraw.ImageDraw, x: int, y: int, rng: np.random.Generator) -> None:
    """A disc, a tile or a bar chart."""
    radius, colour = int(rng.integers(42, 50)), f"hsv({rng.integers(360)}, 75%, 95%)"
    shape = rng.choice(("disc", "tile", "bars"))
    if shape == "disc":
        canvas.circle((x, y), radius, fill=colour, outline="white", width=6)
    elif shape == "tile":
        canvas.rounded_rectangle((x - radius, y - radius, x + radius, y + radius), 12, colour, "white", width=6)
    else:
        for left, height in ((x - 45, 35), (x - 15, 60), (x + 15, 90)):
            canvas.rectangle((left, y + 45 - height, left + 26, y + 45), colour, "white", width=4)


def _paint_face(canvas: ImageDraw.ImageDraw, x: int, y: int, rng: np.random.Generator) -> None:
    """Shoulders, hair, head, eyes, and a mouth somewhere between calm and astonished."""
    canvas.ellipse((x - 84, y + 75, x + 84, y + 300), fill=f"hsv({rng.integers(360)}, 60%, 70%)")
    canvas.ellipse((x - 66, y - 92, x + 66, y + 40), fill=str(rng.choice(HAIRS)))
    canvas.ellipse((x - 58, y - 70, x + 58, y + 80), fill=str(rng.choice(SKINS)))
    for eye in (x - 24, x + 24):
        canvas.ellipse((eye - 14, y - 24, eye + 14, y + 8), fill="white")
        canvas.circle((eye, y - 7), 7, fill="black")
    gape = int(rng.integers(4, 22))
    canvas.ellipse((x - 20, y + 42 - gape, x + 20, y + 42 + gape), fill="#7a1f1f")


def _paint_caption(canvas: ImageDraw.ImageDraw, x: int, y: int, word: str, rng: np.random.Generator) -> None:
    font = ImageFont.load_default(size=min(92, 520 // len(word)))
    fill = str(rng.choice(("white", "#ffe100")))
    canvas.text((x, y), word, fill, font, anchor="mm", stroke_width=7, stroke_fill="black")
