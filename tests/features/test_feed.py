"""Thumbnails come in the order of their sources, however many threads read them, and never more than memory allows."""

import io
import random
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from features.decode import read_source
from features.feed import ThumbnailFeed
from features.preprocess import Thumbnail, cut_thumbnail
from features.status import Status
from tests.conftest import PREPROCESS


def sources(rows):
    return [Path(f"{row}") for row in rows]


def read_name(source):
    return source if isinstance(source, Status) else source.name.encode()


def cut_name(data):
    return Thumbnail(None, data if isinstance(data, Status) else Status.OK, b"" if isinstance(data, Status) else data)


@pytest.fixture
def make_feed():
    feeds = []

    def make(threads=2, ahead=4, read=read_name, cut=cut_name):
        feeds.append(ThumbnailFeed(read, cut, threads, ahead))
        return feeds[-1]

    yield make
    for feed in feeds:
        feed.close()


def names(feed, rows):
    return [int(feed.next().source_sha256) for _ in range(rows)]


@pytest.mark.parametrize(("threads", "ahead"), [(1, 1), (1, 5), (4, 1), (4, 3), (4, 100)])
def test_thumbnails_come_in_the_order_of_their_sources_whoever_is_faster(make_feed, threads, ahead):
    pause = np.random.default_rng(0).uniform(0, 0.002, 40).tolist()

    def read(source):
        time.sleep(pause[int(source.name)])
        return read_name(source)

    feed = make_feed(threads, ahead, read)
    feed.add(sources(range(25)))
    first = names(feed, 10)
    feed.add(sources(range(25, 40)))
    assert first + names(feed, 30) == list(range(40))


@pytest.mark.parametrize("ahead", [1, 2, 7])
def test_no_more_are_begun_than_were_asked_for_and_may_be_ahead(make_feed, ahead):
    begun = []

    def read(source):
        begun.append(source)
        return read_name(source)

    feed = make_feed(2, ahead, read)
    feed.add(sources(range(20)))
    for asked in range(1, 21):
        assert names(feed, 1) == [asked - 1]
        time.sleep(0.002)
        assert len(begun) <= min(20, asked + ahead)


def test_as_many_are_read_at_once_as_there_are_threads(make_feed):
    together = threading.Barrier(3, timeout=10)

    def read(source):
        together.wait()
        return read_name(source)

    feed = make_feed(3, 3, read)
    feed.add(sources(range(6)))
    assert names(feed, 6) == list(range(6))


def test_an_error_arrives_at_its_own_row(make_feed):
    def cut(data):
        if data == b"3":
            raise ValueError("row 3")
        return cut_name(data)

    feed = make_feed(cut=cut)
    feed.add(sources(range(6)))
    assert names(feed, 3) == [0, 1, 2]
    with pytest.raises(ValueError, match="row 3"):
        feed.next()
    assert names(feed, 2) == [4, 5]


def test_a_source_that_is_not_there_keeps_its_place(make_feed):
    feed = make_feed()
    feed.add([*sources([0]), Status.MISSING, *sources([2])])
    assert [feed.next().status for _ in range(3)] == [Status.OK, Status.MISSING, Status.OK]


def test_who_closes_it_stops_the_reading(make_feed):
    begun, may_end, second_began = [], threading.Event(), threading.Event()

    def read(source):
        begun.append(source.name)
        if source.name == "1":
            second_began.set()
            may_end.wait(10)
        return read_name(source)

    feed = make_feed(1, 10, read)
    feed.add(sources(range(100)))
    assert names(feed, 1) == [0]
    assert second_began.wait(10)
    feed.close()
    may_end.set()
    time.sleep(0.05)
    assert begun == ["0", "1"]


def test_the_time_of_all_threads_is_told_once(make_feed):
    def read(source):
        time.sleep(0.02)
        return read_name(source)

    feed = make_feed(4, 8, read)
    feed.add(sources(range(8)))
    names(feed, 8)
    seconds = feed.take_seconds()
    assert seconds["read"] >= 8 * 0.02 > seconds["decode"]
    assert feed.take_seconds() == {"read": 0.0, "decode": 0.0}


def test_any_change_of_any_kind_of_picture_gives_pixels_or_a_status_for_every_row(make_feed, tmp_path):
    draw = random.Random(3)
    pixels = np.random.default_rng(3).integers(0, 256, (24, 32, 3), np.uint8)
    paths = []
    for kind, options in (("JPEG", {}), ("JPEG", {"progressive": True}), ("PNG", {}), ("WEBP", {}), ("GIF", {})):
        sound = io.BytesIO()
        Image.fromarray(pixels).save(sound, kind, **options)
        for number in range(40):
            raw = bytearray(sound.getvalue())
            for _ in range(draw.choice((1, 2, 20))):
                raw[draw.randrange(draw.choice((60, len(raw))))] = draw.randrange(256)
            paths.append(tmp_path / f"{kind}{len(options)}{number}")
            paths[-1].write_bytes(raw[: draw.choice((len(raw), draw.randrange(len(raw))))])
    feed = make_feed(threads=2, ahead=8, read=read_source, cut=lambda data: cut_thumbnail(data, preprocess=PREPROCESS))
    feed.add(paths)
    found = [feed.next() for _ in paths]
    assert all((thumbnail.pixels is None) == (thumbnail.status is not Status.OK) for thumbnail in found)
    assert {Status.OK, Status.TRUNCATED, Status.UNIDENTIFIED} <= {thumbnail.status for thumbnail in found}
