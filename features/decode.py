"""From a file on disk to RGB pixels; a file that is not a usable image gets a Status, never an exception.

Thumbnails come from anywhere, so nothing is believed: the file must be a regular one of a sane size, its kind is read
from its bytes and not from its name, and only four formats reach a decoder.
"""

import errno
import hashlib
import os
import stat
import struct
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import ExifTags, GifImagePlugin, Image, ImageFile, JpegImagePlugin, PngImagePlugin, WebPImagePlugin

from features.status import Status

try:
    import simplejpeg
except ImportError:  # no wheel for this platform: Pillow decodes everything, at a third of the speed
    simplejpeg = None

MAX_FILE_BYTES = 50_000_000
MAX_IMAGE_PIXELS = 50_000_000

POLICY: dict[str, Any] = {
    "formats": ["JPEG", "PNG", "WEBP", "GIF"],
    "frame": "first",
    "exif_orientation": "applied",
    "alpha": "composited on white",
    "grey_16_bit": "divided by 257",
    "max_file_bytes": MAX_FILE_BYTES,
    "max_image_pixels": MAX_IMAGE_PIXELS,
}
"""What decides the pixels of a file; part of what identifies a vector."""

NO_SOURCE = bytes(16)

# The classes themselves and not Image.open: that warns of a decompression bomb before the size can be looked at here.
_DECODERS: dict[str, type[ImageFile.ImageFile]] = {
    "JPEG": JpegImagePlugin.JpegImageFile,
    "PNG": PngImagePlugin.PngImageFile,
    "WEBP": WebPImagePlugin.WebPImageFile,
    "GIF": GifImagePlugin.GifImageFile,
}

