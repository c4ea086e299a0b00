"""What the heads see of a candidate is what they would see of the same video in a table."""

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from features.config import DatasetConfig
from features.dates import Published, utc_second
from features.progress import Silent
from features.status import Status
from features.videos import read_videos
from pipeline.candidates import Candidate, look_at
from pipeline.inputs import Source, gather
from pipeline.run_encoders import RunEncoders
from pipeline.runs import Run
from pipeline.workspace import Workspace

REFERENCE = np.datetime64("2024-06-01T00:00:00")
SOURCES = [Source(kind, kind) for kind in ("age", "channel", "words")]
NO_ENCODER = RunEncoders(
    Workspace(Path()), Run(Path("run"), {"encoders": {}}), models=(), device="cpu", progress=Silent()
)
ROWS = [
    ["Big cake", "A cake.\nSubscribe!", "cats", "2023-02-03T10:00:00", ""],
    ["", "only this", "", "", "2020"],
    ["নতুন 😱 &amp; more", "", "dogs", "2024-06-01", ""],
    ["=1+1", "", "", "", "2024"],
]


def candidate(title, description, channel, date, year):
    published = Published(utc_second(date), 0, "") if date else Candidate().published._replace(year=int(year or 0))
    return Candidate(title=title, description=description, channel=channel, published=published)


def test_a_candidate_looks_like_the_same_video_in_a_table(tmp_path):
    with (tmp_path / "test.csv").open("w", newline="", encoding="utf-8") as file:
        header = ["id", "title", "description", "channel", "date", "year"]
        csv.writer(file).writerows([header, *([f"v{row}", *cells] for row, cells in enumerate(ROWS))])
    videos = read_videos(DatasetConfig(data=tmp_path), "test")
    expected = gather(Workspace(tmp_path), SOURCES, videos, REFERENCE).inputs
    found = look_at([candidate(*row) for row in ROWS], SOURCES, NO_ENCODER, REFERENCE).inputs
    assert found.modalities == expected.modalities
    np.testing.assert_array_equal(found.present, expected.present)
    np.testing.assert_array_equal(found.block("age").values, expected.block("age").values)
    np.testing.assert_array_equal(found.block("channel").codes, expected.block("channel").codes)
    assert (found.block("words").counts != expected.block("words").counts).nnz == 0


def test_without_a_date_the_age_is_0_and_the_day_says_nothing():
    block = look_at([Candidate(title="x")], SOURCES[:1], NO_ENCODER, REFERENCE).inputs.block("age")
    assert block.present.all()
    assert block.values.tolist() == [[0.0] * 7]


def test_a_date_ahead_of_the_reference_is_a_negative_age():
    ahead = Candidate(published=Published(utc_second("2025-06-01"), 0, ""))
    assert look_at([ahead], SOURCES[:1], NO_ENCODER, REFERENCE).inputs.block("age").values[0, 0] == pytest.approx(
        -1, abs=0.01
    )


def test_images_are_looked_at_although_no_modality_reads_them(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "good.png")
    (tmp_path / "bad.jpg").write_text("<html>")
    images = [tmp_path / "good.png", tmp_path / "bad.jpg", tmp_path / "none.jpg", Status.OUTSIDE_ROOT, None]
    seen = look_at([Candidate(image=image) for image in images], SOURCES[:1], NO_ENCODER, REFERENCE)
    expected = [Status.OK, Status.UNIDENTIFIED, Status.MISSING, Status.OUTSIDE_ROOT, Status.MISSING]
    assert seen.image_status.tolist() == expected


@pytest.mark.parametrize(("title", "description", "has_text"), [("", "", False), (" \0", "\n", False), ("", "x", True)])
def test_a_text_needs_a_word(title, description, has_text):
    assert Candidate(title=title, description=description).has_text is has_text


def test_a_channel_is_named_as_a_table_would_hold_it():
    assert Candidate(channel=" cats \ud83d ").channel_name == "cats \ufffd"
    block = look_at([Candidate(channel="\udcff")], SOURCES[1:2], NO_ENCODER, REFERENCE).inputs.block("channel")
    assert block.present.all()
