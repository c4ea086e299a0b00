"""`vp score`: how good a submission is, where the true views are known."""

from pathlib import Path

import numpy as np
import pandas as pd

from features.csv_rows import open_csv, shown
from features.errors import DataError, UsageError
from features.progress import Progress
from features.videos import exact_number
from heads.metrics import score as metrics_of
from heads.targets import Target
from pipeline.config import ScoreConfig
from pipeline.outcome import Outcome, table

SHOWN_IDS = 5
HEADER = ("ID", "views")
"""What a submission's columns are called unless a sample says otherwise; their order is what counts."""


def score(config: ScoreConfig, progress: Progress) -> Outcome:
    """Compare a submission with the truth, id by id.

    Raises
    ------
    UsageError, DataError
        A file is not named or not readable, or the two hold different ids.
    """
    if config.submission is None or config.truth is None:
        raise UsageError("give both files: vp score --submission SUBMISSION.csv --truth TRUE_VIEWS.csv")
    predicted = _read(config.submission, is_submission=True)
    true = _read(config.truth, is_submission=False)
    missing = true.index.difference(predicted.index)
    if len(missing):
        raise DataError(f"{config.submission} lacks {len(missing)} ids of {config.truth}: {_some(missing)}")
    extra = predicted.index.difference(true.index)
    if len(extra):
        progress.warn(f"{len(extra)} ids of {config.submission} have no true views and do not count: {_some(extra)}")
    target = Target("log1p")
    log_true, log_pred = target.to_log(true.to_numpy()), target.to_log(predicted.loc[true.index].to_numpy())
    metrics = metrics_of(log_true, log_pred)
    metrics["msle_constant"] = float(np.var(log_true))
    lines = table([[name, f"{value:.4f}"] for name, value in metrics.items()])
    return Outcome(lines, {"rows": len(true), **metrics})


def _read(path: Path, *, is_submission: bool) -> pd.Series:
    """Ids exactly as they are written, and their views: the two columns of a submission, or those of these names."""
    option = "--submission" if is_submission else "--truth"
    csv = open_csv(path, named_by=f"{option} names it, relative to the current folder")
    names = [name.lower() for name in csv.header]
    if is_submission and len(names) == len(HEADER) and "id" not in names[1:]:
        id_at, views_at = 0, 1
    elif not is_submission and "id" in names and "views" in names:
        id_at, views_at = names.index("id"), names.index("views")
    else:
        wanted = "two columns, first id, then views" if is_submission else "the columns id and views"
        raise DataError(f"{path} needs {wanted}, it has {csv.names}")
    views: dict[str, float] = {}
    for row in csv.rows():
        id_, cell = row.fields[id_at], row.fields[views_at]
        number = exact_number(cell)
        if number is None or number < 0:
            raise DataError(f"{path}, line {row.line}: views must be a number of 0 or more, however: {shown(cell)}")
        if id_ in views:
            raise DataError(f"{path}, line {row.line}: ids must occur once, however {shown(id_)} occurs again")
        views[id_] = float(number)
    if not views:
        raise DataError(f"{path} must hold at least one row below its header")
    return pd.Series(views, dtype=np.float64)


def _some(ids: "pd.Index | pd.Series") -> str:
    return ", ".join(str(id_) for id_ in list(ids)[:SHOWN_IDS])
