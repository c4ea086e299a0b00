"""Finished runs whose run.json and metrics.json say what every reader relies on; anything else is damage, told as such.

The digests in run.json find a file that was changed by accident. They do not find a run.json of other types, nor files
that somebody changed together with their digests: those must end as an error as well, never in the middle of the work.
"""

import dataclasses
import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from features.errors import CacheError
from heads.intervals import Intervals
from pipeline.inputs import Source
from pipeline.json_shape import Either, Every, Maybe, Number, Whole, fault_in
from pipeline.runs import RECORD, Run, open_run

NUMBER, COUNT, SHARE, ERROR = Number(), Whole(1), Number(0.0, 1.0), Number(0.0)
_TALLY = {"rows": COUNT, "share": SHARE}
_BAND = {"level": SHARE, "lower_offset": NUMBER, "upper_offset": NUMBER}

RECORD_SHAPE = {
    "name": str,
    "config": dict,
    "modalities": [str],
    "sources": [dict.fromkeys((field.name for field in dataclasses.fields(Source)), str)],
    "encoders": Every(str),
    "reference_date": str,
    "target": ("log1p", "none"),
    "folds": {"split": str, "n": COUNT, "seed": Maybe(Whole()), "expanding": Maybe(bool), "digest": Maybe(str)},
    "rows": COUNT,
    "training_log_views": {"mean": NUMBER, "sd": NUMBER, "max": NUMBER},
    "seeds": Maybe([Maybe(Whole())]),
    "versions": Every(str),
    "created_utc": str,
    "files": Every(str),
}
TUNED_SHAPE = {
    "finetuned_from": {"run": str, "config": dict, "frozen_modalities": [str], "precision": str},
    "towers": [{"best": str, "final": str}],
    "test_digest": str,
}
"""What a fine-tuned run says as well."""
METRICS_SHAPE = {
    "head": str,
    "oof_msle": ERROR,
    "oof_msle_constant": ERROR,
    "oof_msle_final": ERROR,
    "fold_msle": [ERROR],
    "fold_msle_final": [ERROR],
    "weights": Every(NUMBER),
    "weights_sd": Every(ERROR),
    "fold_weights": [Every(NUMBER)],
    "importance": Every(Every(Maybe(NUMBER))),
    "chosen": dict,
    "intervals": {"pooled": [_BAND], "by_bin": Every([_BAND], whole_keys=True)},
    "coverage": [
        {"level": SHARE, "overall": _TALLY, "by_fold": Every(_TALLY), "by_bin": Every(_TALLY, whole_keys=True)}
    ],
    "age_bin_edges_years": [NUMBER],
    "seconds": Maybe(NUMBER),
    "duplicates_across_folds": Maybe(Every(Whole())),
    "before_tuning": Maybe(
        {"oof_msle": ERROR, "oof_msle_final": ERROR, "fold_msle": [ERROR], "fold_msle_final": [ERROR]}
    ),
    "diagnostics": Maybe(
        {
            "linear_msle_by_split": Maybe(Every(Either(ERROR, str))),
            "test_against_train_auc": Maybe(Every(NUMBER)),
        }
    ),
}
NEEDED = (
    *("head", "oof_msle_constant", "fold_msle", "fold_msle_final"),
    *("weights", "weights_sd", "fold_weights", "importance"),
)
"""Parts of metrics.json that nobody can do without."""
IMPORTANCE = ("shapley", "share", "covariance_share", "alone", "removed")
"""What is told of each modality."""


def open_whole_run(folder: Path) -> Run:
    """Open a finished run; what its run.json says is of the right types and fits together (`Run.part` finds gaps).

    Raises
    ------
    CacheError
        There is no such run, or its run.json holds another type, or contradicts itself.
    """
    run = open_run(folder)
    check_record(run)
    return run


