"""Thumbnails in a page: small, ours, and never the original bytes."""

import base64
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from pipeline.reporting.pictures import LARGE_PX, SMALL_PX, data_uri, pictures_of
from pipeline.reporting.sources import Notices, find_videos
from tests.pipeline.reporting.world import ReportWorld, Told


@pytest.fixture
def world(tmp_path):
    world = ReportWorld(tmp_path)
    world.write_dataset()
    world.paint(size=(640, 360))
    world.write_run()
    return world


def opened(uri: str) -> Image.Image:
    head, _, data = uri.partition(",")
    assert head == "data:image/jpeg;base64"
    return Image.open(BytesIO(base64.b64decode(data)))


def cases_of(*videos, neighbours=()):
    return {"over": [{"video": video, "neighbours": {}} for video in videos], "under": []} | (
        {"under": [{"video": videos[0], "neighbours": {m: [{"video": v}] for m, v in neighbours}}]}
        if neighbours
        else {}
    )


def show(world, cases, told=None):
    notices = Notices(told or Told())
    return pictures_of(cases, find_videos(world.config, world.files(), notices), notices)


def test_a_case_is_large_and_a_lookalike_small_and_a_readalike_not_shown(world):
    pictures = show(world, cases_of(1, neighbours=[("image", 2), ("text", 3)]))
    assert {video: opened(uri).size for video, uri in pictures.items()} == {
        1: (LARGE_PX, LARGE_PX * 9 // 16),
        2: (SMALL_PX, SMALL_PX * 9 // 16),
    }


def test_nothing_but_pixels_is_left_of_a_file(world):
    picture = Image.new("RGB", (50, 50), "red")
    exif = Image.Exif()
    exif[0x010E] = "secret"
    path = world.data / "train_val" / "id-01.jpg"
    picture.save(path, "JPEG", exif=exif, comment=b"secret")
    path.write_bytes(path.read_bytes() + b"secret")
    raw = base64.b64decode(show(world, cases_of(1))[1].partition(",")[2])
    assert b"secret" not in raw
    assert np.asarray(opened(show(world, cases_of(1))[1])).mean(axis=(0, 1)) == pytest.approx([254, 0, 0], abs=3)


def test_what_cannot_be_shown_is_counted_with_its_reasons(world):
    (world.data / "train_val" / "id-01.jpg").unlink()
    (world.data / "train_val" / "id-02.jpg").write_text("<html>")
    told = Told()
    assert list(show(world, cases_of(1, 2, 3), told)) == [3]
    assert told.warnings == ["2 of 3 thumbnails cannot be shown: missing, unidentified."]


def test_without_dataset_or_folder_of_thumbnails_there_are_none(tmp_path):
    world = ReportWorld(tmp_path)
    world.write_dataset()
    world.write_run()
    told = Told()
    assert show(world, cases_of(1), told) == {}
    assert pictures_of(cases_of(1), None, Notices(told)) == {}
    assert told.warnings == []


def test_a_small_picture_is_not_blown_up_and_a_tall_one_fits():
    assert opened(data_uri(Image.new("RGB", (20, 10)), 100)).size == (20, 10)
    assert opened(data_uri(Image.new("RGB", (50, 500)), 100)).size == (10, 100)
