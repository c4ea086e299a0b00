import csv
import math
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from features.errors import UsageError
from pipeline.drawn_dataset import (
    BASE_LOG_VIEWS,
    CHANNELS,
    KINDS,
    LEADS,
    MOODS,
    SUBJECTS,
    DrawnRule,
    DrawnVideo,
    Scene,
    draw_dataset,
    draw_thumbnail,
)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> tuple[Path, DrawnRule]:
    folder = tmp_path_factory.mktemp("drawn") / "dataset"
    return folder, draw_dataset(folder)


def read(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, dtype={"id": str}, keep_default_na=False)


def middle_square(path: Path, size_px: int) -> np.ndarray | None:
    try:
        with Image.open(path) as picture:
            picture.load()
    except OSError:  # also what Pillow raises for bytes that are no image or end early
        return None
    margin = (picture.width - picture.height) // 2
    square = picture.convert("RGB").crop((margin, 0, margin + picture.height, picture.height))
    return np.asarray(square.resize((size_px, size_px), Image.Resampling.BOX), dtype=float) / 255


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_rule_can_be_found_from_the_files_alone(drawn):
    folder, rule = drawn
    table = read(folder / "train_val.csv")
    squares = [middle_square(folder / "train_val" / f"{name}.jpg", 8) for name in table["id"]]
    usable = np.array([square is not None for square in squares])
    table = table[usable]
    words = [*LEADS, *MOODS, *KINDS]
    newest = pd.Timestamp("2025-04-15", tz="UTC")
    ages_years = (newest - pd.to_datetime(table["date"], utc=True, format="ISO8601")) / pd.Timedelta(days=365.25)
    blocks = {
        "image": np.array([square.reshape(-1) for square in squares if square is not None]),
        "text": np.array([[word in title for word in words] for title in table["title"]], dtype=float),
        "age": np.exp(-ages_years.to_numpy() / 3)[:, None],
    }
    log_views = np.log1p(table["views"].to_numpy())

    x = np.hstack([block - block.mean(axis=0) for block in blocks.values()])
    slopes = np.linalg.solve(x.T @ x + np.eye(x.shape[1]), x.T @ (log_views - log_views.mean()))
    ends = np.cumsum([block.shape[1] for block in blocks.values()])[:-1]
    sd = [np.std(part @ slope) for part, slope in zip(np.split(x, ends, axis=1), np.split(slopes, ends), strict=True)]

    assert sd / np.sum(sd) == pytest.approx(list(rule.weights.values()), abs=0.05)
    unexplained = np.var(log_views - log_views.mean() - x @ slopes)
    assert unexplained < 1.1 * (rule.noise**2 + rule.channel**2)


def test_each_modality_explains_a_clear_share(drawn):
    _, rule = drawn
    assert rule.image == pytest.approx(0.9, abs=0.05)
    assert rule.text == pytest.approx(0.9, abs=0.05)
    assert rule.age == pytest.approx(0.8, abs=0.05)
    assert rule.noise == pytest.approx(0.5, abs=0.05)
    assert rule.channel < rule.noise
    assert sum(rule.weights.values()) == pytest.approx(1)


def test_views_are_the_rule_rounded_to_whole_views():
    video = DrawnVideo(
        id="0",
        channel="UC",
        title="My first old car",
        date="2020-01-01",
        description="",
        year=2020,
        scene=Scene(background=(0.0, 0.0, 0.0), n_shapes=0, word="CAR"),
        terms={"text": math.log(100.7) - BASE_LOG_VIEWS, "noise": 0.0},
    )
    assert video.views == 100


def test_views_look_like_views(drawn):
    folder, _ = drawn
    views = read(folder / "train_val.csv")["views"]
    assert views.dtype == np.int64
    assert 1e4 < views.median() < 1e5
    assert views.min() >= 0


def test_the_tables_have_the_columns_of_the_challenge(drawn):
    folder, _ = drawn
    with (folder / "train_val.csv").open(newline="") as file:
        assert next(csv.reader(file)) == ["", "id", "channel", "title", "date", "description", "views", "year"]
    with (folder / "test.csv").open(newline="") as file:
        assert next(csv.reader(file)) == ["", "channel", "title", "date", "description", "year", "id"]
    assert len(read(folder / "train_val.csv")) == 450
    truth = read(folder / "test_views.csv")
    assert list(truth.columns) == ["id", "views"]
    assert list(truth["id"]) == list(read(folder / "test.csv")["id"])


