"""Whether every file and value of a run is right: digests, checkpoints, folds, predictions and their score."""

import csv
import itertools
import math
from collections.abc import Iterator, Mapping
from itertools import zip_longest
from pathlib import Path

import numpy as np

from features.errors import CacheError
from features.hashing import sha256_of
from features.inspection import Inspection
from features.verification import Fault
from features.videos import VideoTable
from heads.errors import UnfitDataError
from heads.folds import FoldPlan
from pipeline.config import VerifyConfig
from pipeline.repairs import train_command
from pipeline.run_record import check_record, read_metrics
from pipeline.run_state import repair_of, run_state
from pipeline.runs import MOMENTS, Run, UnreadableError, read_run
from pipeline.workspace import Workspace

SCORE_WITHIN = 1e-6


def run_faults(
    workspace: Workspace,
    name: str,
    config: VerifyConfig,
    inspections: Mapping[Path, Inspection],
    test: VideoTable | None = None,
) -> list[Fault]:
    """Everything that is wrong with a run; what a fine-tuned one has stored must be of the `test` videos."""
    folder = workspace.runs / name
    trained_with = None
    try:
        run = read_run(folder)
        trained_with = run.record.get("config")
        check_record(run)
    except UnreadableError as error:
        return [Fault(folder, error.what, error.repair)]
    except CacheError as error:
        return [Fault(folder, _plain(str(error)), f"`{train_command(name, config, trained_with)}`")]
    state = run_state(run, config, workspace, inspections, test)
    again = f"`{state.again}`" if state.again else f"let this user read {folder}"
    checked = _Run(run, again)
    faults = []
    for check in (checked.files, checked.checkpoints, checked.folds, checked.score):
        try:
            faults += list(check())
        except UnreadableError as error:
            faults.append(Fault(folder, error.what, error.repair))
        except CacheError as error:
            faults.append(Fault(folder, _plain(str(error)), again))
        except (TypeError, KeyError, AttributeError, ValueError) as error:
            faults.append(Fault(folder, f"its {check.__name__} cannot be checked ({error!r})", again))
    for change in state.changes:
        repair = repair_of(change, state.again, config)
        faults.append(Fault(folder, change.what, f"`{repair}`" if repair else again))
    return faults


class _Run:
    def __init__(self, run: Run, again: str) -> None:
        self._run, self._folder, self._again = run, run.folder, again
        self._wrong: set[str] = set()

    def files(self) -> Iterator[Fault]:
        """Every file against its digest in run.json."""
        if self._run.part("name") != self._run.name:
            yield Fault(self._folder, f"is the run {self._run.part('name')!r} under another name", "rename it back")
        for name, expected in self._run.part("files").items():
            path, repair = self._folder / name, self._again
            try:
                found = sha256_of(path) if path.is_file() else None
            except PermissionError as error:
                what, repair = f"cannot be read: {error.strerror}", f"let this user read {path}"
            else:
                if found == expected:
                    continue
                what = "is missing" if found is None else "is not the file that the run was saved with"
            self._wrong.add(name)
            yield Fault(path, what, repair)

    def checkpoints(self) -> Iterator[Fault]:
        """Every member loads, and is the member that its name says."""
        for fold, moment, seed in itertools.product(range(self._run.n_folds), MOMENTS, self._run.seeds):
            path = self._run.checkpoint_path(fold, moment, seed)
            name = path.relative_to(self._folder).as_posix()
            if name in self._wrong:
                continue
            if name not in self._run.part("files"):
                yield Fault(path, "is not among the files of the run", self._again)
                continue
            try:
                found = self._run.member(fold, moment, seed)
            except CacheError as error:
                yield Fault(path, _plain(str(error)), self._again)
                continue
            if (found.fold, found.moment, dict(found.encoders)) != (fold, moment, self._run.part("encoders")):
                yield Fault(path, "is another member than its name says", self._again)

    def folds(self) -> Iterator[Fault]:
        """folds.csv is the plan that run.json names, and oof.csv follows it."""
        if "folds.csv" in self._wrong:
            return
        path = self._folder / "folds.csv"
        ids, fold_of = [], []
        for row in _rows(path):
            ids.append(row["id"])
            fold_of.append(int(row["fold"]))
        told = self._run.part("folds")
        try:
            plan = FoldPlan(
                fold_of=np.array(fold_of, np.int32), split=told["split"], seed=told["seed"], expanding=told["expanding"]
            )
        except UnfitDataError as error:
            yield Fault(path, f"is no fold plan: {error}", self._again)
            return
        if (plan.n_folds, len(ids), plan.digest(ids)) != (told["n"], self._run.part("rows"), told["digest"]):
            yield Fault(path, "is not the fold plan that run.json names", self._again)
        if "oof.csv" not in self._wrong:
            yield from self._out_of_fold(ids, fold_of)

    def _out_of_fold(self, ids: list[str], fold_of: list[int]) -> Iterator[Fault]:
        path = self._folder / "oof.csv"
        elsewhere = unpredicted = 0
        for row, id_, fold in zip_longest(_rows(path), ids, fold_of):
            if row is None or (row["id"], row["fold"]) != (id_, str(fold)):
                elsewhere += 1
            elif not all(_is_right(row[f"log_pred_{moment}"], fold) for moment in MOMENTS):
                unpredicted += 1
        if elsewhere:
            yield Fault(path, f"differs from folds.csv in {elsewhere} rows", self._again)
        if unpredicted:
            yield Fault(path, f"{unpredicted} validated rows have no finite prediction", self._again)

    def score(self) -> Iterator[Fault]:
        """The score that metrics.json tells is that of oof.csv."""
        if {"oof.csv", "metrics.json"} & self._wrong:
            return
        told = float(read_metrics(self._run, "oof_msle")["oof_msle"])
        squares = [
            (float(row["log_views"]) - float(row["log_pred_best"])) ** 2
            for row in _rows(self._folder / "oof.csv")
            if row["fold"] != "-1" and row["log_pred_best"]
        ]
        found = math.fsum(squares) / max(len(squares), 1)
        if not math.isclose(told, found, rel_tol=SCORE_WITHIN, abs_tol=SCORE_WITHIN):
            what = f"tells an out-of-fold MSLE of {told:.6f}, oof.csv gives {found:.6f}"
            yield Fault(self._folder / "metrics.json", what, self._again)


def _is_right(prediction: str, fold: int) -> bool:
    """A validated row has a finite prediction; one that was never validated has none."""
    return not prediction if fold < 0 else bool(prediction) and math.isfinite(float(prediction))


def _rows(path: Path) -> Iterator[dict[str, str]]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            yield from csv.DictReader(file)
    except (OSError, UnicodeError, csv.Error) as error:
        raise CacheError(f"{path} cannot be read ({error})") from error


def _plain(message: str) -> str:
    """A message without its advice, which stands in its own column here."""
    return message.partition(": run `vp ")[0]
