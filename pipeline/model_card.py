"""The model card of a run: what it is, what it learned from, how good it is, and what it must not be taken for."""

import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from features.extract_command import model_of, text_option
from features.videos import VideoTable
from pipeline.config import FinetuneConfig, TrainHeadsConfig
from pipeline.settings import flags_of

FILE = "model_card.md"
CHANNELS_SHOWN = 5

_FOLDERS = frozenset({"data", "work"})
"""Left to whoever makes the run again."""

_MARKDOWN = re.compile(r"([\\`*_{}\[\]()<>#+\-.!|~&$:])")

HEADS = {
    "linear": "ridge regression in closed form, one head per modality, combined by weights on the simplex",
    "hybrid": "ridge regression, then a small network per modality on what it leaves over, combined by simplex weights",
    "mlp": "a small network per modality, combined by weights on the simplex",
    "trees": "boosted trees over all modalities; not additive, contributions are Shapley values",
}


def model_card(facts: Mapping[str, Any], metrics: Mapping[str, Any], videos: VideoTable) -> str:
    """The card as Markdown; `facts` are those of run.json, `metrics` those of metrics.json."""
    counts = facts["target"] == "log1p"
    purpose = "Predicts how many views a YouTube video gets" if counts else "Predicts a number for each video"
    error = (
        "MSLE, the mean squared error of log1p(views)" if counts else "mean squared errors (MSLE: nothing is logged)"
    )
    sections = [
        f"# {escaped(facts['name'])}",
        f"{purpose}, from {_listed(facts['modalities'])}. Errors are {error}.",
        _what(facts),
        _data(facts, videos),
        _score(metrics),
        _limits(facts, metrics),
        _reproduce(facts),
    ]
    return "\n\n".join(sections) + "\n"


def escaped(text: str) -> str:
    r"""Text that Markdown and HTML show as it is, on one line.

    >>> escaped("<b>*new*</b> | a\nb")
    '\\<b\\>\\*new\\*\\</b\\> \\| a b'
    """
    return _MARKDOWN.sub(r"\\\1", " ".join(text.split()))


def _what(facts: Mapping[str, Any]) -> str:
    head = facts["config"]["head"]
    lines = ["## What it is", "", f"- Head: `{head}`, {HEADS[head]}"]
    lines += [f"- Members: one per fold, {facts['folds']['n']}; a prediction is their mean in log views"]
    encoders = facts["encoders"].items()
    how = "frozen" if (tuned := facts.get("finetuned_from")) is None else "tuned for each fold"
    lines += [f"- Encoder: {escaped(tag)}, {how} (vectors `{digest[:12]}`)" for tag, digest in encoders]
    lines += [] if tuned is None else _tuned(facts, tuned)
    lines += [] if facts["encoders"] else ["- Encoder: none"]
    if facts["reference_date"] != "NaT":
        lines.append(f"- Ages count from {facts['reference_date'].partition('T')[0]}")
    return "\n".join(lines)


def _tuned(facts: Mapping[str, Any], tuned: Mapping[str, Any]) -> list[str]:
    config = facts["config"]
    which = f"additions of rank {config['lora']} to its blocks (LoRA)" if config["lora"] else "its towers"
    what = "the heads alone" if config["freeze_clip"] else f"heads and {which} (`--unfreeze {config['unfreeze']}`)"
    lines = [f"- Tuned, {config['epochs']} epochs in {tuned['precision']}: {what}, from run {escaped(tuned['run'])}"]
    stay = " and ".join(map(escaped, tuned["frozen_modalities"]))
    return [*lines, f"- As they were in that run: {stay}"] if stay else lines


def _data(facts: Mapping[str, Any], videos: VideoTable) -> str:
    known = videos.year[videos.year > 0]
    lines = ["## Data", "", f"- {facts['rows']:,} training videos of {_n_channels(videos)} channels"]
    if known.size:
        lines.append(f"- Published from {known.min()} to {known.max()}, half of them since {int(np.median(known))}")
    spread = facts["training_log_views"]
    lines.append(f"- Target on the log scale: mean {spread['mean']:.2f}, standard deviation {spread['sd']:.2f}")
    return "\n".join(lines)


def _n_channels(videos: VideoTable) -> str:
    n_channels = len(set(videos.channel) - {""})
    return str(n_channels) if n_channels else "unknown"


