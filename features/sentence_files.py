"""How a sentence encoder makes one vector of a text, as the files of sentence-transformers beside its weights say."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from features.errors import UsageError
from features.hub import read_json
from features.texts import MAX_CHARACTERS, TextPolicy

Pooling = Literal["mean", "cls", "max", "last"]

CHARACTERS_PER_TOKEN = 8
"""A text is cut at this many characters for every token that is read: twice as many as English needs."""

_SHIFTED_POSITIONS = {"mpnet", "roberta", "xlm-roberta"}  # their first positions stand for padding
_POSITIONS = {"modernbert": 8192}  # of the others 512, where config.json is silent
_POOLINGS: dict[str, Pooling] = {"mean": "mean", "cls": "cls", "max": "max", "lasttoken": "last"}
_OLD_POOLING_KEYS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


def sentence_policy(folder: Path, config: Mapping[str, Any]) -> TextPolicy:
    """Read length, pooling and prefix; normalising is left to whoever reads the vectors.

    Raises
    ------
    UsageError
        The files ask for a module or a pooling that is not done here.
    """
    options = _optional(folder / "sentence_bert_config.json")
    max_tokens = _max_tokens(folder, config, options)
    return TextPolicy(
        max_tokens=max_tokens,
        characters=max(MAX_CHARACTERS, CHARACTERS_PER_TOKEN * max_tokens),
        letters="lower-case" if options.get("do_lower_case") else "as written",
        pooling=_pooling(folder, _pooling_folder(folder)),
        prefix=_prefix(folder),
    )


def _max_tokens(folder: Path, config: Mapping[str, Any], options: Mapping[str, Any]) -> int:
    family = config["model_type"]
    positions = int(config.get("max_position_embeddings", _POSITIONS.get(family, 512)))
    if family in _SHIFTED_POSITIONS:
        positions -= int(config.get("pad_token_id", 1)) + 1
    stated = options.get("max_seq_length") or _optional(folder / "tokenizer_config.json").get("model_max_length")
    return min(positions, int(stated or positions))


def _pooling_folder(folder: Path) -> str:
    """Check the list of modules: a transformer, a pooling, perhaps a normalisation."""
    try:
        modules = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
        found = [(str(module["type"]).rpartition(".")[2], str(module["path"])) for module in modules]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UsageError(f"{folder / 'modules.json'} must list the modules of a sentence encoder: {error!r}") from error
    kinds = [kind for kind, _ in found]
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]) or found[0][1]:
        listed = ", ".join(f"{kind} in {path}" if path else kind for kind, path in found)
        raise UsageError(
            f"{folder}: a sentence encoder must be a Transformer at the top of its folder, a Pooling and perhaps a "
            f"Normalize, however modules.json lists: {listed}"
        )
    return found[1][1]


def _pooling(folder: Path, where: str) -> Pooling:
    options = read_json(folder / where / "config.json")
    old = [name for key, name in _OLD_POOLING_KEYS.items() if options.get(key)]
    modes = options.get("pooling_mode", old or ["mean"])
    mode = modes if isinstance(modes, str) else "+".join(modes)
    part = ", without the prompt" if options.get("include_prompt") is False else ""
    if mode not in _POOLINGS or part:
        raise UsageError(
            f"{folder / where / 'config.json'}: pooling must be one of {', '.join(_POOLINGS)}, over the whole text, "
            f"however: {mode}{part}"
        )
    return _POOLINGS[mode]


def _prefix(folder: Path) -> str:
    """Read the prompt that stands before every text, if the files name a default."""
    options = _optional(folder / "config_sentence_transformers.json")
    prompt = (options.get("prompts") or {}).get(options.get("default_prompt_name") or "", "")
    return str(prompt)


def _optional(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}