_OTHER_FORMATS = (
    *(b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),  # TIFF
    *(b"%!PS", b"\xc5\xd0\xd3\xc6"),  # EPS
    *(b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51"),  # JPEG 2000
    *(b"\0\0\0\x0cJXL ", b"\xff\x0a"),  # JPEG XL
    *(b"8BPS", b"SIMPLE  =", b"\0\0\1\0", b"qoif", b"DDS ", b"\x76\x2f\x31\x01", b"P5\n", b"P6\n", b"%PDF-"),
)

_PNG_END = b"IEND\xaeB`\x82"

_TRANSPOSED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class Decoded(NamedTuple):
    """The pixels of a file, or why there are none, and the first 16 bytes of the SHA-256 of its bytes."""

    rgb: UInt8[np.ndarray, "height width 3"] | None
    status: Status
    source_sha256: bytes


class _Refused(Exception):  # noqa: N818 - not an error: it carries a verdict from a helper to `decode_file`
    def __init__(self, status: Status) -> None:
        super().__init__(status.label)
        self.status = status


def decode_file(path: Path) -> Decoded:
    """Read one image file as RGB; a status other than OK says why there are no pixels."""
    return decode_bytes(read_source(path))


def read_source(source: Path | Status) -> bytes | Status:
    """The bytes of a regular file of a sane size, or why there are none; a Status passes through."""
    if isinstance(source, Status):
        return source
    try:
        return _read_regular_file(source)
    except _Refused as refused:
        return refused.status


def decode_bytes(data: bytes | Status) -> Decoded:
    """Decode the bytes of a file; a Status passes through."""
    if isinstance(data, Status):
        return Decoded(None, data, NO_SOURCE)
    source_sha256 = hashlib.sha256(data).digest()[:16]
    try:
        return Decoded(_decode(data), Status.OK, source_sha256)
    except _Refused as refused:
        return Decoded(None, refused.status, source_sha256)


def source_digest(source: Path | Status) -> bytes:
    """What decoding a source gives as `source_sha256`, without decoding it."""
    return digest_of(read_source(source))


def digest_of(data: bytes | Status) -> bytes:
    """The same of what was read."""
    return NO_SOURCE if isinstance(data, Status) else hashlib.sha256(data).digest()[:16]


def _read_regular_file(path: Path) -> bytes:
    try:
        # Non-blocking: opening a FIFO would otherwise wait for a writer that never comes.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
        with os.fdopen(descriptor, "rb") as file:
            info = os.fstat(descriptor)
            if not stat.S_ISREG(info.st_mode):
                raise _Refused(Status.UNREADABLE)
            if info.st_size > MAX_FILE_BYTES:
                raise _Refused(Status.TOO_LARGE)
            return file.read(MAX_FILE_BYTES)
    except OSError as error:
        raise _Refused(Status.MISSING if error.errno == errno.ENOENT else Status.UNREADABLE) from error


def _decode(data: bytes) -> UInt8[np.ndarray, "height width 3"]:
    kind = _sniff(data)
    if kind == "JPEG" and simplejpeg is not None and _is_plain_jpeg(data):
        try:
            pixels: UInt8[np.ndarray, "height width 3"] = simplejpeg.decode_jpeg(data, "RGB")
        except ValueError:
            pass  # strict: it refuses what libjpeg can mend, and everything truncated; Pillow tells the two apart
        else:
            return pixels
    if kind == "PNG" and _PNG_END not in data:
        raise _Refused(Status.TRUNCATED)  # Pillow stops reading at the last pixel and would not notice
    return _decode_with_pillow(data, kind)


def _sniff(data: bytes) -> str:
    """Name the format by its first bytes.

    >>> _sniff(bytes.fromhex("ffd8ffe0"))
    'JPEG'
    """
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "WEBP"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    is_bmp = data.startswith(b"BM") and data[6:10] == bytes(4)
    is_heif_or_avif = data[4:8] == b"ftyp"
    if is_bmp or is_heif_or_avif or data.startswith(_OTHER_FORMATS):
        raise _Refused(Status.FORMAT)
    raise _Refused(Status.UNIDENTIFIED)


def _is_plain_jpeg(data: bytes) -> bool:
    """Whether this is an 8-bit grey or RGB JPEG that cannot carry an orientation, found by walking its segments.

    An APP1 segment holds EXIF or XMP, and either may hold an orientation: those files are left to Pillow.
    """
    position = 2
    while position + 10 <= len(data) and data[position] == 0xFF:
        marker, length = struct.unpack_from(">BH", data, position + 1)
        if marker == 0xE1:
            return False
        if 0xC0 <= marker <= 0xCF and marker not in {0xC4, 0xC8, 0xCC}:  # the frame header
            precision, height, width, components = struct.unpack_from(">BHHB", data, position + 4)
            _refuse_large(width, height)
            return marker in {0xC0, 0xC1, 0xC2} and precision == 8 and components in {1, 3}
        position += 2 + length
    return False


def _refuse_large(width: int, height: int) -> None:
    if width * height > MAX_IMAGE_PIXELS:
        raise _Refused(Status.TOO_LARGE)


def _decode_with_pillow(data: bytes, kind: str) -> UInt8[np.ndarray, "height width 3"]:
    try:
        with _DECODERS[kind](BytesIO(data)) as image:
            _refuse_large(image.width, image.height)
            image.load()
            return np.array(_rgb_on_white(_upright(image)))
    except _Refused:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _Refused(Status.TOO_LARGE) from error
    except Exception as error:  # damaged bytes make Pillow raise OSError, SyntaxError, ValueError, struct.error, ...
        raise _Refused(Status.TRUNCATED) from error


def _upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # noqa: BLE001 - a damaged EXIF block raises anything; it tells no orientation, the pixels are fine
        return image
    method = _TRANSPOSED.get(orientation) if isinstance(orientation, int) else None
    return image if method is None else image.transpose(method)


def _rgb_on_white(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):  # Pillow's own conversion clips at 255, which turns the picture white
        grey = (np.asarray(image).astype(np.uint32) + 128) // 257
        return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    if "A" in image.getbands() or image.info.get("transparency") is not None:
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")
