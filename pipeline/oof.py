"""The out-of-fold predictions that a run keeps, and whether those of several runs can be held side by side."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float64, Int32, Int64

from features.errors import CacheError
from pipeline.runs import Run


class NotComparableError(CacheError):
    """Runs whose out-of-fold predictions are not of the same videos and views."""


FIXED = ("id", "fold", "log_views", "log_pred_best", "log_pred_final")
CONTRIBUTION = "contribution_"
"""Columns that every `oof.csv` has, and what the others begin with."""


@dataclass(frozen=True, eq=False, kw_only=True)
class SavedOutOfFold:
    """`oof.csv` of one run: what each row's own member predicted; NaN where none validated it (fold -1)."""

    run: str
    ids: list[str]
    fold_of: Int32[np.ndarray, " video"]
    log_views: Float64[np.ndarray, " video"]
    best: Float64[np.ndarray, " video"]
    final: Float64[np.ndarray, " video"]
    modalities: Sequence[str]
    contributions: Float64[np.ndarray, "modality video"]  # of best, beside its baseline

    @property
    def validated(self) -> Bool[np.ndarray, " video"]:
        """Rows that some member validated."""
        return self.fold_of >= 0

    def at(self, moment: str) -> Float64[np.ndarray, " video"]:
        """Log predictions of the epoch `best` or `final`."""
        return self.best if moment == "best" else self.final

    def contribution(self, modality: str) -> Float64[np.ndarray, " video"]:
        """What a modality added to the best prediction; 0 everywhere if the run does not read it."""
        if modality not in self.modalities:
            return np.zeros(len(self.ids))
        found: Float64[np.ndarray, " video"] = self.contributions[list(self.modalities).index(modality)]
        return found

    def take(self, rows: Int64[np.ndarray, " row"] | Bool[np.ndarray, " video"]) -> "SavedOutOfFold":
        """These rows alone."""
        return replace(
            self,
            ids=np.array(self.ids, dtype=object)[rows].tolist(),
            fold_of=self.fold_of[rows],
            log_views=self.log_views[rows],
            best=self.best[rows],
            final=self.final[rows],
            contributions=self.contributions[:, rows],
        )


def read_oof(run: Run) -> SavedOutOfFold:
    """Read a run's `oof.csv`, its bytes checked.

    Raises
    ------
    CacheError
        It is not the file that the run was saved with, or not a table that vp writes.
    """
    path = run.verified("oof.csv")
    try:
        with path.open(newline="", encoding="utf-8") as file:
            names, *rows = csv.reader(file)  # and not pandas, which takes longer to import than most of these to read
        return _table(run, names, rows)
    except (OSError, ValueError, OverflowError, csv.Error) as error:
        raise CacheError(f"{path} is damaged ({error}): run `{run.command}` again") from error


def _table(run: Run, names: Sequence[str], rows: Sequence[Sequence[str]]) -> SavedOutOfFold:
    """The cells as arrays; raises ValueError for a table that is not of this run."""
    if missing := [name for name in FIXED if name not in names]:
        raise ValueError(f"it lacks the columns {', '.join(missing)}")
    columns = dict(zip(names, zip(*rows, strict=True), strict=True))
    added = [name for name in names if name.startswith(CONTRIBUTION)]
    table = SavedOutOfFold(
        run=run.name,
        ids=list(columns["id"]),
        fold_of=np.array(columns["fold"], dtype=np.int32),
        log_views=_numbers(columns["log_views"]),
        best=_numbers(columns["log_pred_best"]),
        final=_numbers(columns["log_pred_final"]),
        modalities=[name.removeprefix(CONTRIBUTION) for name in added],
        contributions=np.array([_numbers(columns[name]) for name in added]).reshape(len(added), len(rows)),
    )
    if fault := _fault(table):
        raise ValueError(fault)
    return table


def _fault(table: SavedOutOfFold) -> str:
    """What no table of a run holds; empty for one that may be right."""
    rows = table.validated
    numbers = np.concatenate([table.log_views[None], table.best[None], table.final[None], table.contributions])
    rules = {
        "an id occurs twice": len(set(table.ids)) == len(table.ids),
        "no row was validated": bool(rows.any()),
        "a validated row has a number that is not finite": bool(np.isfinite(numbers[:, rows]).all()),
    }
    return "; ".join(rule for rule, holds in rules.items() if not holds)


def _numbers(cells: Sequence[str]) -> Float64[np.ndarray, " video"]:
    """Cells as numbers, NaN where one is empty."""
    return np.array([cell or "nan" for cell in cells], dtype=np.float64)


def side_by_side(tables: Sequence[SavedOutOfFold]) -> list[SavedOutOfFold]:
    """The validated rows of several runs, each in the order of the first run.

    Raises
    ------
    NotComparableError
        Two runs were scored on other videos, or with other views; the message says which and how many.
    """
    first = tables[0]
    row_of = [{id_: row for row, id_ in enumerate(table.ids)} for table in tables]
    for table, rows in zip(tables[1:], row_of[1:], strict=True):
        if faults := _other_rows(first, table, rows):
            told = "; ".join(faults)
            raise NotComparableError(f"runs {first.run} and {table.run} cannot be compared: {told}; {_REMEDY}")
    ids = [id_ for id_, validated in zip(first.ids, first.validated.tolist(), strict=True) if validated]
    return [
        table.take(np.array([rows[id_] for id_ in ids], dtype=np.int64))
        for table, rows in zip(tables, row_of, strict=True)
    ]


def other_folds(first: SavedOutOfFold, other: SavedOutOfFold) -> str:
    """How two tables that are side by side differ in their folds; empty where they do not."""
    differing = np.flatnonzero(first.fold_of != other.fold_of)
    if not differing.size:
        return ""
    return f"{differing.size} of {len(first.ids)} rows are in another fold (first: {first.ids[int(differing[0])]})"


_REMEDY = "train both on the same dataset, with the same --split, --folds and --target"


def _other_rows(first: SavedOutOfFold, other: SavedOutOfFold, row_in_other: dict[str, int]) -> list[str]:
    """Everything in which the videos of two runs, or their views, differ."""
    ours, theirs = set(first.ids), set(row_in_other)
    faults = [
        f"{len(extra)} videos are only in {table.run} (first: {min(extra)})"
        for table, extra in ((first, ours - theirs), (other, theirs - ours))
        if extra
    ]
    shared = np.array([row for row, id_ in enumerate(first.ids) if id_ in theirs], dtype=np.int64)
    matched = np.array([row_in_other[first.ids[row]] for row in shared], dtype=np.int64)
    for what, differs in (
        ("other views", first.log_views[shared] != other.log_views[matched]),
        ("a fold in one run and none in the other", first.validated[shared] != other.validated[matched]),
    ):
        if differs.any():
            faults.append(f"{int(differs.sum())} videos have {what} (first: {first.ids[shared[differs.argmax()]]})")
    return faults
