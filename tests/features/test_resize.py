"""A crop is the one that Pillow would cut, whichever way it is computed."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from features import resize
from features.resize import Window, resize_and_crop

QUICK = settings(deadline=None, derandomize=True, max_examples=60)
FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
RESAMPLE = st.sampled_from(sorted(FILTERS))
SIDES = st.integers(1, 70)


def picture(height: int, width: int, kind: str) -> np.ndarray:
    """Noise, or stripes of black and white: the hardest edges that there are."""
    draw = np.random.default_rng(100 * height + width)
    levels = draw.integers(0, 256, (height, width, 3), np.uint8)
    return levels if kind == "noise" else (levels // 128 * 255).astype(np.uint8)


PICTURES = st.tuples(SIDES, SIDES, st.sampled_from(["noise", "stripes"]))


def pillow(rgb: np.ndarray, full: tuple[int, int], resample: str) -> np.ndarray:
    """The whole picture, resized along its rows first; Pillow 13 would choose the order by the shape."""
    along_rows = Image.fromarray(rgb).resize((full[1], rgb.shape[0]), FILTERS[resample])
    return np.asarray(along_rows.resize((full[1], full[0]), FILTERS[resample])).transpose(2, 0, 1).astype(int)


def short_side_of(short: int, height: int, width: int) -> tuple[int, int]:
    """Height and width of a picture whose short side becomes `short`."""
    return (int(short * height / width), short) if width <= height else (short, int(short * width / height))


@QUICK
@given(of=PICTURES, full=st.tuples(SIDES, SIDES), resample=RESAMPLE)
def test_a_resized_picture_is_that_of_pillow_within_two_grey_levels(of, full, resample):
    rgb = picture(*of)
    assert np.abs(resize_and_crop(rgb, full, full, resample) - pillow(rgb, full, resample)).max() <= 2


@QUICK
@given(of=PICTURES, full=st.tuples(SIDES, SIDES), crop=st.tuples(SIDES, SIDES), resample=RESAMPLE)
def test_a_crop_is_the_centre_of_the_resized_picture_on_black(of, full, crop, resample):
    rgb = picture(*of)
    expected = np.zeros((3, *crop), int)
    whole = np.zeros((3, full[0] + 2 * crop[0], full[1] + 2 * crop[1]), int)  # the picture with wide black margins
    whole[:, crop[0] : crop[0] + full[0], crop[1] : crop[1] + full[1]] = pillow(rgb, full, resample)
    top, left = (own + (size - own) // 2 for own, size in zip(crop, full, strict=True))
    expected[:] = whole[:, top : top + crop[0], left : left + crop[1]]
    assert np.abs(resize_and_crop(rgb, full, crop, resample) - expected).max() <= 2


@pytest.mark.parametrize("resample", sorted(FILTERS))
@QUICK
@given(height=st.integers(1, 8), width=st.integers(140, 320), short=st.integers(4, 40), crop=st.integers(4, 40))
def test_computing_only_the_window_of_a_wide_picture_gives_what_computing_the_whole_gives(
    resample, height, width, short, crop
):
    rgb, full, crop = picture(height, width, "noise"), short_side_of(short, height, width), (crop, crop)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resize, "MAX_OVERSIZE", 0)
        window = resize_and_crop(rgb, full, crop, resample)
        patch.setattr(resize, "MAX_OVERSIZE", 10**9)
        whole = resize_and_crop(rgb, full, crop, resample)
    assert window.shape == whole.shape == (3, *crop)
    assert np.abs(window.astype(int) - whole).max() <= 2


@pytest.mark.parametrize(
    ("full", "crop", "source", "target"),
    [
        (4, 4, (0, 4), (0, 4)),
        (8, 4, (2, 6), (0, 4)),
        (7, 4, (1, 5), (0, 4)),
        (398, 224, (87, 311), (0, 224)),
        (5, 2, (1, 3), (0, 2)),
        (3, 1, (1, 2), (0, 1)),
        (2, 1, (0, 1), (0, 1)),
        (4, 8, (0, 4), (2, 6)),
        (4, 7, (0, 4), (2, 6)),
        (1, 2, (0, 1), (1, 2)),
        (1, 3, (0, 1), (1, 2)),
    ],
)
def test_a_centred_window_rounds_its_margin_down_and_its_padding_up(full, crop, source, target):
    window = Window.centred(full, crop)
    assert (window.source, window.target) == (slice(*source), slice(*target))


def test_a_picture_that_is_neither_resized_nor_cropped_stays_as_it_is():
    rgb = picture(9, 13, "noise")
    for resample in FILTERS:
        assert np.array_equal(resize_and_crop(rgb, (9, 13), (9, 13), resample), rgb.transpose(2, 0, 1))


def test_a_crop_of_a_picture_that_keeps_its_size_is_cut_by_hand():
    rgb = np.arange(5 * 4 * 3, dtype=np.uint8).reshape(5, 4, 3)
    cut = resize_and_crop(rgb, (5, 4), (2, 6), "bilinear")
    assert cut.shape == (3, 2, 6)
    assert np.array_equal(cut[:, :, 1:5], rgb[1:3].transpose(2, 0, 1))
    assert not cut[:, :, [0, 5]].any()
