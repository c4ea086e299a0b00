"""Thumbnails inside a page: decoded by the same rules as for the encoder, made small, and written anew by us."""

import base64
from collections.abc import Iterable, Mapping
from io import BytesIO
from typing import Any

from PIL import Image

from features.decode import decode_file
from features.status import Status
from pipeline.reporting.sources import Notices, Videos

LARGE_PX, SMALL_PX = 320, 160
"""Widths of a misjudged video's thumbnail and of a neighbour's."""

QUALITY = 72


def pictures_of(cases: Mapping[str, Any], videos: Videos | None, notices: Notices) -> dict[int, str]:
    """Row of `oof.csv` -> data URI, for every video that the page shows; those without a usable thumbnail are left out.

    Nothing of the original file goes into the page: no metadata, no other format, nothing behind the pixels.
    """
    if videos is None or videos.table.thumbnails is None:
        return {}
    widths = _widths(cases)
    found = {video: _picture(videos, video, width) for video, width in widths.items()}
    pictures = {video: picture for video, picture in found.items() if isinstance(picture, str)}
    if lacking := len(found) - len(pictures):
        reasons = sorted({status.label for status in found.values() if isinstance(status, Status)})
        notices(f"{lacking} of {len(found)} thumbnails cannot be shown: {', '.join(reasons)}.")
    return pictures


def _widths(cases: Mapping[str, Any]) -> dict[int, int]:
    shown = [case for way in cases.values() for case in way]
    widths = {neighbour["video"]: SMALL_PX for case in shown for neighbour in _looked_alike(case["neighbours"])}
    return widths | {case["video"]: LARGE_PX for case in shown}


def _looked_alike(neighbours: Mapping[str, Any]) -> Iterable[Mapping[str, Any]]:
    return [neighbour for modality, found in neighbours.items() if is_image(modality) for neighbour in found]


def is_image(modality: str) -> bool:
    """Whether a modality's neighbours are shown as pictures.

    >>> is_image("image"), is_image("image@ViT-L-14"), is_image("text")
    (True, True, False)
    """
    return modality.partition("@")[0] == "image"


def _picture(videos: Videos, video: int, width: int) -> str | Status:
    row = int(videos.row_of[video])
    path = videos.table.thumbnail(row) if row >= 0 else Status.MISSING
    if isinstance(path, Status):
        return path
    decoded = decode_file(path)
    return decoded.status if decoded.rgb is None else data_uri(Image.fromarray(decoded.rgb), width)


def data_uri(picture: Image.Image, width: int) -> str:
    """A picture at most so wide, and at most as high, as a JPEG that a page can hold."""
    small = picture.copy()
    small.thumbnail((width, width), Image.Resampling.LANCZOS)
    data = BytesIO()
    small.save(data, "JPEG", quality=QUALITY, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode('ascii')}"
