"""From an image file to the crop an encoder was trained on, as its own checkpoint describes it.

Numbers never come from a constant: size, crop, filter, mean and deviation are read from the checkpoint's files. The
result differs from the checkpoint's own processor by at most two grey levels, several times faster.
"""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from jaxtyping import UInt8

from features import decode
from features.errors import UsageError
from features.hub import PROCESSOR_FILES, read_json
from features.resize import Filter, resize_and_crop
from features.status import Status

if TYPE_CHECKING:
    import torch

# What the processors of transformers do where a file is silent, by the first part of their names: each exists as
# ...ImageProcessor, ...ImageProcessorFast, ...ImageProcessorPil and, before version 5, ...FeatureExtractor.
_CLIP_DEFAULTS: dict[str, Any] = {
    "do_resize": True,
    "size": {"shortest_edge": 224},
    "resample": 3,
    "do_center_crop": True,
    "crop_size": {"height": 224, "width": 224},
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "do_convert_rgb": True,
    "do_pad": False,
    "use_square_size": False,
}
_SQUASHED = _CLIP_DEFAULTS | {"size": {"height": 224, "width": 224}, "do_center_crop": False}
_DEFAULTS: dict[str, dict[str, Any]] = {
    "CLIP": _CLIP_DEFAULTS,
    "Bit": _CLIP_DEFAULTS,  # DINOv2
    "Siglip": _SQUASHED | {"image_mean": [0.5] * 3, "image_std": [0.5] * 3},
    "DINOv3ViT": _SQUASHED | {"resample": 2, "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]},
}
_PROCESSOR_NAME = re.compile(r"(\w+?)(?:ImageProcessor(?:Fast|Pil)?|FeatureExtractor)")

_SAY_NOTHING_OF_PIXELS = {
    *("image_processor_type", "feature_extractor_type", "processor_class", "_processor_class"),
    *("data_format", "input_data_format", "return_tensors", "device", "disable_grouping", "default_to_square"),
    *("_valid_processor_keys", "_valid_kwargs_names", "model_input_names", "backend", "use_fast", "pad_size"),
}

_FILTERS: dict[int, Filter] = {2: "bilinear", 3: "bicubic"}


@dataclass(frozen=True, kw_only=True)
class ImagePreprocess:
    """How an encoder wants its pictures, in the order of the fields; sizes in pixels, crop as (height, width)."""

    mode: Literal["shortest", "squash"]  # the short side becomes `size`, or both sides do
    size: tuple[int, int]  # (height, width); equal for "shortest"
    resample: Filter
    crop: tuple[int, int] | None
    rescale_factor: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @classmethod
    def from_folder(cls, folder: Path) -> "ImagePreprocess":
        """Read a checkpoint's `processor_config.json` or `preprocessor_config.json`.

        Raises
        ------
        UsageError
            Neither file is there, or one asks for something that this preprocessing does not do.
        """
        found = _read_processor(folder)
        options = _defaults(folder, found) | {key: value for key, value in found.items() if value is not None}
        _refuse_unknown(folder, options)
        mode, size = _resize_target(folder, options)
        return cls(
            mode=mode,
            size=size,
            resample=_FILTERS[options["resample"]],
            crop=_height_width(folder, options["crop_size"]) if options["do_center_crop"] else None,
            rescale_factor=float(options["rescale_factor"]) if options["do_rescale"] else 1.0,
            mean=_per_channel(options["image_mean"]) if options["do_normalize"] else (0.0, 0.0, 0.0),
            std=_per_channel(options["image_std"]) if options["do_normalize"] else (1.0, 1.0, 1.0),
        )

    @property
    def output(self) -> tuple[int, int]:
        """Height and width of every crop in pixels."""
        return self.crop or self.size

    def to_dict(self) -> dict[str, Any]:
        """Everything that decides the pixels an encoder sees, ready for JSON; part of what identifies a vector."""
        numbers = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}
        return numbers | {"decoder": decode.POLICY}


class Thumbnail(NamedTuple):
    """One picture, cut for the encoder, or why there is none; and the first 16 bytes of its file's SHA-256."""

    pixels: UInt8[np.ndarray, "3 height width"] | None
    status: Status
    source_sha256: bytes


def read_thumbnail(path: Path | Status, preprocess: ImagePreprocess | None) -> Thumbnail:
    """Read, decode, resize and crop one image file; safe to call from several threads.

    A bad file gives a status and no pixels. A Status in place of a path passes through.
    """
    return cut_thumbnail(decode.read_source(path), preprocess)


