"""What a checkpoint's own files say of its inputs and vectors, family by family; only JSON is read."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from features.errors import UsageError
from features.hub import KINDS, read_json
from features.sentence_files import sentence_policy
from features.texts import Letters, TextPolicy


class Shape(NamedTuple):
    """The dimension of each kind of vector, and what the towers read.

    Pictures have `image_size` pixels on a side or, if that is None, any multiple of `patch_size`.
    """

    dim: Mapping[str, int]
    image_size: int | None = None
    patch_size: int = 1
    text: TextPolicy | None = None


def read_shape(folder: Path, config: Mapping[str, Any]) -> tuple[str, Shape]:
    """The family of a checkpoint (its `model_type`) and its shape, from the content of its config.json.

    Raises
    ------
    UsageError
        The family is not supported, or its files ask for something that is not done here.
    """
    if "auto_map" in config:
        raise UsageError(f"{folder} needs code from its repository (auto_map in config.json), which is never run")
    family = config.get("model_type")
    if family == "siglip2":
        raise UsageError(
            f"{folder} is a NaFlex variant of SigLIP 2, which reads pictures of any shape; choose one of a fixed "
            "resolution, such as siglip2-base (google/siglip2-base-patch16-224)"
        )
    if family not in KINDS:
        raise UsageError(f"{folder / 'config.json'}: model_type must be one of {', '.join(KINDS)}, however: {family}")
    return family, _READERS.get(family, _sentence_shape)(folder, config)


# What files leave out has the value of the configuration classes of transformers.


def _clip_shape(_folder: Path, config: Mapping[str, Any]) -> Shape:
    text, vision = (config.get(section) or {} for section in ("text_config", "vision_config"))
    dim = config.get("projection_dim", 512)
    policy = TextPolicy(max_tokens=text.get("max_position_embeddings", 77))
    return Shape({"image": dim, "text": dim}, vision.get("image_size", 224), text=policy)


def _siglip_shape(folder: Path, config: Mapping[str, Any]) -> Shape:
    text, vision = (config.get(section) or {} for section in ("text_config", "vision_config"))
    if not vision.get("vision_use_head", True):
        raise UsageError(f"{folder}: a SigLIP without its pooling head (vision_use_head) makes no vector of a picture")
    text_dim = text.get("projection_size") or text.get("hidden_size", 768)
    dim = {"image": vision.get("hidden_size", 768), "text": text_dim}
    return Shape(dim, vision.get("image_size", 224), text=_siglip_text(folder, text.get("max_position_embeddings", 64)))


def _siglip_text(folder: Path, max_tokens: int) -> TextPolicy:
    """Read how SigLIP wants its texts: it was trained on padded ones and reads its vector at the last position.

    The first SigLIP drops capitals and punctuation, the second capitals: its published files name Gemma's tokenizer,
    which keeps them, although the model never saw one (arXiv:2502.14786, section 2; transformers pull request 43101).
    """
    written = folder / "tokenizer_config.json"
    options = read_json(written) if written.is_file() else {}
    tokenizer = str(options.get("tokenizer_class", "SiglipTokenizer")).removesuffix("Fast")
    of_gemma = tokenizer in ("GemmaTokenizer", "Siglip2Tokenizer")
    letters: Letters = "as written"
    if options.get("do_lower_case", of_gemma or tokenizer == "SiglipTokenizer"):
        letters = "lower-case, no punctuation" if tokenizer == "SiglipTokenizer" else "lower-case"
    side: Literal["left", "right"] = "left" if of_gemma else "right"  # as the classes do where the file is silent
    return TextPolicy(max_tokens=max_tokens, letters=letters, padding=options.get("padding_side", side))


def _dino_shape(_folder: Path, config: Mapping[str, Any]) -> Shape:
    third = config["model_type"] == "dinov3_vit"
    dim = config.get("hidden_size", 384 if third else 768)
    return Shape({"image": dim}, patch_size=config.get("patch_size", 16 if third else 14))


def _sentence_shape(folder: Path, config: Mapping[str, Any]) -> Shape:
    return Shape({"text": config.get("hidden_size", 768)}, text=sentence_policy(folder, config))


_READERS: dict[str, Callable[[Path, Mapping[str, Any]], Shape]] = {
    "clip": _clip_shape,
    "siglip": _siglip_shape,
    "dinov2": _dino_shape,
    "dinov2_with_registers": _dino_shape,
    "dinov3_vit": _dino_shape,
}
