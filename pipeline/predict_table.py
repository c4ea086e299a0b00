"""`vp predict --csv`: every row of a table scored, with a status where something could not be used."""

import csv
import io
import os
import stat
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from features import durable
from features.csv_rows import CsvFile, open_csv
from features.dates import DateReader
from features.errors import DataError
from features.progress import Progress
from features.status import Status
from pipeline.candidates import Candidate
from pipeline.config import PredictConfig
from pipeline.outcome import Outcome
from pipeline.outputs import check_output
from pipeline.prediction import OK, Prediction
from pipeline.predictor import Predictor
from pipeline.workspace import Workspace

COLUMNS = ("image", "title", "description", "date", "year", "channel")
NOTHING_GIVEN = "nothing_given"
CHUNK_ROWS = 64
TUNED_CHUNK_ROWS = 1024
"""More where every member has towers of its own, which are put on for each chunk."""
FIRST_NUMBER = 4
"""Columns before the numbers: line, image, title and status."""

_FORMULA = ("=", "+", "-", "@", "\t", "\r")


class _Row(NamedTuple):
    """One row of the table: where it stands, what it says, and what is wrong with that apart from the image."""

    line: int
    image: str
    candidate: Candidate
    fault: str


def predict_table(config: PredictConfig, path: Path, predictor: Predictor, progress: Progress) -> Outcome:
    """Score every row; the results go to `--out`, whole or not at all, or to stdout.

    What cannot be used counts as not given, and the row's status says so; a row without image and title has no numbers.

    Raises
    ------
    DataError
        The file cannot be read as a table, or has neither an image nor a title column.
    UsageError
        The results would overwrite one of its images.
    """
    rows = list(_rows(config, path, predictor.dates))
    if config.out is not None and config.out.exists():
        images = (image for row in rows if isinstance(image := row.candidate.image, Path))
        check_output(config.out, config, Workspace(config.work), images)
    header = ["line", "image", "title", "status", "views", "low_50", "high_50", "low_90", "high_90"]
    header += ["percentile", "percentile_in_channel", *(f"factor_{name}" for name in predictor.run.modalities)]
    results: list[list[object]] = []
    progress.begin(f"predicting with {predictor.run.name}", len(rows), "rows")
    chunk_rows = TUNED_CHUNK_ROWS if predictor.run.is_finetuned else CHUNK_ROWS
    for start in range(0, len(rows), chunk_rows):
        chunk = rows[start : start + chunk_rows]
        for row, prediction in zip(chunk, predictor.predict_each([row.candidate for row in chunk]), strict=True):
            status = _status(row, prediction)
            numbers = _numbers(prediction) if _is_scored(row, prediction) else [None] * (len(header) - FIRST_NUMBER)
            results.append([row.line, _plain(row.image), _plain(row.candidate.title), status, *numbers])
            progress.advance(1, bad=int(status != OK))
    progress.end()
    return _outcome(config, header, results, predictor, progress)


def _outcome(
    config: PredictConfig, header: list[str], results: list[list[object]], predictor: Predictor, progress: Progress
) -> Outcome:
    statuses = Counter(str(row[header.index("status")]) for row in results)
    bad = {status: count for status, count in statuses.items() if status != OK}
    if bad:
        told = ", ".join(f"{count} {status}" for status, count in bad.items())
        progress.warn(f"{sum(bad.values())} of {len(results)} rows have something that cannot be used: {told}")
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *results])
    facts: dict[str, Any] = {"run": predictor.run.name, "rows": len(results), "statuses": dict(statuses)}
    facts["results"] = [dict(zip(header, row, strict=True)) for row in results]
    if config.out is None:
        return Outcome(text.getvalue().removesuffix("\n").split("\n"), facts)
    durable.remove_leftovers(config.out.parent)
    durable.publish(config.out, text.getvalue())
    done = f"{len(results)} rows, {sum(bad.values())} with a fault -> {config.out}"
    return Outcome([done], facts | {"path": str(config.out)})


def _rows(config: PredictConfig, path: Path, dates: DateReader) -> Iterator[_Row]:
    if not path.is_file():
        raise DataError(f"--csv must name a file, however {path} is none")
    table = open_csv(path, sep=config.sep, encoding=config.encoding)
    position = {name: table.position(name) for name in COLUMNS}
    if position["image"] is None and position["title"] is None:
        raise DataError(f"{path} must have a column image or title, however its columns are: {table.names}")
    root = Path(os.path.realpath(config.root or path.parent))
    for row in table.rows():
        cells = {name: "" if place is None else row.fields[place].strip() for name, place in position.items()}
        published = dates.read(cells["date"], cells["year"])
        candidate = Candidate(
            image=_image(table, root, cells["image"]),
            title=cells["title"],
            description=cells["description"],
            published=published._replace(fault=""),
            channel=cells["channel"],
        )
        yield _Row(row.line, cells["image"], candidate, published.fault)


def _image(table: CsvFile, root: Path, name: str) -> Path | Status | None:
    """The image that a cell names, without links, if it is a file inside the root."""
    if not name:
        return None
    try:
        resolved = Path(os.path.realpath(table.path.parent / name))
        if not resolved.is_relative_to(root):
            return Status.OUTSIDE_ROOT
        return resolved if stat.S_ISREG(resolved.stat().st_mode) else Status.UNREADABLE
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: no path can hold NUL or surrogates
        return Status.MISSING
    except OSError:
        return Status.UNREADABLE


def _status(row: _Row, prediction: Prediction) -> str:
    faults = [fault for fault in (prediction.status, row.fault) if fault not in ("", OK)]
    if row.candidate.image is None and not row.candidate.has_text:
        faults.append(NOTHING_GIVEN)
    return "+".join(faults) or OK


def _is_scored(row: _Row, prediction: Prediction) -> bool:
    """Whether an image or a text was left to score."""
    return row.candidate.has_text or (row.candidate.image is not None and prediction.status == OK)


def _numbers(prediction: Prediction) -> list[object]:
    one = prediction
    numbers = [one.views, *one.interval_50, *one.interval_90, one.percentile, one.percentile_in_channel]
    return [*numbers, *one.factors.values()]


def _plain(cell: str) -> str:
    r"""A cell on one line that no spreadsheet takes for a formula (OWASP, CSV injection).

    >>> _plain("=1+1"), _plain("two\nlines")
    ("'=1+1", 'two lines')
    """
    text = " ".join(cell.encode("utf-8", "replace").decode().split())  # half an emoji has no place in a UTF-8 file
    return f"'{text}" if text.startswith(_FORMULA) else text
