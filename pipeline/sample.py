"""The form of a submission: test.csv gives the rows, a sample submission the header, and the order if it can."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float64

from features.csv_rows import shown
from features.errors import CacheError, DataError
from features.progress import Progress
from features.videos import VideoTable
from pipeline.csv_text import CRLF, CsvText
from pipeline.score import HEADER

SHOWN_IDS = 5


@dataclass(frozen=True)
class SubmissionShape:
    """Header of the submission, which test row stands in each of its rows, and which file that order is of."""

    header: tuple[str, str]
    order: Sequence[int]
    order_of: str

    def as_csv(self, ids: Sequence[str], views: Float64[np.ndarray, " video"], *, non_negative: bool) -> str:
        """The whole file; CacheError where a prediction is not finite or, if it counts something, below 0."""
        usable = np.isfinite(views) & (views >= 0 if non_negative else True)
        if not usable.all():
            bad = [ids[row] for row in np.flatnonzero(~usable)[:SHOWN_IDS]]
            raise CacheError(f"the members predict no usable number for {', '.join(bad)}: run `vp train-heads` again")
        text = CsvText()
        writer = csv.writer(text, lineterminator=CRLF)
        writer.writerow(self.header)
        writer.writerows((ids[row], float(views[row])) for row in self.order)
        return text.getvalue()


def submission_shape(sample: Path | None, videos: VideoTable, progress: Progress) -> SubmissionShape:
    """The form that a sample asks for; without one, that of test.csv.

    Raises
    ------
    DataError
        The sample is not a CSV file of two columns.
    """
    if sample is None:
        return SubmissionShape(HEADER, range(len(videos)), videos.path.name)
    try:
        text = sample.read_text(encoding="utf-8-sig")
        rows = list(csv.reader(io.StringIO(text), strict=True))
    except FileNotFoundError:
        raise DataError(f"--sample {sample} does not exist") from None
    except (OSError, UnicodeError, csv.Error) as error:
        raise DataError(f"--sample {sample} is not readable as CSV ({error})") from error
    if not rows or len(rows[0]) != len(HEADER):
        first = shown(text.partition("\n")[0])
        raise DataError(f"--sample {sample} must have two columns, id and views; its first line is {first}")
    header, ids = (rows[0][0], rows[0][1]), [row[0] for row in rows[1:] if row]
    row_of = {id_: row for row, id_ in enumerate(videos.ids)}
    if len(ids) == len(row_of) and set(ids) == set(row_of):
        return SubmissionShape(header, [row_of[id_] for id_ in ids], sample.name)
    progress.warn(
        f"--sample {sample} holds {len(ids)} ids that are not the {len(videos)} of {videos.path.name}: "
        "only its header is followed"
    )
    return SubmissionShape(header, range(len(videos)), videos.path.name)