def test_ids_are_unique_and_some_begin_with_a_hyphen(drawn):
    folder, _ = drawn
    ids = read(folder / "train_val.csv")["id"]
    assert ids.is_unique
    assert ids.str.fullmatch(r"[A-Za-z0-9_-]{11}").all()
    assert ids.str.startswith("-").any()


def test_the_year_is_that_of_the_date_and_dates_come_in_two_forms(drawn):
    folder, _ = drawn
    for name in ("train_val.csv", "test.csv"):
        table = read(folder / name)
        assert (table["date"].str[:4].astype(int) == table["year"]).all()
        timed = table["date"].str.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\+00:00")
        assert (timed | table["date"].str.fullmatch(r"\d{4}-\d\d-\d\d")).all()
        assert 0.5 < timed.mean() < 0.9


def test_training_videos_are_older_than_test_videos_on_average(drawn):
    folder, _ = drawn
    train_years, test_years = (read(folder / name)["year"] for name in ("train_val.csv", "test.csv"))
    assert train_years.mean() + 2 < test_years.mean()
    assert train_years.between(2011, 2025).all()
    assert test_years.between(2020, 2025).all()


def test_titles_and_descriptions_have_the_quirks_of_real_ones(drawn):
    folder, _ = drawn
    for name in ("train_val.csv", "test.csv"):
        table = read(folder / name)
        for quirk in ("^=", "&amp;", '"', ",", "😱", "日本語", "নতুন", "الجزء"):
            assert table["title"].str.contains(quirk).any(), (name, quirk)
        assert (table["description"] == "").any()
        assert table["description"].str.contains("\n").any()
        assert set(table["channel"]) == set(CHANNELS)


def test_every_title_keeps_the_words_of_the_rule_whole(drawn):
    folder, _ = drawn
    sentence = re.compile(rf"({'|'.join(LEADS)}) ({'|'.join(MOODS)}) ({'|'.join(SUBJECTS)}) ({'|'.join(KINDS)})\b")
    assert all(sentence.search(title) for title in read(folder / "train_val.csv")["title"])


def test_three_training_thumbnails_are_lost_cut_short_or_a_web_page(drawn):
    folder, _ = drawn
    paths = [folder / "train_val" / f"{name}.jpg" for name in read(folder / "train_val.csv")["id"]]
    missing, truncated, page = [path for path in paths if middle_square(path, 1) is None]
    assert not missing.exists()
    assert truncated.read_bytes().startswith(b"\xff\xd8")
    assert not truncated.read_bytes().endswith(b"\xff\xd9")
    assert page.read_text().startswith("<!DOCTYPE html>")


def test_every_test_thumbnail_opens(drawn):
    folder, _ = drawn
    ids = read(folder / "test.csv")["id"]
    assert all(middle_square(folder / "test" / f"{name}.jpg", 1) is not None for name in ids)


def test_a_few_thumbnails_are_wide_or_not_the_jpeg_their_name_says(drawn):
    folder, _ = drawn
    pictures = [Image.open(path) for path in (folder / "test").iterdir()]
    formats, sizes = [picture.format for picture in pictures], [picture.size for picture in pictures]
    for picture in pictures:
        picture.close()
    assert {name: formats.count(name) for name in set(formats)} == {"JPEG": 86, "PNG": 2, "WEBP": 2}
    assert {size: sizes.count(size) for size in set(sizes)} == {(480, 360): 87, (640, 360): 3}


@pytest.mark.parametrize(("n_train", "n_bad"), [(2, 0), (99, 0), (100, 1), (199, 1)])
def test_at_most_one_training_thumbnail_in_a_hundred_is_unusable(tmp_path, n_train, n_bad):
    draw_dataset(tmp_path / "dataset", n_train=n_train, n_test=1)
    ids = read(tmp_path / "dataset" / "train_val.csv")["id"]
    squares = [middle_square(tmp_path / "dataset" / "train_val" / f"{name}.jpg", 1) for name in ids]
    assert sum(square is None for square in squares) == n_bad


