"""The encoder that made the vectors of a run, found again and checked by the digest that the run knows it by."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, get_args, get_type_hints

from features.encoders import TINY, EncoderConfig, resolve_encoder
from features.errors import CacheError, UsageError
from features.plan import MANIFEST, differences, digest, read_plan
from features.short_names import SHORT_NAMES, short_name
from pipeline.config import ExtractConfig
from pipeline.dataset import TRAIN
from pipeline.runs import Run
from pipeline.workspace import Workspace


class FoundEncoder(NamedTuple):
    """An encoder, and the precision in which it made the vectors of a run."""

    config: EncoderConfig
    precision: str


def find_encoder(workspace: Workspace, run: Run, tag: str, model: str | None) -> FoundEncoder:
    """Find the encoder `tag` of a run: `model` names it or says where it is, else its cache says where it came from.

    Raises
    ------
    UsageError
        It was a local folder, or cannot be had; `model` is the name of another encoder.
    CacheError
        Its files are not those that made the vectors.
    """
    plan = read_plan(workspace.cache(tag, TRAIN) / MANIFEST)
    made_with = None if plan is None else plan.environment
    source = _source(tag, made_with)
    if model and source and _is_another(model, source):
        raise UsageError(
            f"run {run.name} reads the encoder {tag}, not {model}: --model says where the files of its own encoder "
            "are, if they are not found by its name; leave it out"
        )
    name = model or source
    if name is None:
        raise UsageError(
            f"run {run.name} reads the encoder {tag}, which was extracted from a local folder: name that folder with "
            "--model"
        )
    revision = None if model or made_with is None else made_with.get("revision") or None
    # The digest below tells these weights from all others, so they are those the cache was made with.
    encoder = resolve_encoder(name, workspace.models, allow_bin_weights=True, expected_revision=revision)
    trained_on = str(run.part("encoders")[tag])
    for precision in get_args(get_type_hints(ExtractConfig)["precision"]):
        if digest(_semantic(encoder, precision)) == trained_on:
            return FoundEncoder(encoder, precision)
    told = ""
    if plan is not None and plan.encoder == trained_on:
        found = differences(_semantic(encoder, str(plan.semantic["precision"])), plan.semantic)
        told = f" ({'; '.join(found)})"
    raise CacheError(
        f"run {run.name} was trained on vectors of encoder {tag} {trained_on[:12]}, but {name} has other weights or "
        f"another preprocessing{told}: name the files it was extracted with by --model, or run `vp extract` and `vp "
        "train-heads` again"
    )


def _semantic(encoder: EncoderConfig, precision: str) -> dict[str, object]:
    """As a cache names what its vectors mean."""
    return {**encoder.semantic(), "precision": precision, "stored_as": "float16"}


def _source(tag: str, made_with: Mapping[str, str] | None) -> str | None:
    """What `--model` would be; None for a local folder, of which only the last part of the name is stored."""
    source = tag.replace("--", "/", 1) if made_with is None else made_with.get("source", "")
    name = tag if tag in (TINY, *SHORT_NAMES) else source
    return name if name in (TINY, *SHORT_NAMES) or "/" in name or (name and Path(name).is_dir()) else None


def _is_another(model: str, source: str) -> bool:
    """Whether two names mean different encoders; a folder, or a repository without a short name, may be a copy.

    >>> _is_another("ViT-B-32", "tiny"), _is_another("ViT-B-32", "openai/clip-vit-base-patch32")
    (True, False)
    """
    shorts = short_name(model), short_name(source)
    meant = {SHORT_NAMES[short] if short else name for short, name in zip(shorts, (model, source), strict=True)}
    return len(meant) > 1 and meant <= {TINY, *SHORT_NAMES.values()}
