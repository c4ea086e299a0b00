"""Resize a picture and cut its centre, as Pillow would and several times faster."""

from math import ceil
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

Filter = Literal["bilinear", "bicubic"]

MAX_OVERSIZE = 16
"""How many times more pixels than the crop a resized picture may have before only the window is computed."""

_PILLOW_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


class Window(NamedTuple):
    """Where a centred crop lies on one axis of `full` pixels: `taken` from `start`, put at `before` of the crop."""

    full: int
    start: int
    taken: int
    before: int

    @classmethod
    def centred(cls, full: int, crop: int) -> "Window":
        """Rounds as transformers does: the margin down, the padding up.

        >>> Window.centred(full=7, crop=4), Window.centred(full=4, crop=7)
        (Window(full=7, start=1, taken=4, before=0), Window(full=4, start=0, taken=4, before=2))
        """
        return cls(full, max(0, (full - crop) // 2), min(full, crop), max(0, ceil((crop - full) / 2)))

    @property
    def source(self) -> slice:
        """The part of the resized picture that is kept."""
        return slice(self.start, self.start + self.taken)

    @property
    def target(self) -> slice:
        """Where that part lies in the crop."""
        return slice(self.before, self.before + self.taken)


def resize_and_crop(
    rgb: UInt8[np.ndarray, "height width 3"], full: tuple[int, int], crop: tuple[int, int], resample: Filter
) -> UInt8[np.ndarray, "3 crop_height crop_width"]:
    """Resize to `full` = (height, width) and keep the centre `crop`; where the picture is smaller it stays black."""
    rows, columns = Window.centred(full[0], crop[0]), Window.centred(full[1], crop[1])
    if full[0] * full[1] > MAX_OVERSIZE * crop[0] * crop[1]:
        inner = _resize_window(rgb, rows, columns, resample)
    else:
        inner = _resize_whole(rgb, full, resample)[:, rows.source, columns.source]
    if inner.shape[1:] == crop:
        return np.ascontiguousarray(inner)
    padded = np.zeros((3, *crop), np.uint8)
    padded[:, rows.target, columns.target] = inner
    return padded


def _resize_whole(
    rgb: UInt8[np.ndarray, "height width 3"], full: tuple[int, int], resample: Filter
) -> UInt8[np.ndarray, "3 full_height full_width"]:
    from torch import from_numpy  # noqa: PLC0415 - a second that reading a configuration should not cost
    from torch.nn.functional import interpolate  # noqa: PLC0415 - as above

    # A decoder's layout is torch's channels_last, for which the uint8 filter has a vectorised path that stays in the
    # calling thread. Like Pillow before 13 it always resizes rows first; Pillow 13 begins with the columns where the
    # height shrinks much more than the width, which only squashing does (python-pillow/Pillow pull request 9549).
    picture = from_numpy(rgb).permute(2, 0, 1).unsqueeze(0)
    resized: UInt8[np.ndarray, "3 full_height full_width"]
    resized = interpolate(picture, size=full, mode=resample, antialias=True)[0].numpy()
    return resized


def _resize_window(
    rgb: UInt8[np.ndarray, "height width 3"], rows: Window, columns: Window, resample: Filter
) -> UInt8[np.ndarray, "3 taken_height taken_width"]:
    """Compute only the crop: a picture of 20,000 x 1 pixels whose short side becomes 224 would fill 3 GB."""
    y, x = rgb.shape[0] / rows.full, rgb.shape[1] / columns.full
    box = (columns.source.start * x, rows.source.start * y, columns.source.stop * x, rows.source.stop * y)
    size = (columns.taken, rows.taken)
    window = Image.fromarray(rgb).resize(size, _PILLOW_FILTERS[resample], box=box)
    return np.asarray(window).transpose(2, 0, 1)
