"""How an unfinished fine-tuning was begun, so that it is continued in the same way or not at all."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from features import durable
from features.errors import CacheError, UsageError
from features.plan import differences
from features.progress import Progress
from pipeline.config import FinetuneConfig
from pipeline.runs import Run
from pipeline.settings import to_plain
from pipeline.tuning.unfinished import BEGUN

BESIDE_THE_POINT = {"gpus", "device", "num_workers", "force", "wandb", "data", "work", "name", "init", "model"}
"""Options that an unfinished training may be continued without: they do not change where it ends."""

_THREADS = "compute_threads"


def begin(folder: Path, name: str, ours: Mapping[str, Any], progress: Progress) -> int:
    """Note how a fine-tuning is begun, or that it goes on; returns the threads that it computes with on a CPU.

    As the last bits of a result depend on the number of threads, it is that of the beginning, whoever computes beside
    it later.

    Parameters
    ----------
    folder
        Holds what is not finished.
    ours
        What decides where it ends, see `decisive`.

    Raises
    ------
    UsageError
        It was begun with other options, folds or heads.
    CacheError
        The note is damaged.
    """
    path = folder / BEGUN
    if not path.is_file():
        for fold in folder.glob("fold*"):  # nobody knows how they were begun
            durable.remove_tree(fold)
        threads = own_threads()
        durable.publish(path, json.dumps({**ours, _THREADS: threads}, indent=1) + "\n")
        return threads
    try:
        theirs = dict(json.loads(path.read_text(encoding="utf-8")))
        threads = int(theirs.pop(_THREADS))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CacheError(
            f"{path} is damaged ({error!r}): begin anew after `vp prune --unfinished {name} --yes`"
        ) from error
    if found := differences(ours, theirs):
        raise UsageError(
            f"an unfinished fine-tuning {name} was begun otherwise ({'; '.join(found)}): give the same options, "
            f"another --name, or give it up with `vp prune --unfinished {name} --yes`"
        )
    progress.note(f"going on with the unfinished {name}")
    return threads


def own_threads() -> int:
    """How many threads torch would take by itself, which OMP_NUM_THREADS decides if it is set."""
    import torch  # noqa: PLC0415 - seconds, which a refusal can spare

    return torch.get_num_threads()


def decisive(config: FinetuneConfig, run: Run, precision: str, videos: str) -> dict[str, Any]:
    """Everything that decides where a fine-tuning of `run` ends, but thumbnails; `videos` is a digest of the table."""
    options = {key: value for key, value in to_plain(config).items() if key not in BESIDE_THE_POINT}
    files = {file: digest for file, digest in run.part("files").items() if file.endswith("_final.safetensors")}
    facts = {"run": run.name, "precision": precision, "folds": run.part("folds")["digest"], "videos": videos}
    return {**options, **facts, **files}
