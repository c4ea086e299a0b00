"""Checkpoint files: what a usable folder holds, and how a repository on the Hugging Face hub becomes one.

What is on this machine is used without asking the network; code from a repository is never fetched.
"""

import errno
import json
import re
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any

from features.errors import CacheError, FeatureError, StorageError, UsageError

OnProgress = Callable[[int, int], None]
"""Called now and then with the bytes that are here and the bytes there will be."""

KINDS: dict[str, tuple[str, ...]] = {
    "clip": ("image", "text"),
    "siglip": ("image", "text"),  # SigLIP 2 as well, in its fixed resolutions
    "dinov2": ("image",),
    "dinov2_with_registers": ("image",),
    "dinov3_vit": ("image",),
    "bert": ("text",),
    "mpnet": ("text",),
    "roberta": ("text",),
    "xlm-roberta": ("text",),
    "modernbert": ("text",),
}
"""Supported values of `model_type` in config.json -> the kinds of vector that such a checkpoint makes."""

PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")  # new layout, old layout: read in this order
TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt"),
    *("special_tokens_map.json", "added_tokens.json"),
)
SENTENCE_FILES = ("modules.json", "sentence_bert_config.json", "config_sentence_transformers.json")
SAFETENSORS, SAFETENSORS_INDEX = "model.safetensors", "model.safetensors.index.json"
BIN, BIN_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"

_POOLING_FILE = re.compile(r"\d+_Pooling/config\.json")
_SHARD = re.compile(r"(model-\d+-of-\d+\.safetensors|pytorch_model-\d+-of-\d+\.bin)")


def weights_index(files: Collection[str]) -> str | None:
    """The file that holds the weights, or lists their shards; safetensors before pickles, whole before shards.

    >>> weights_index({"pytorch_model.bin", "model.safetensors.index.json"})
    'model.safetensors.index.json'
    """
    return next((name for name in (SAFETENSORS, SAFETENSORS_INDEX, BIN, BIN_INDEX) if name in files), None)


def weights_files(folder: Path) -> list[str]:
    """Names of the files that hold a folder's weights, shards included; empty if there are none.

    Raises
    ------
    UsageError
        The index of the shards cannot be read.
    """
    index = weights_index({path.name for path in folder.iterdir()})
    if index in (SAFETENSORS_INDEX, BIN_INDEX):
        return [index, *sorted(set(read_json(folder / index).get("weight_map", {}).values()))]
    return [index] if index else []


def missing_files(folder: Path) -> list[str]:
    """What a folder lacks to be used as a checkpoint of its family.

    Raises
    ------
    UsageError
        A file that says what is needed cannot be read.
    """
    here = {path.name for path in folder.iterdir()}
    model_type = read_json(folder / "config.json").get("model_type", "clip") if "config.json" in here else "clip"
    missing = [] if "config.json" in here else ["config.json"]
    kinds = KINDS.get(model_type, ())  # an unknown family is refused by its name, not by what it lacks
    if "image" in kinds and not here.intersection(PROCESSOR_FILES):
        missing.append("preprocessor_config.json")
    if "text" in kinds and "tokenizer.json" not in here:
        if model_type != "clip":
            missing.append("tokenizer.json")
        elif not {"vocab.json", "merges.txt"} <= here:
            missing.append("tokenizer.json (or vocab.json and merges.txt)")
    if kinds == ("text",):
        missing += [] if "modules.json" in here else ["modules.json"]
        missing += [] if any(folder.glob("*_Pooling/config.json")) else ["1_Pooling/config.json"]
    weights = weights_files(folder)
    return missing + ([name for name in weights if name not in here] if weights else [SAFETENSORS])


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises
    ------
    UsageError
        The file cannot be read or holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} must be a JSON file, however: {error}") from error
    if not isinstance(content, dict):
        raise UsageError(f"{path} must hold a JSON object, however it holds {type(content).__name__}")
    return content


def wanted_files(files: Collection[str]) -> list[str]:
    """Which files of a repository an encoder needs: no second copy of the weights, no code."""
    wanted = sorted({"config.json", *PROCESSOR_FILES, *TOKENIZER_FILES, *SENTENCE_FILES}.intersection(files))
    wanted += sorted(name for name in files if _POOLING_FILE.fullmatch(name))
    index = weights_index(files)
    if index in (SAFETENSORS_INDEX, BIN_INDEX):
        stem = "model-" if index == SAFETENSORS_INDEX else "pytorch_model-"
        wanted += sorted(name for name in files if name.startswith(stem) and _SHARD.fullmatch(name))
    return wanted + ([index] if index else [])


