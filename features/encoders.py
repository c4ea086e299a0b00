"""Which encoder a name means: a built-in short name, a repository on the Hugging Face hub, a folder, or `tiny`.

Only JSON is read and files are hashed here, so a complete cache needs neither torch nor transformers.
"""

import difflib
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from features import hub
from features.errors import UsageError
from features.hashing import sha256_of
from features.preprocess import ImagePreprocess
from features.shapes import Shape, read_shape
from features.short_names import SHORT_NAMES, short_name
from features.texts import TextPolicy

TINY = "tiny"

PREFIXES = {
    f"intfloat/multilingual-e5-{size}": "query: "  # "embeddings as features" in their model cards
    for size in ("small", "base", "large")
}
"""Hub id -> what the encoder must see before every text although its files do not say so."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """One frozen encoder: where its files are and everything that determines its vectors.

    `tag` names its folder in the cache; `source` is "tiny", the hub id or the folder's name, `revision` the commit on
    the hub (40 hex digits; None for a folder). `folder` is the only absolute path, and it is stored nowhere.
    `family` is the `model_type` of its config.json. `dim` holds the kinds of vector it makes, with their dimension: an
    encoder of texts alone has no `preprocess` and no `image_size`, one of pictures alone no `text`.
    """

    tag: str
    source: str
    revision: str | None
    family: str
    folder: Path
    weights_sha256: str
    config_sha256: str
    tokenizer_sha256: str | None
    preprocess: ImagePreprocess | None
    text: TextPolicy | None
    dim: Mapping[str, int]
    image_size: int | None
    pickled_weights: bool

    def semantic(self) -> dict[str, Any]:
        """Everything that determines the vectors, ready for JSON: equal for the same files in any place.

        A fact that an encoder has no use for is left out.
        """
        facts = {
            "family": self.family,
            "weights_sha256": self.weights_sha256,
            "config_sha256": self.config_sha256,
            "tokenizer_sha256": self.tokenizer_sha256,
            "image": self.preprocess and self.preprocess.to_dict(),
            "text": self.text and self.text.to_dict(),
            "dim": dict(self.dim),
            "image_size": self.image_size,
        }
        return {name: fact for name, fact in facts.items() if fact is not None}

    @property
    def max_tokens(self) -> int:
        """The longest text it reads, in tokens, with its start and end; 0 for an encoder of pictures alone."""
        return self.text.max_tokens if self.text else 0

    @property
    def notices(self) -> tuple[str, ...]:
        """What the user should know before vectors are made."""
        untrained = f"{self.tag} is an untrained encoder with random weights: for demonstrations and tests only"
        pickled = f"{self.source} has only pickled weights; they are loaded with weights_only=True"
        return ((untrained,) if self.source == TINY else ()) + ((pickled,) if self.pickled_weights else ())


def resolve_encoder(
    name: str,
    models_folder: Path,
    *,
    allow_bin_weights: bool = False,
    expected_revision: str | None = None,
    on_progress: hub.OnProgress | None = None,
) -> EncoderConfig:
    """Find the encoder that `--model NAME` means, downloading or building it on its first use.

    `tiny` is built under `models_folder`. With `expected_revision` exactly that commit of a hub repository is used,
    whatever the hub calls `main` today; a folder has no commit, there the hashes in `semantic` tell files apart.

    Raises
    ------
    UsageError
        The name means nothing, the model cannot be fetched, or its files are not those of a supported encoder.
    CacheError
        The expected commit is neither on this machine nor on the hub.
    StorageError
        The disk is full, or `models_folder` cannot be written.
    """
    short = short_name(name)
    if name == TINY:
        return _read_encoder(TINY, TINY, _tiny_folder(models_folder), None)
    if name and short is None and Path(name).expanduser().is_dir():
        folder = Path(name).expanduser().resolve()
        return _read_encoder(cache_tag(name), folder.name, folder, None, allow_bin_weights=allow_bin_weights)
    if short is None and not _HUB_ID.fullmatch(name):
        raise _unknown(name)
    hub_id = SHORT_NAMES[short] if short else name
    allowed = allow_bin_weights or hub_id in SHORT_NAMES.values()
    folder, commit = hub.fetch(hub_id, expected_revision, allow_bin_weights=allowed, on_progress=on_progress)
    return _read_encoder(cache_tag(name), hub_id, folder, commit, allow_bin_weights=allowed)


def cache_tag(name: str) -> str:
    """The folder of an encoder's cache, from its name alone; a tag is its own tag.

    >>> cache_tag("vit-l/14"), cache_tag("openai/clip-vit-base-patch32"), cache_tag("../my-clip/")
    ('ViT-L-14', 'openai--clip-vit-base-patch32', 'my-clip')
    """
    short = short_name(name)
    if short is not None:
        return short
    is_path = Path(name).expanduser().is_dir() or not _HUB_ID.fullmatch(name)
    return _tag(Path(name).expanduser().resolve().name if is_path else name)


def _tiny_folder(models_folder: Path) -> Path:
    folder = models_folder.resolve() / TINY
    if not folder.is_dir():
        from features.tiny import build_tiny  # noqa: PLC0415 - imports torch and transformers

        build_tiny(folder)
    return folder


def _tag(name: str) -> str:
    """Turn a name into one that is safe as a folder.

    >>> _tag("openai/clip-vit-base-patch32"), _tag(".my model")
    ('openai--clip-vit-base-patch32', 'my-model')
    """
    return re.sub(r"[^A-Za-z0-9._-]", "-", name.replace("/", "--")).lstrip(".-") or "model"


def _unknown(name: str) -> UsageError:
    names = [*SHORT_NAMES, TINY]
    lower = {known.lower(): known for known in names}
    close = [lower[match] for match in difflib.get_close_matches(name.lower().replace("/", "-"), lower, 3, 0.5)]
    return UsageError(
        f"no encoder is called {name!r}. "
        + (f"Close: {', '.join(close)}. " if close else "")
        + f"--model takes a short name ({', '.join(names)}), a hub id (openai/clip-vit-large-patch14), or the path of "
        "a folder that exists and holds a checkpoint (./my-clip)"
    )


def _read_encoder(
    tag: str, source: str, folder: Path, revision: str | None, *, allow_bin_weights: bool = False
) -> EncoderConfig:
    _refuse_incomplete(folder)
    family, shape = read_shape(folder, hub.read_json(folder / "config.json"))
    weights = hub.weights_files(folder)
    pickled = weights[0] in (hub.BIN, hub.BIN_INDEX)
    if pickled and not allow_bin_weights:
        raise hub.only_pickles(str(folder))
    tokenizer = [name for name in hub.TOKENIZER_FILES if (folder / name).is_file()]
    preprocess = _read_preprocess(folder, shape) if "image" in shape.dim else None
    return EncoderConfig(
        tag=tag,
        source=source,
        revision=revision,
        family=family,
        folder=folder,
        weights_sha256=_joint_sha256(folder, weights),
        config_sha256=_sha256(folder / "config.json"),
        tokenizer_sha256=_joint_sha256(folder, tokenizer) if "text" in shape.dim else None,
        preprocess=preprocess,
        text=_with_known_prefix(shape.text, source),
        dim=shape.dim,
        image_size=preprocess.output[0] if preprocess else None,
        pickled_weights=pickled,
    )


def _refuse_incomplete(folder: Path) -> None:
    missing = hub.missing_files(folder)
    if missing:
        raise UsageError(
            f"{folder} lacks {', '.join(missing)}: a usable folder holds config.json and model.safetensors, for "
            "pictures preprocessor_config.json (or processor_config.json), for texts tokenizer.json (or, for CLIP, "
            "vocab.json and merges.txt), as transformers' save_pretrained writes them; for a sentence encoder also "
            "modules.json and 1_Pooling/config.json, as sentence-transformers writes them"
        )


def _read_preprocess(folder: Path, shape: Shape) -> ImagePreprocess:
    preprocess = ImagePreprocess.from_folder(folder)
    height, width = preprocess.output
    if shape.image_size is not None and (height, width) != (shape.image_size, shape.image_size):
        raise UsageError(
            f"{folder}: the encoder takes {shape.image_size} x {shape.image_size} pixels, however its preprocessing "
            f"makes {height} x {width}"
        )
    if height % shape.patch_size or width % shape.patch_size:
        raise UsageError(
            f"{folder}: the encoder takes multiples of {shape.patch_size} pixels, however its preprocessing makes "
            f"{height} x {width}"
        )
    return preprocess


def _with_known_prefix(text: TextPolicy | None, source: str) -> TextPolicy | None:
    if text is None or text.prefix or source not in PREFIXES:
        return text
    return replace(text, prefix=PREFIXES[source])


def _joint_sha256(folder: Path, names: list[str]) -> str:
    """Hash one file as itself, several as the list of their names and hashes."""
    if len(names) == 1:
        return _sha256(folder / names[0])
    listing = "".join(f"{_sha256(folder / name)}  {name}\n" for name in names)
    return hashlib.sha256(listing.encode()).hexdigest()


def _sha256(path: Path) -> str:
    # The Hugging Face cache names the large files by their SHA-256 and links to them.
    blob = path.resolve()
    if blob.parent.name == "blobs" and _SHA256.fullmatch(blob.name):
        return blob.name
    return sha256_of(path)
