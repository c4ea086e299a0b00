"""The command that mends a cache or a run, as a user would type it."""

import shlex

from features.encoders import SHORT_NAMES, TINY
from features.plan import CachePlan
from pipeline.config import WorkConfig
from pipeline.settings import repeated_flags

EVERY_KIND = {"image", "text"}


def extract_command(tag: str, plan: CachePlan | None, config: WorkConfig) -> str:
    """`vp extract` for the cache of an encoder; a local folder is named by its last part, the only one stored.

    >>> extract_command("openai--clip-vit-base-patch32", None, WorkConfig())
    'vp extract --model openai/clip-vit-base-patch32'
    """
    modalities = ""
    if plan is not None and set(plan.dims) != EVERY_KIND:
        modalities = f" --modalities {','.join(plan.dims)}"
    return f"vp extract --model {shlex.quote(_model(tag, plan))}{modalities}{repeated_flags(config)}"


def train_command(name: str, config: WorkConfig) -> str:
    """`vp train-heads` for a run."""
    return f"vp train-heads --name {shlex.quote(name)}{repeated_flags(config)}"


def _model(tag: str, plan: CachePlan | None) -> str:
    if tag in SHORT_NAMES or tag == TINY:
        return tag
    source = str(plan.environment.get("source", "")) if plan is not None else tag.replace("--", "/", 1)
    return source if "/" in source else f"PATH/TO/{source or tag}"