def _score(metrics: Mapping[str, Any]) -> str:
    rows = [["", "MSLE"], ["a constant", metrics["oof_msle_constant"]], ["last epoch", metrics["oof_msle_final"]]]
    rows.append(["best epoch, chosen on the rows that score it", metrics["oof_msle"]])
    rows += _before(metrics)
    splits = metrics.get("diagnostics", {}).get("linear_msle_by_split", {})
    rows += [[f"linear head, --split {name}", score] for name, score in splits.items() if isinstance(score, float)]
    weights = [["modality", "weight", "spread over members"]]
    weights += [[escaped(name), value, metrics["weights_sd"][name]] for name, value in metrics["weights"].items()]
    return "\n\n".join(["## Score, out of fold", _table(rows), _table(weights), *_worst(metrics)])


def _worst(metrics: Mapping[str, Any]) -> list[str]:
    entries = [entry for entry in metrics.get("diagnostics", {}).get("error_by_channel", []) if entry["label"]]
    if len(entries) < 2:
        return []
    rows = [["largest channels", "videos", "MSLE"]]
    return [_table([*rows, *([escaped(e["label"]), str(e["rows"]), e["msle"]] for e in entries[:CHANNELS_SHOWN])])]


def _before(metrics: Mapping[str, Any]) -> list[list[Any]]:
    """The scores that a fine-tuned run began with."""
    if (frozen := metrics.get("before_tuning")) is None:
        return []
    return [["before tuning, last epoch", frozen["oof_msle_final"]], ["before tuning, best epoch", frozen["oof_msle"]]]


def _limits(facts: Mapping[str, Any], metrics: Mapping[str, Any]) -> str:
    split = facts["folds"]["split"]
    lines = ["## Limits", "", f"- {_SPLITS[split]}"]
    lines.append(
        "- A weight is a modality's share of the spread of the prediction. It is no cause: a thumbnail that the model "
        "likes need not bring views"
    )
    for level in metrics["coverage"]:
        overall, folds = level["overall"], [tally["share"] for tally in level["by_fold"].values()]
        lines.append(
            f"- Intervals of {level['level']:.0%} held for {overall['share']:.1%} of {overall['rows']:,} videos whose "
            f"fold they had not seen ({min(folds):.1%} to {max(folds):.1%} by fold); later videos and new channels are "
            "another matter"
        )
    torn = {what: count for what, count in metrics["duplicates_across_folds"].items() if count}
    lines += [f"- {n} {what}s stand on both sides of a fold, which flatters the score" for what, n in torn.items()]
    return "\n".join(lines)


_RANDOM = (
    "a member has seen other videos of the same channels and years as those that score it, so videos of new channels, "
    "or of a later time, will be predicted worse than the score says"
)
_SPLITS = {
    "kfold": f"Folds are random: {_RANDOM}",
    "stratified": f"Folds are random, alike in their views: {_RANDOM}",
    "group": "A channel is whole in a fold: the score is one for channels that are not in the training videos, and "
    "says nothing of later times",
    "time": "Later videos score members that were trained on earlier ones: the score is one for the time that follows",
    "file": "Folds are those of a file: the score holds for videos that differ as its folds do",
}
"""What a kind of split says of videos that are to come."""


def _reproduce(facts: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    lines = ["## Making it again", "", "In a folder that holds the dataset:", "", "```console"]
    for tag in facts["encoders"]:
        kinds = [source["kind"] for source in facts["sources"] if source["tag"] == tag]
        lines.append(f"$ vp extract --model {shlex.quote(model_of(tag))}{text_option(kinds)}")
    tuned = facts.get("finetuned_from")
    trained_with = facts["config"] if tuned is None else tuned["config"]
    lines.append(f"$ vp train-heads{flags_of(TrainHeadsConfig, trained_with, _FOLDERS)}")
    if tuned is not None:
        lines.append(f"$ vp finetune{flags_of(FinetuneConfig, facts['config'], _FOLDERS | {'model'})}")
    lines += ["```", ""]
    if facts["config"].get("columns"):
        lines += ["with the columns renamed in `vp.toml` as `run.json` says.", ""]
    return "\n".join([*lines, f"Folds `{facts['folds']['digest'][:12]}`; {versions}. `run.json` holds every option."])


def _listed(names: Sequence[str]) -> str:
    *first, last = map(escaped, names)
    return f"{', '.join(first)} and {last}" if first else last


def _table(rows: Sequence[Sequence[Any]]) -> str:
    header, *body = [[cell if isinstance(cell, str) else f"{cell:.4f}" for cell in row] for row in rows]
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *body]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
