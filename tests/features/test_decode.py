import hashlib
import os
import random
import struct
import threading
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from features import decode
from features.decode import NO_SOURCE, decode_file
from features.status import Status


def picture(width: int = 97, height: int = 61, seed: int = 0) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (7, 9, 3), np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.fixture
def decoded(tmp_path: Path):
    def decode_bytes(data: bytes) -> decode.Decoded:
        path = tmp_path / "any.jpg"
        path.write_bytes(data)
        return decode_file(path)

    return decode_bytes


@pytest.fixture(params=["with simplejpeg", "without simplejpeg"])
def _either_decoder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch):
    if request.param == "without simplejpeg":
        monkeypatch.setattr(decode, "simplejpeg", None)


@pytest.mark.usefixtures("_either_decoder")
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"quality": 10}])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_jpeg_decodes_as_pillow_decodes_it(decoded, mode: str, options: dict):
    data = encoded(picture().convert(mode), "JPEG", **options)
    rgb, status, digest = decoded(data)
    expected = np.asarray(Image.open(BytesIO(data)).convert("RGB")).astype(int)
    assert status is Status.OK
    assert np.abs(rgb - expected).max() <= 1
    assert digest == hashlib.sha256(data).digest()[:16]


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF"])
def test_the_kind_is_read_from_the_bytes_and_not_from_the_name(decoded, kind: str):
    data = encoded(picture(), kind, lossless=True)
    assert np.array_equal(decoded(data).rgb, np.asarray(Image.open(BytesIO(data)).convert("RGB")))


@pytest.mark.usefixtures("_either_decoder")
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("missing", [1, 2, 20, "half"])
def test_a_file_that_ends_early_is_truncated(decoded, kind: str, progressive: bool, missing: int | str):
    data = encoded(picture(), kind, progressive=progressive)
    cut = data[: len(data) // 2] if missing == "half" else data[:-missing]
    rgb, status, digest = decoded(cut)
    assert (rgb, status) == (None, Status.TRUNCATED)
    assert digest == hashlib.sha256(cut).digest()[:16]


@pytest.mark.usefixtures("_either_decoder")
def test_flipped_bits_inside_a_jpeg_cannot_be_seen_but_change_its_digest(decoded):
    whole = encoded(picture(), "JPEG")
    flipped = bytearray(whole)
    for place in (len(whole) // 2, len(whole) // 2 + 7):
        flipped[place] ^= 1
    before, after = decoded(whole), decoded(bytes(flipped))
    assert (before.status, after.status) == (Status.OK, Status.OK)
    assert (before.rgb != after.rgb).any()
    assert before.source_sha256 != after.source_sha256


@pytest.mark.usefixtures("_either_decoder")
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_bytes_behind_the_end_of_an_image_do_no_harm(decoded, kind: str):
    assert decoded(encoded(picture(), kind) + b"\0" * 50 + b"appended by a camera").status is Status.OK


@pytest.mark.parametrize("data", [b"", b"<html>404</html>", b"<svg xmlns='x'/>", bytes(range(7, 200)), b"\xff\xd8"])
def test_what_is_no_image_is_unidentified(decoded, data: bytes):
    assert decoded(data).status is Status.UNIDENTIFIED


@pytest.mark.parametrize("kind", ["TIFF", "BMP", "EPS", "JPEG2000", "ICO"])
def test_an_image_of_another_format_never_reaches_a_decoder(decoded, kind: str):
    assert decoded(encoded(picture(), kind)).status is Status.FORMAT


@pytest.mark.parametrize("head", [b"8BPS", b"SIMPLE  =  T", b"\0\0\0\x1cftypavif", b"\0\0\0\x0cJXL \r\n\x87\n"])
def test_a_format_is_known_by_its_first_bytes(decoded, head: bytes):
    assert decoded(head + bytes(100)).status is Status.FORMAT


def test_sixteen_bit_grey_is_scaled_and_not_clipped(decoded):
    wide = np.linspace(0, 65_535, 256).astype(np.uint16).reshape(16, 16)
    rgb = decoded(encoded(Image.fromarray(wide), "PNG")).rgb
    assert np.array_equal(rgb[..., 0].ravel(), np.arange(256))
    assert np.array_equal(rgb[..., 0], rgb[..., 2])


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_transparency_shows_white(decoded, kind: str):
    clear_red = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    assert (decoded(encoded(clear_red, kind, lossless=True)).rgb == 255).all()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA"])
def test_every_mode_becomes_rgb(decoded, mode: str):
    image = picture().convert(mode)
    rgb = decoded(encoded(image, "PNG")).rgb
    assert np.array_equal(rgb, np.asarray(image.convert("RGBA").convert("RGB")))


def test_a_transparent_palette_colour_shows_white(decoded):
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 200, 10, 10])
    assert (decoded(encoded(image, "GIF", transparency=1)).rgb == 255).all()