def test_two_drawings_with_one_seed_are_byte_identical(tmp_path):
    rules = [draw_dataset(tmp_path / name, n_train=50, n_test=10) for name in ("one", "two")]
    assert rules[0] == rules[1]
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_another_seed_draws_other_videos(tmp_path):
    for seed in (1, 2):
        draw_dataset(tmp_path / str(seed), n_train=10, n_test=10, seed=seed)
    one, two = (read(tmp_path / name / "train_val.csv") for name in ("1", "2"))
    assert not set(one["id"]) & set(two["id"])
    assert list(one["views"]) != list(two["views"])


def test_more_rows_leave_the_first_ones_as_they_were(tmp_path):
    for n in (10, 20):
        draw_dataset(tmp_path / str(n), n_train=n, n_test=n)
    for name in ("train_val.csv", "test.csv", "test_views.csv"):
        few, many = read(tmp_path / "10" / name), read(tmp_path / "20" / name)
        pd.testing.assert_frame_equal(few, many[:10])


def test_a_drawing_that_is_there_is_kept(tmp_path):
    rule = draw_dataset(tmp_path / "dataset", n_train=5, n_test=2)
    (tmp_path / "dataset" / "test.csv").write_text("edited")
    assert draw_dataset(tmp_path / "dataset", n_train=5, n_test=2) == rule
    assert (tmp_path / "dataset" / "test.csv").read_text() == "edited"


def test_a_drawing_with_other_parameters_is_refused_and_left_alone(tmp_path):
    draw_dataset(tmp_path / "dataset", n_train=5, n_test=2)
    before = contents(tmp_path / "dataset")
    with pytest.raises(UsageError, match=r"'n_train': 6.*'n_train': 5.*remove it or choose another folder"):
        draw_dataset(tmp_path / "dataset", n_train=6, n_test=2)
    assert contents(tmp_path / "dataset") == before


def test_a_folder_of_something_else_is_refused_and_left_alone(tmp_path):
    (tmp_path / "train_val.csv").write_text("id,views\n")
    with pytest.raises(UsageError, match="it holds something else"):
        draw_dataset(tmp_path)
    assert contents(tmp_path) == {"train_val.csv": b"id,views\n"}


def test_an_interrupted_drawing_leaves_nothing(tmp_path, monkeypatch):
    saved = []

    def save_three(picture, path, **_):
        saved.append(path)
        Path(path).touch()
        if len(saved) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(Image.Image, "save", save_three)
    with pytest.raises(KeyboardInterrupt):
        draw_dataset(tmp_path / "dataset", n_train=5, n_test=2)
    assert list(tmp_path.iterdir()) == []


def test_a_drawing_can_be_read_by_whoever_may_read_its_neighbours(tmp_path):
    (tmp_path / "neighbour").mkdir()
    draw_dataset(tmp_path / "dataset", n_train=2, n_test=1)
    assert (tmp_path / "dataset").stat().st_mode == (tmp_path / "neighbour").stat().st_mode


@pytest.mark.parametrize("rows", [{"n_train": 1, "n_test": 1}, {"n_train": 2, "n_test": 0}])
def test_too_few_rows_are_refused(tmp_path, rows):
    with pytest.raises(ValueError, match="at least 2 training rows and 1 test row"):
        draw_dataset(tmp_path / "dataset", **rows)
    assert list(tmp_path.iterdir()) == []


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32), n_shapes=st.integers(0, 4), word=st.sampled_from(SUBJECTS))
def test_everything_but_the_backdrop_lies_in_the_middle_square(seed, n_shapes, word):
    scene = Scene(background=(0.9, 0.4, 0.1), n_shapes=n_shapes, word=word.upper())
    pixels = np.asarray(draw_thumbnail(scene, (480, 360), np.random.default_rng(seed)))
    backdrop = pixels[:, :1]  # each row of pixels has one colour
    assert (pixels[:, :60] == backdrop).all()
    assert (pixels[:, 420:] == backdrop).all()
    assert (pixels[:, 60:420] != backdrop).any()
