"""`vp extract` for one cache, as a user would type it."""

import shlex
from collections.abc import Iterable

from features.encoders import TINY
from features.kinds import IMAGE, KINDS, SEPARATE, TEXT
from features.plan import CachePlan
from features.short_names import SHORT_NAMES


def command_for(tag: str, plan: CachePlan | None = None) -> str:
    """`vp extract` for the cache of an encoder; a local folder is named by its last part, the only one stored.

    >>> command_for("openai--clip-vit-base-patch32")
    'vp extract --model openai/clip-vit-base-patch32'
    """
    return f"vp extract --model {shlex.quote(model_of(tag, plan))}{_kinds(plan)}"


def model_of(tag: str, plan: CachePlan | None = None) -> str:
    """What `--model` takes for the encoder of a cache.

    >>> model_of("ViT-B-32"), model_of("tiny"), model_of("me--clip"), model_of("my-clip")
    ('ViT-B-32', 'tiny', 'me/clip', 'PATH/TO/my-clip')
    """
    if tag in SHORT_NAMES or tag == TINY:
        return tag
    source = str(plan.environment.get("source", "")) if plan is not None else tag.replace("--", "/", 1)
    return source if "/" in source else f"PATH/TO/{source or tag}"


def text_option(kinds: Iterable[str]) -> str:
    """The option that titles and descriptions of their own take, after a space; empty for other kinds.

    >>> text_option(["image", "title"]), text_option(["image", "text"])
    (' --text separate', '')
    """
    return " --text separate" if any(kind in SEPARATE for kind in kinds) else ""


def _kinds(plan: CachePlan | None) -> str:
    """The options that lead to the kinds of vector in a cache."""
    kinds = {IMAGE, TEXT} if plan is None else set(plan.dims)
    separate = text_option(kinds)
    every = {IMAGE, *SEPARATE} if separate else {IMAGE, TEXT}
    some = f" --modalities {','.join(kind for kind in KINDS if kind in kinds)}" if kinds != every else ""
    return separate + some