@pytest.mark.parametrize("kind", ["GIF", "WEBP"])
def test_an_animation_shows_its_first_frame(decoded, kind: str):
    frames = [Image.new("RGB", (16, 12), colour) for colour in ("red", "blue", "lime")]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], lossless=True)
    assert (decoded(data).rgb == (255, 0, 0)).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_orientation_is_applied(decoded, orientation: int):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(picture(), "JPEG", exif=exif)
    assert np.array_equal(decoded(data).rgb, np.asarray(ImageOps.exif_transpose(Image.open(BytesIO(data)))))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_a_damaged_exif_block_does_not_cost_the_picture(decoded):
    rgb, status, _ = decoded(encoded(picture(), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff\xff\xff"))
    assert status is Status.OK
    assert rgb.shape == (61, 97, 3)


def png_header(width: int, height: int) -> bytes:
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    end = b"IEND" + struct.pack(">I", zlib.crc32(b"IEND"))
    data = b"IDAT" + zlib.compress(b"\0")
    parts = [chunk + struct.pack(">I", zlib.crc32(chunk)), data + struct.pack(">I", zlib.crc32(data)), end]
    return b"\x89PNG\r\n\x1a\n" + b"".join(struct.pack(">I", len(part) - 8) + part for part in parts)


@pytest.mark.parametrize("size", [(10_000, 10_000), (20_000, 10_000), (2**31 - 1, 2**31 - 1), (2**31 - 1, 1)])
def test_a_picture_with_too_many_pixels_is_refused_by_its_header(decoded, size: tuple[int, int]):
    assert decoded(png_header(*size)).status is Status.TOO_LARGE


@pytest.mark.usefixtures("_either_decoder")
def test_a_jpeg_with_too_many_pixels_is_refused_by_its_header(decoded):
    data = bytearray(encoded(picture(), "JPEG"))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", 60_000, 60_000)
    assert decoded(bytes(data)).status is Status.TOO_LARGE


def test_a_file_with_too_many_bytes_is_not_read(tmp_path: Path):
    path = tmp_path / "huge.jpg"
    with path.open("wb") as file:
        file.truncate(decode.MAX_FILE_BYTES + 1)
    assert decode_file(path) == (None, Status.TOO_LARGE, NO_SOURCE)


def test_a_file_that_is_gone_is_missing(tmp_path: Path):
    assert decode_file(tmp_path / "gone.jpg") == (None, Status.MISSING, NO_SOURCE)


def test_only_regular_files_are_read_and_a_fifo_does_not_hang(tmp_path: Path):
    os.mkfifo(tmp_path / "fifo.jpg")
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    for path in (tmp_path, tmp_path / "fifo.jpg", tmp_path / "loop.jpg", Path("/dev/zero")):
        assert decode_file(path) == (None, Status.UNREADABLE, NO_SOURCE)


def test_damaged_files_give_a_status_and_never_an_exception(decoded):
    draw = random.Random(0)
    seen = set()
    for kind in ("JPEG", "PNG", "WEBP", "GIF"):
        sound = encoded(picture(), kind)
        for _ in range(60):
            data = bytearray(sound)
            for _ in range(draw.randint(1, 20)):
                data[draw.randrange(len(data))] = draw.randrange(256)
            rgb, status, _ = decoded(bytes(data))
            assert (rgb is None) == (status is not Status.OK)
            seen.add(status)
    assert {Status.OK, Status.TRUNCATED} <= seen


def test_threads_read_what_one_thread_reads(tmp_path: Path):
    paths = [tmp_path / f"{seed}.jpg" for seed in range(24)]
    for seed, path in enumerate(paths):
        path.write_bytes(encoded(picture(seed=seed), "JPEG" if seed % 2 else "PNG"))
    alone = [decode_file(path).rgb for path in paths]
    together: dict[int, np.ndarray] = {}

    def read(first: int) -> None:
        for index in range(first, len(paths), 4):
            together[index] = decode_file(paths[index]).rgb

    threads = [threading.Thread(target=read, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(alone[index], together[index]) for index in range(len(paths)))


@pytest.mark.parametrize("name", ["whole", "cut", "missing", "folder"])
def test_the_digest_of_a_source_is_the_same_without_decoding(tmp_path: Path, name: str):
    path = tmp_path / name
    if name == "folder":
        path.mkdir()
    elif name != "missing":
        path.write_bytes(encoded(picture(), "PNG")[: None if name == "whole" else 50])
    assert decode.source_digest(path) == decode.decode_file(path).source_sha256