def fetch(
    hub_id: str,
    revision: str | None = None,
    *,
    allow_bin_weights: bool = False,
    on_progress: OnProgress | None = None,
) -> tuple[Path, str]:
    """Folder and commit of a hub repository: from the Hugging Face cache if it is complete there, else downloaded.

    Without a revision, that is the commit the cache knows as `main`, and only then the one the hub does.

    Raises
    ------
    UsageError
        The repository does not exist, cannot be reached, or has only pickled weights that are not allowed.
    CacheError
        The commit `revision` is neither on this machine nor on the hub.
    StorageError
        The disk is full.
    """
    folder = _cached(hub_id, revision)
    if folder is None or missing_files(folder):
        try:
            folder = _download(hub_id, revision, allow_bin_weights, on_progress or _ignore_progress)
        except _hub_errors() as error:
            raise _explained(error, hub_id, revision) from error
    if weights_index({path.name for path in folder.iterdir()}) in (BIN, BIN_INDEX) and not allow_bin_weights:
        raise only_pickles(hub_id)
    return folder, folder.name


def _cached(hub_id: str, revision: str | None) -> Path | None:
    from huggingface_hub import snapshot_download  # noqa: PLC0415 - a quarter of a second that folders do not need
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError  # noqa: PLC0415 - as above

    try:
        return Path(snapshot_download(hub_id, revision=revision, local_files_only=True, allow_patterns=["config.json"]))
    except LocalEntryNotFoundError:
        return None
    except HFValidationError as error:
        raise UsageError(f"{hub_id} cannot be the name of a repository on the hub: {error}") from error


def _download(hub_id: str, revision: str | None, allow_bin_weights: bool, on_progress: OnProgress) -> Path:
    from huggingface_hub import HfApi, snapshot_download  # noqa: PLC0415 - as in `_cached`

    api = HfApi()
    commit = api.model_info(hub_id, revision=revision or "main").sha  # fails at once where the listing would retry
    files = api.list_repo_files(hub_id, revision=commit)
    if weights_index(files) in (BIN, BIN_INDEX) and not allow_bin_weights:
        raise only_pickles(hub_id)
    if "config.json" not in files or weights_index(files) is None:
        raise UsageError(
            f"{hub_id} must hold config.json and {SAFETENSORS} in the layout of transformers, however it holds: "
            + ", ".join(sorted(files)[:20])
        )
    return Path(
        snapshot_download(
            hub_id, revision=revision, allow_patterns=wanted_files(files), tqdm_class=_progress_bar(on_progress)
        )
    )


def _progress_bar(on_progress: OnProgress) -> type[Any]:
    """Make a class that huggingface_hub takes for a progress bar and that reports bytes instead of drawing.

    Received and written bytes have a bar each and run apart only for a moment; the larger count is reported.
    """
    from tqdm import tqdm  # noqa: PLC0415 - as in `_cached`

    received: list[tqdm[Any]] = []

    class ByteCount(tqdm):  # type: ignore[type-arg]  # tqdm is not generic at run time
        monitor_interval = 0  # no watching thread

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            kwargs["disable"] = False
            super().__init__(*args, **kwargs)
            if kwargs.get("unit") == "B":
                received.append(self)

        def display(self, *_args: Any, **_kwargs: Any) -> None:
            done, total = (max((value or 0) for value in values) for values in _counts(received))
            on_progress(int(done), int(total))

    return ByteCount


def _counts(bars: Iterable[Any]) -> tuple[list[float], list[float]]:
    bars = list(bars)
    return [0.0, *(bar.n for bar in bars)], [0.0, *(bar.total or 0 for bar in bars)]


def _ignore_progress(_done: int, _total: int) -> None:
    """Report to nobody."""


def _hub_errors() -> tuple[type[BaseException], ...]:
    from huggingface_hub.errors import HfHubHTTPError  # noqa: PLC0415 - as in `_cached`

    # Its first base is the base error of the HTTP library below, which changed its name once (httpx, httpx2).
    return (OSError, HfHubHTTPError, HfHubHTTPError.__bases__[0])


def _explained(error: BaseException, hub_id: str, revision: str | None) -> FeatureError:
    from huggingface_hub.errors import (  # noqa: PLC0415 - as in `_cached`
        GatedRepoError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if isinstance(error, GatedRepoError):
        return UsageError(f"{hub_id} is gated: accept its terms on the hub and set HF_TOKEN, or pass a local folder")
    if isinstance(error, RepositoryNotFoundError):
        return UsageError(f"there is no model {hub_id} on the hub (or it is private: then set HF_TOKEN)")
    if isinstance(error, RevisionNotFoundError):
        return CacheError(f"commit {revision} of {hub_id} is neither on this machine nor on the hub")
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageError(f"the disk is full while {hub_id} is downloaded; what has arrived is kept: run again")
    wanted = hub_id if revision is None else f"commit {revision} of {hub_id}"
    return UsageError(
        f"{wanted} is not complete on this machine and the hub cannot be reached ({type(error).__name__}): run "
        f"`vp extract --model {hub_id}` on a machine with network and copy its Hugging Face cache (HF_HOME), or pass "
        "a local folder: `--model /path/to/folder`"
    )


def only_pickles(source: str) -> UsageError:
    """Say why weights that exist only as pickles are refused, and what to do."""
    return UsageError(
        f"{source} has only pickled weights ({BIN}), which can run code when they are loaded carelessly: choose a "
        "model with model.safetensors, or pass --allow-bin-weights to load them with weights_only=True"
    )
