import json
import subprocess
import sys
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import interpolate
from transformers import BitImageProcessorPil, CLIPImageProcessorPil, SiglipImageProcessorPil

from features.decode import NO_SOURCE
from features.errors import UsageError
from features.preprocess import ImagePreprocess, normalise, read_thumbnail
from features.status import Status

SHORTEST = {"size": {"shortest_edge": 224}, "crop_size": {"height": 224, "width": 224}}
SQUASH = {"size": {"height": 224, "width": 224}, "do_center_crop": False}


def folder_with(path: Path, options: dict, name: str = "preprocessor_config.json") -> Path:
    path.mkdir(exist_ok=True)
    (path / name).write_text(json.dumps({"image_processor_type": "CLIPImageProcessor"} | options))
    return path


def picture(width: int, height: int, mode: str = "RGB") -> Image.Image:
    draw = np.random.default_rng(width * height)
    coarse = Image.fromarray(draw.integers(0, 256, (12, 16, 3), np.uint8)).resize((width, height))
    noisy = np.asarray(coarse).astype(int) + draw.integers(-20, 20, (height, width, 3))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).convert(mode)


def crop_of(image: Image.Image, preprocess: ImagePreprocess, folder: Path) -> np.ndarray:
    image.save(folder / "picture.png")
    return read_thumbnail(folder / "picture.png", preprocess).pixels


def reference_crop(image: Image.Image, folder: Path) -> np.ndarray:
    processor = CLIPImageProcessorPil.from_pretrained(folder)
    return processor(image, do_normalize=False, do_rescale=False, return_tensors="np").pixel_values[0]


def assert_alike(pixels: np.ndarray, reference: np.ndarray) -> None:
    difference = np.abs(pixels.astype(int) - reference.astype(int))
    assert difference.max() <= 2
    assert difference.mean() < 0.1


@pytest.mark.parametrize(
    "options", [SHORTEST, SQUASH, SHORTEST | {"resample": 2}], ids=["shortest", "squash", "linear"]
)
@pytest.mark.parametrize("size", [(480, 360), (1280, 720), (320, 180), (225, 224), (100, 75), (224, 224)])
def test_a_crop_equals_that_of_the_checkpoints_own_processor(tmp_path: Path, options: dict, size: tuple[int, int]):
    folder = folder_with(tmp_path, options)
    preprocess = ImagePreprocess.from_folder(folder)
    image = picture(*size)
    assert_alike(crop_of(image, preprocess, tmp_path), reference_crop(image, folder))


def test_a_squashed_portrait_is_resized_along_its_rows_first(tmp_path: Path):
    image = picture(64, 300)
    rows_first = image.resize((224, 300), Image.Resampling.BICUBIC).resize((224, 224), Image.Resampling.BICUBIC)
    pixels = crop_of(image, ImagePreprocess.from_folder(folder_with(tmp_path, SQUASH)), tmp_path)
    assert_alike(pixels, np.asarray(rows_first).transpose(2, 0, 1))


FAMILIES = {
    "SiglipImageProcessor": (SiglipImageProcessorPil, {"size": {"height": 224, "width": 224}, "resample": 3}),
    "SiglipImageProcessorFast": (SiglipImageProcessorPil, {"size": {"height": 64, "width": 64}, "resample": 2}),
    "BitImageProcessor": (BitImageProcessorPil, {"size": {"shortest_edge": 256}, "crop_size": 224}),
}


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("size", [(480, 360), (1280, 720), (320, 180)])
def test_every_family_is_cropped_and_normalised_as_its_own_processor_does(tmp_path: Path, kind: str, size: tuple):
    processor_class, options = FAMILIES[kind]
    folder = folder_with(tmp_path, {"image_processor_type": kind} | options)
    preprocess, processor = ImagePreprocess.from_folder(folder), processor_class.from_pretrained(folder)
    image = picture(*size)
    pixels = crop_of(image, preprocess, tmp_path)
    raw = processor(image, do_normalize=False, do_rescale=False, return_tensors="np").pixel_values[0]
    assert_alike(pixels, raw)
    normed = normalise(torch.from_numpy(raw.astype(np.uint8))[None], preprocess, torch.float32).numpy()
    assert np.allclose(normed, processor(image, return_tensors="np").pixel_values, atol=1e-5)


@pytest.mark.parametrize("kind", FAMILIES)
def test_where_a_file_is_silent_every_family_has_its_own_defaults(tmp_path: Path, kind: str):
    folder = folder_with(tmp_path, {"image_processor_type": kind})
    preprocess, processor = ImagePreprocess.from_folder(folder), FAMILIES[kind][0]()
    assert preprocess.mean == tuple(processor.image_mean)
    assert preprocess.std == tuple(processor.image_std)
    assert preprocess.resample == {2: "bilinear", 3: "bicubic"}[int(processor.resample)]
    assert_alike(crop_of(picture(300, 200), preprocess, tmp_path), reference_of(processor, picture(300, 200)))