def cut_thumbnail(data: bytes | Status, preprocess: ImagePreprocess | None) -> Thumbnail:
    """Decode, resize and crop the bytes of one image file; a Status in their place passes through."""
    if preprocess is None:
        raise ValueError("an encoder of texts alone reads no pictures")
    rgb, status, source_sha256 = decode.decode_bytes(data)
    if rgb is None:
        return Thumbnail(None, status, source_sha256)
    full = _resized(rgb.shape[0], rgb.shape[1], preprocess)
    return Thumbnail(resize_and_crop(rgb, full, preprocess.output, preprocess.resample), status, source_sha256)


def normalise(pixels: "torch.Tensor", preprocess: ImagePreprocess, dtype: "torch.dtype") -> "torch.Tensor":
    """Grey levels (batch, 3, height, width) uint8 -> what the encoder reads, in `dtype`, on the same device."""
    scale, shift = _scale_and_shift(preprocess, pixels.device)
    return (pixels * scale - shift).to(dtype)


@lru_cache(maxsize=8)  # a fresh tensor for every batch would stop a GPU until it is copied
def _scale_and_shift(preprocess: ImagePreprocess, device: "torch.device") -> "tuple[torch.Tensor, torch.Tensor]":
    import torch  # noqa: PLC0415 - seconds that reading a configuration should not cost

    mean, std = (torch.tensor(values, dtype=torch.float64) for values in (preprocess.mean, preprocess.std))
    scale, shift = (value.float().view(3, 1, 1).to(device) for value in (preprocess.rescale_factor / std, mean / std))
    return scale, shift


def _resized(height: int, width: int, preprocess: ImagePreprocess) -> tuple[int, int]:
    if preprocess.mode == "squash":
        return preprocess.size
    short = preprocess.size[0]
    if width <= height:
        return int(short * height / width), short
    return short, int(short * width / height)


def _read_processor(folder: Path) -> dict[str, Any]:
    new_layout, old_layout = (folder / name for name in PROCESSOR_FILES)
    if new_layout.is_file() and "image_processor" in (content := read_json(new_layout)):
        return dict(content["image_processor"])
    if old_layout.is_file():
        return read_json(old_layout)
    raise UsageError(f"{folder} must hold {old_layout.name}, which says how its encoder wants pictures; it does not")


def _defaults(folder: Path, found: Mapping[str, Any]) -> dict[str, Any]:
    kind = str(found.get("image_processor_type", found.get("feature_extractor_type", "CLIPImageProcessor")))
    name = _PROCESSOR_NAME.fullmatch(kind)
    if name is None or name[1] not in _DEFAULTS:
        raise UsageError(
            f"{folder}: the image processor must be one of {', '.join(f'{known}ImageProcessor' for known in _DEFAULTS)}"
            f", however it is {kind}"
        )
    return _DEFAULTS[name[1]]


def _refuse_unknown(folder: Path, options: Mapping[str, Any]) -> None:
    unknown = sorted(options.keys() - _CLIP_DEFAULTS.keys() - _SAY_NOTHING_OF_PIXELS)
    if unknown:
        raise UsageError(f"{folder}: the processor options {', '.join(unknown)} may change pixels and are not known")
    for name, wanted in (("do_resize", True), ("do_convert_rgb", True), ("do_pad", False)):
        if options[name] is not wanted:
            raise UsageError(f"{folder}: {name} must be {wanted} in the processor options, however: {options[name]}")
    if options["resample"] not in _FILTERS:
        raise UsageError(f"{folder}: resample must be 2 (bilinear) or 3 (bicubic), however: {options['resample']}")


def _resize_target(folder: Path, options: Mapping[str, Any]) -> tuple[Literal["shortest", "squash"], tuple[int, int]]:
    size: Any = options["size"]
    short: Any = size.get("shortest_edge") if isinstance(size, dict) else size
    if isinstance(size, dict) and short is None:
        return "squash", _height_width(folder, size)
    if isinstance(size, dict) and size.get("longest_edge") is not None:
        raise UsageError(f"{folder}: size must be a short side or height and width, however: {size}")
    if options["use_square_size"]:
        return "squash", (int(short), int(short))
    if not options["do_center_crop"]:
        raise UsageError(f"{folder}: with do_center_crop false, size must give height and width, however: {size}")
    return "shortest", (int(short), int(short))


def _height_width(folder: Path, size: Any) -> tuple[int, int]:
    if isinstance(size, int):
        return size, size
    if not isinstance(size, dict) or size.keys() != {"height", "width"}:
        raise UsageError(f"{folder}: a size must give height and width, however: {size}")
    return int(size["height"]), int(size["width"])


def _per_channel(values: Any) -> tuple[float, float, float]:
    red, green, blue = (values,) * 3 if isinstance(values, int | float) else values
    return float(red), float(green), float(blue)
