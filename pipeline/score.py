"""`vp score`: how good a submission is, where the true views are known."""

from pathlib import Path

import numpy as np
import pandas as pd

from features.errors import DataError, UsageError
from features.progress import Progress
from heads.metrics import score as metrics_of
from heads.targets import Target
from pipeline.config import ScoreConfig
from pipeline.outcome import Outcome, table

SHOWN_IDS = 5


def score(config: ScoreConfig, progress: Progress) -> Outcome:
    """Compare a submission with the truth, id by id.

    Raises
    ------
    UsageError, DataError
        A file is not named or not readable, or the two hold different ids.
    """
    if config.submission is None or config.truth is None:
        raise UsageError("give both files: vp score --submission SUBMISSION.csv --truth TRUE_VIEWS.csv")
    predicted = _read(config.submission, position=1)
    true = _read(config.truth, position="views")
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


def _read(path: Path, position: int | str) -> pd.Series:
    """Ids and one column of numbers, ids exactly as they are written."""
    try:
        frame = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except (OSError, ValueError) as error:  # pandas' parser and encoding errors are ValueErrors
        raise DataError(f"{path} is not readable as CSV: {error}") from error
    names = {name.lower(): name for name in frame.columns}
    if "id" not in names or (isinstance(position, str) and position not in names):
        raise DataError(f"{path} needs the columns id and views, it has {', '.join(frame.columns)}")
    column = names[position] if isinstance(position, str) else frame.columns[position]
    numbers = pd.to_numeric(frame[column], errors="coerce")
    bad = np.flatnonzero(~(np.isfinite(numbers) & (numbers >= 0)))
    if bad.size:
        lines = ", ".join(str(row + 2) for row in bad[:SHOWN_IDS])
        raise DataError(f"{path}: {column} must be a number of 0 or more, it is not in {bad.size} rows (row {lines})")
    ids = frame[names["id"]]
    if ids.duplicated().any():
        raise DataError(f"{path}: ids must occur once, however: {_some(ids[ids.duplicated()])} occur again")
    return pd.Series(numbers.to_numpy(np.float64), index=ids.to_numpy())


def _some(ids: "pd.Index | pd.Series") -> str:
    return ", ".join(str(id_) for id_ in list(ids)[:SHOWN_IDS])