def reference_of(processor, image: Image.Image) -> np.ndarray:
    return processor(image, do_normalize=False, do_rescale=False, return_tensors="np").pixel_values[0]


@pytest.mark.parametrize("size", [(480, 360), (90, 160)])
def test_dinov3_is_squashed_as_its_processor_does_in_floating_point(tmp_path: Path, size: tuple[int, int]):
    published = {"size": {"height": 224, "width": 224}, "resample": 2, "do_center_crop": None, "crop_size": None}
    published |= {"do_convert_rgb": None, "default_to_square": True, "disable_grouping": None, "device": None}
    folder = folder_with(tmp_path, {"image_processor_type": "DINOv3ViTImageProcessorFast"} | published)
    image = picture(*size)
    pixels = torch.from_numpy(np.asarray(image).transpose(2, 0, 1).copy())[None].float()
    expected = interpolate(pixels, size=(224, 224), mode="bilinear", antialias=True)[0].numpy()
    preprocess = ImagePreprocess.from_folder(folder)
    difference = np.abs(crop_of(image, preprocess, tmp_path) - expected)  # ours rounds to grey levels, after each axis
    assert difference.max() <= 1.5
    assert difference.mean() < 0.35
    assert (preprocess.mean, preprocess.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.mark.parametrize("size", [(180, 320), (720, 1280), (64, 300)])
def test_a_portrait_is_cropped_as_the_processor_does(tmp_path: Path, size: tuple[int, int]):
    folder = folder_with(tmp_path, SHORTEST)
    image = picture(*size)
    assert_alike(crop_of(image, ImagePreprocess.from_folder(folder), tmp_path), reference_crop(image, folder))


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1"])
def test_every_mode_is_cropped_as_the_processor_does(tmp_path: Path, mode: str):
    folder = folder_with(tmp_path, SHORTEST)
    image = picture(300, 200, mode)
    assert_alike(crop_of(image, ImagePreprocess.from_folder(folder), tmp_path), reference_crop(image, folder))


@pytest.mark.parametrize("size", [(480, 360), (90, 160), (33, 32)])
@pytest.mark.parametrize("crop", [{"height": 300, "width": 500}, {"height": 255, "width": 31}])
def test_a_crop_beyond_the_picture_is_padded_as_the_processor_does(tmp_path: Path, size: tuple[int, int], crop: dict):
    folder = folder_with(tmp_path, {"size": {"shortest_edge": 64}, "crop_size": crop})
    image = picture(*size)
    assert_alike(crop_of(image, ImagePreprocess.from_folder(folder), tmp_path), reference_crop(image, folder))


@pytest.mark.parametrize("size", [(4000, 100), (100, 4000), (3000, 1)])
def test_a_very_long_picture_is_cropped_as_the_processor_does(tmp_path: Path, size: tuple[int, int]):
    folder = folder_with(tmp_path, {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}})
    image = picture(*size)
    assert_alike(crop_of(image, ImagePreprocess.from_folder(folder), tmp_path), reference_crop(image, folder))


@pytest.mark.parametrize("size", [(1, 1), (20_000, 1), (1, 20_000), (2, 3)])
@pytest.mark.parametrize("options", [SHORTEST, SQUASH], ids=["shortest", "squash"])
def test_extreme_shapes_fit_into_memory(tmp_path: Path, options: dict, size: tuple[int, int]):
    preprocess = ImagePreprocess.from_folder(folder_with(tmp_path, options))
    assert crop_of(Image.new("RGB", size, (10, 20, 30)), preprocess, tmp_path).shape == (3, 224, 224)


def test_a_plain_picture_stays_plain(tmp_path: Path):
    preprocess = ImagePreprocess.from_folder(folder_with(tmp_path, SHORTEST))
    pixels = crop_of(Image.new("RGB", (500, 400), (10, 20, 30)), preprocess, tmp_path)
    assert np.array_equal(pixels, np.broadcast_to(np.array([[[10]], [[20]], [[30]]]), (3, 224, 224)))


def test_a_bad_file_or_a_status_gives_no_pixels(tmp_path: Path):
    preprocess = ImagePreprocess.from_folder(folder_with(tmp_path, SHORTEST))
    assert read_thumbnail(tmp_path / "gone.jpg", preprocess) == (None, Status.MISSING, NO_SOURCE)
    assert read_thumbnail(Status.BAD_ID, preprocess) == (None, Status.BAD_ID, NO_SOURCE)


