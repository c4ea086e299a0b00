"""The command that mends a cache or a run, as a user would type it."""

import shlex
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from features.extract_command import command_for
from features.plan import CachePlan
from pipeline.config import FinetuneConfig, TrainHeadsConfig, WorkConfig
from pipeline.settings import SHARED, flags_of, repeated_flags


def extract_command(tag: str, plan: CachePlan | None, config: WorkConfig) -> str:
    """`vp extract` for the cache of an encoder; a local folder is named by its last part, the only one stored.

    >>> extract_command("openai--clip-vit-base-patch32", None, WorkConfig())
    'vp extract --model openai/clip-vit-base-patch32'
    """
    return f"{command_for(tag, plan)}{repeated_flags(config)}"


def train_command(name: str, config: WorkConfig, trained_with: Any = None) -> str:
    """`vp train-heads`, or `vp finetune`, for a run, with the options that it was trained with, if they are known.

    >>> train_command("words", WorkConfig(), {"head": "trees", "modalities": ["words", "age"], "search": False})
    'vp train-heads --name words --modalities words,age --head trees --no-search'
    >>> train_command("tuned", WorkConfig(), {"init": "clip", "model": ["tiny"], "lr": 0.1, "head": "linear"})
    'vp finetune --name tuned --init clip --lr 0.1'
    """
    known = dict(trained_with) if isinstance(trained_with, Mapping) else {}
    if known.get("fold_file"):
        known["fold_file"] = f"PATH/TO/{PurePath(str(known['fold_file'])).name}"  # of which only the name is stored
    if known.get("init"):
        stage, options = "finetune", flags_of(FinetuneConfig, known, SHARED | {"name", "model"})
    else:
        stage, options = "train-heads", flags_of(TrainHeadsConfig, known, SHARED | {"name"})
    return f"vp {stage} --name {shlex.quote(name)}{options}{repeated_flags(config)}"