def check_record(run: Run) -> None:
    """Raise CacheError where what run.json says is of another type, or contradicts itself."""
    shape = {name: own for name, own in (RECORD_SHAPE | TUNED_SHAPE).items() if name in run.record}
    if fault := fault_in(run.record, shape) or next(_contradictions(run.record), ""):
        raise CacheError(f"{run.folder / RECORD} is damaged ({fault}): run `{run.command}` again")


def read_metrics(run: Run, *names: str) -> dict[str, Any]:
    """A run's metrics.json, its bytes checked.

    Of its parts those in `names` have to be there; without any, those that nobody can do without, and whatever else is
    there has to be right as well.

    Raises
    ------
    CacheError
        They are not, or it is another file than the run was saved with.
    """
    path = run.verified("metrics.json")
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
        wanted = names or (*NEEDED, *(metrics if isinstance(metrics, dict) else ()))
        shape = {name: own for name, own in METRICS_SHAPE.items() if name in wanted}
        fault = fault_in(metrics, shape) or next(_disagreements(metrics, shape.keys(), run.n_folds), "")
    except (OSError, ValueError, RecursionError) as error:
        fault = str(error)
    if fault:
        raise CacheError(f"{path} is damaged ({fault}): run `{run.command}` again")
    return dict(metrics)


def _contradictions(record: Mapping[str, Any]) -> Iterator[str]:
    """What no run says, although every value is of the right type."""
    yield from _wrong_sources(record)
    files = record.get("files", {})
    if not _is_day(record.get("reference_date", "2000-01-01")):
        yield f"its reference_date is {record['reference_date']!r}"
    if {"folds", "files"} <= record.keys() and record["folds"]["n"] > len(files):
        yield f"it has {record['folds']['n']} folds and {len(files)} files"
    if record.get("seeds") == []:
        yield "it has no seeds"
    if "finetuned_from" in record and len(record.get("towers", ())) != record.get("folds", {}).get("n"):
        yield f"it has {len(record.get('towers', ()))} pairs of towers, which is not one for each fold"
    for name in files:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            yield f"the file {name!r} lies outside the run"


def _wrong_sources(record: Mapping[str, Any]) -> Iterator[str]:
    sources = record.get("sources", ())
    named = [source["modality"] for source in sources]
    if "sources" in record and (not named or len(set(named)) < len(named)):
        yield f"its sources give the modalities {named}"
    if {"sources", "modalities"} <= record.keys() and sorted(named) != sorted(record["modalities"]):
        yield f"its modalities are {record['modalities']}, its sources give {named}"
    for source in sources:
        if source.keys() != {field.name for field in dataclasses.fields(Source)}:
            yield f"a source has the keys {', '.join(source)}"
        tag = source["tag"]  # part of a path
        if tag and (tag not in record.get("encoders", [tag]) or "/" in tag or tag in {".", ".."}):
            yield f"a source is of the encoder {tag!r}, which is none of the run"


def _disagreements(metrics: Mapping[str, Any], names: Collection[str], n_folds: int) -> Iterator[str]:
    """What these parts of metrics.json do not say together, although every value is of the right type."""
    for name in ("fold_msle", "fold_msle_final", "fold_weights"):
        if name in names and len(metrics[name]) != n_folds:
            yield f"{name} has {len(metrics[name])} entries for {n_folds} folds"
    if "intervals" in names:
        Intervals.from_dict(metrics["intervals"])  # raises ValueError for keys that it does not know
    if "weights" in names:
        modalities = metrics["weights"].keys()
        told = [metrics["weights_sd"], metrics["importance"], *metrics["fold_weights"]]
        if any(entries.keys() != modalities for entries in told):
            yield f"weights_sd, importance and fold_weights are not all of the modalities {', '.join(modalities)}"
        if any(not set(IMPORTANCE) <= numbers.keys() for numbers in metrics["importance"].values()):
            yield f"importance does not tell {', '.join(IMPORTANCE)} of each modality"


def _is_day(text: str) -> bool:
    try:
        return not np.isnat(np.datetime64(text))
    except ValueError:
        return False