def test_normalising_equals_the_processor(tmp_path: Path):
    folder = folder_with(tmp_path, SHORTEST)
    image = picture(224, 224)
    pixels = torch.from_numpy(np.asarray(image).transpose(2, 0, 1).copy())[None]
    ours = normalise(pixels, ImagePreprocess.from_folder(folder), torch.float32).numpy()
    reference = CLIPImageProcessorPil.from_pretrained(folder)(image, return_tensors="np").pixel_values
    assert ours.dtype == np.float32
    assert np.allclose(ours, reference, atol=1e-5)


def test_numbers_come_from_the_checkpoint(tmp_path: Path):
    half = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": 336, "crop_size": 336}
    preprocess = ImagePreprocess.from_folder(folder_with(tmp_path, half))
    assert preprocess == ImagePreprocess(
        mode="shortest",
        size=(336, 336),
        resample="bicubic",
        crop=(336, 336),
        rescale_factor=1 / 255,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
    )


def test_without_rescaling_and_normalising_grey_levels_pass_through(tmp_path: Path):
    folder = folder_with(tmp_path, SQUASH | {"do_rescale": False, "do_normalize": False})
    pixels = torch.arange(12, dtype=torch.uint8).view(1, 3, 2, 2)
    assert torch.equal(normalise(pixels, ImagePreprocess.from_folder(folder), torch.float32), pixels.float())


def test_old_new_and_terse_layouts_say_the_same(tmp_path: Path):
    old = folder_with(tmp_path / "old", SHORTEST)
    ints = folder_with(tmp_path / "ints", {"size": 224, "crop_size": 224, "do_pad": None})
    terse = tmp_path / "terse"
    terse.mkdir()
    (terse / "preprocessor_config.json").write_text('{"feature_extractor_type": "CLIPFeatureExtractor"}')
    new = tmp_path / "new"
    new.mkdir()
    (new / "processor_config.json").write_text(json.dumps({"image_processor": SHORTEST}))
    read = [ImagePreprocess.from_folder(folder) for folder in (old, ints, terse, new)]
    assert all(preprocess == read[0] for preprocess in read)


def test_the_new_file_counts_if_both_are_there_as_in_transformers(tmp_path: Path):
    folder = folder_with(tmp_path, {"size": 100, "crop_size": 100})
    (folder / "processor_config.json").write_text(json.dumps({"image_processor": SHORTEST}))
    assert ImagePreprocess.from_folder(folder).output == (224, 224)
    (folder / "processor_config.json").write_text(json.dumps({"processor_class": "CLIPProcessor"}))
    assert ImagePreprocess.from_folder(folder).output == (100, 100)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"crop_pct": 0.9}, "crop_pct"),
        ({"auto_map": {}}, "auto_map"),
        ({"do_resize": False}, "do_resize"),
        ({"do_convert_rgb": False}, "do_convert_rgb"),
        ({"do_pad": True}, "do_pad"),
        ({"resample": 0}, "resample"),
        ({"size": {"shortest_edge": 224, "longest_edge": 500}}, "longest_edge"),
        ({"size": {"max_height": 224, "max_width": 224}}, "max_height"),
        ({"do_center_crop": False}, "do_center_crop"),
        ({"image_processor_type": "ViTImageProcessor"}, "ViTImageProcessor"),
    ],
)
def test_an_option_that_would_change_pixels_is_refused_by_name(tmp_path: Path, options: dict, word: str):
    with pytest.raises(UsageError, match=word):
        ImagePreprocess.from_folder(folder_with(tmp_path, options))


def test_a_folder_without_a_processor_file_is_refused(tmp_path: Path):
    with pytest.raises(UsageError, match=r"preprocessor_config\.json"):
        ImagePreprocess.from_folder(tmp_path)


def test_the_fingerprint_is_ready_for_json_and_holds_the_decoders_policy(tmp_path: Path):
    fingerprint = ImagePreprocess.from_folder(folder_with(tmp_path, SHORTEST)).to_dict()
    assert json.loads(json.dumps(fingerprint)) == fingerprint
    assert fingerprint["decoder"]["alpha"] == "composited on white"


def test_a_crop_does_not_depend_on_how_the_jpeg_was_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    preprocess = ImagePreprocess.from_folder(folder_with(tmp_path, SHORTEST))
    buffer = BytesIO()
    picture(480, 360).save(buffer, "JPEG")
    (tmp_path / "a.jpg").write_bytes(buffer.getvalue())
    fast = read_thumbnail(tmp_path / "a.jpg", preprocess).pixels
    monkeypatch.setattr("features.decode.simplejpeg", None)
    assert_alike(fast, read_thumbnail(tmp_path / "a.jpg", preprocess).pixels)


def test_reading_a_configuration_imports_no_torch():
    check = "import sys, features.preprocess; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


def test_an_encoder_of_texts_reads_no_pictures(tmp_path: Path):
    with pytest.raises(ValueError, match="reads no pictures"):
        read_thumbnail(tmp_path / "a.jpg", None)
