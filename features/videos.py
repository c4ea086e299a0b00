"""The videos of one split: what train_val.csv or test.csv says of each, read once and checked; texts stay on disk."""

import hashlib
import math
import os
import re
import stat
import sys
from array import array
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int32, Int64, Shaped, UInt8

from features.config import DatasetConfig
from features.csv_rows import CsvFile, CsvRow, open_csv, other_delimiter, shown
from features.dates import DateReader, ages_years, calendar_year, newest, today_utc
from features.errors import DataError, UsageError
from features.kinds import TEXT
from features.status import Status
from features.texts import without_surrogates

TRAIN = "train_val"  # the split that has views
COLUMNS = ("id", "channel", "title", "description", "date", "year", "views", "thumbnail")
THUMBNAIL_EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".gif")
_NAME_ENDS = (*THUMBNAIL_EXTENSIONS, *map(str.upper, THUMBNAIL_EXTENSIONS))
LISTED = 5  # lines named in one message
DIGEST_BYTES = 16
MAX_ID_CHARACTERS = 10_000  # a longer one is a quote that was closed too late

_SAFE_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_INTEGER = re.compile(r"[+-]?\d{1,20}", re.ASCII)
_DECIMAL = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)


class VideoText(NamedTuple):
    """What a video says of itself, as it is written in the file; empty where there is nothing."""

    title: str
    description: str

    @property
    def digest(self) -> bytes:
        """The first 16 bytes of SHA-256 over title, NUL, description."""
        return _digest(f"{self.title}\0{self.description}")

    @property
    def title_digest(self) -> bytes:
        """The first 16 bytes of SHA-256 over the title without blanks around it; zeros where nothing is left."""
        title = self.title.strip()
        return _digest(title) if title else bytes(DIGEST_BYTES)

    def of_kind(self, kind: str) -> "VideoText":
        """What a kind of vector is made from: both parts (`text`), or one of them.

        >>> VideoText("Cake", "A recipe").of_kind("title")
        VideoText(title='Cake', description='')
        """
        title, description = (part if kind in (TEXT, name) else "" for name, part in self._asdict().items())
        return VideoText(title, description)


@dataclass(frozen=True, eq=False, kw_only=True)
class VideoTable:
    """The videos of one split, in the order of the file."""

    split: str
    ids: list[str]  # exactly as written: 00123, NA and -Abc stay
    line: Int64[np.ndarray, " video"]  # 1-based line of the CSV where the row begins
    views: Int64[np.ndarray, " video"] | Float64[np.ndarray, " video"] | None  # exact where all are integers
    published: Shaped[np.ndarray, " video"]  # datetime64[s] in UTC, NaT where unknown
    year: Int32[np.ndarray, " video"]  # of `published`, else as given; 0 where unknown
    channel: list[str]  # "" where unknown
    text_digest: UInt8[np.ndarray, "video 16"]  # `VideoText.digest`
    title_digest: UInt8[np.ndarray, "video 16"]  # first half of the SHA-256 of the title, zeros where it is blank
    text_parts: tuple[str, ...]  # of title and description: what some video has
    thumbnails: Path | None  # the folder that thumbnails are named in, None if there is none
    counts: Mapping[str, int]  # how many cells or rows were repaired, not believed or dropped, by kind
    first_of: Mapping[str, str]  # of some of these kinds, the first such cell and what it should be
    csv: CsvFile
    columns: Mapping[str, int]  # our name of a column -> its index in the CSV
    row_bytes: Int64[np.ndarray, "video 2"]  # where each row begins and ends in the CSV
    thumbnail_names: list[str] | None  # the cells of a mapped `thumbnail` column

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def has_text(self) -> bool:
        """Whether some video has a title or a description."""
        return bool(self.text_parts)

    @property
    def path(self) -> Path:
        """The CSV file."""
        return self.csv.path

    def texts(self, start: int, stop: int) -> list[VideoText]:
        """Titles and descriptions of the rows of a slice, read from the file.

        Raises
        ------
        DataError
            The file is no longer the one that this table was read from.
        """
        texts = []
        digests = self.text_digest[start:stop]
        for digest, fields in zip(digests, self.csv.fields_at(self.row_bytes[start:stop]), strict=True):
            text = _text(fields, self.columns)
            if text.digest != digest.tobytes():
                raise self.csv.changed()
            texts.append(text)
        return texts

    def thumbnail(self, row: int) -> Path | Status:
        """The thumbnail of one video, or why there is none that may be opened: MISSING, BAD_ID, OUTSIDE_ROOT, ...

        It is `<id>.jpg` (else .jpeg, .png, .webp, .gif, and then the same in capitals) in the folder of the split, or
        what a mapped `thumbnail` column names relative to that folder. An id that is no plain file name never becomes
        part of a path, and nothing outside the folder of the CSV is named, not even through links; only the folder of
        the split itself may be a link to another place.
        """
        if self.thumbnails is None:
            return Status.MISSING
        if self.thumbnail_names is not None:
            name = self.thumbnail_names[row]
            return self._checked(self.thumbnails / name) if name else Status.MISSING
        if not _SAFE_ID.fullmatch(self.ids[row]):
            return Status.BAD_ID
        looked_up = (self._looked_up(self.thumbnails / f"{self.ids[row]}{end}") for end in _NAME_ENDS)
        return next((found for found in looked_up if found is not Status.MISSING), Status.MISSING)

    def ages_years(self, reference: np.datetime64) -> Float64[np.ndarray, " video"]:
        """Age of each video at `reference` in years, NaN where unknown; see `features.dates.ages_years`."""
        return ages_years(self.published, self.year, reference)

    def newest(self) -> np.datetime64:
        """The latest publication, NaT if none is known; see `features.dates.newest`."""
        return newest(self.published, self.year)

    def _looked_up(self, path: Path) -> Path | Status:
        """Like `_checked`, with one lstat for a plain file in the folder of the split."""
        try:
            is_plain = stat.S_ISREG(path.lstat().st_mode)
        except FileNotFoundError:
            return Status.MISSING
        except OSError:
            return Status.UNREADABLE
        return path if is_plain else self._checked(path)

    def _checked(self, path: Path) -> Path | Status:
        """The path without links, if it exists inside the dataset."""
        try:
            resolved = Path(os.path.realpath(path))
            if not any(resolved.is_relative_to(root) for root in self._roots):
                return Status.OUTSIDE_ROOT
            resolved.stat()
        except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: no path can hold NUL or surrogates
            return Status.MISSING
        except OSError:
            return Status.UNREADABLE
        return resolved

    @cached_property
    def _roots(self) -> tuple[str, str]:
        """The folder of the CSV, and where the folder of thumbnails really is: whoever links that one means it."""
        return os.path.realpath(self.path.parent), os.path.realpath(self.thumbnails or self.path.parent)


def has_split(config: DatasetConfig, split: str) -> bool:
    """Whether the dataset has a CSV file for this split."""
    return os.path.lexists(_csv_path(config, split))


def read_videos(
    config: DatasetConfig, split: str, *, target_must_be_non_negative: bool = True, today: date | None = None
) -> VideoTable:
    """Read and check one CSV file, in one pass whose memory does not grow with the texts.

    Parameters
    ----------
    config
        Where the file is and how strictly it is read.
    split
        "train_val" (has views) or "test".
    target_must_be_non_negative
        Whether a negative number in the views column is a bad label.
    today
        Dates after tomorrow are not believed; by default today in UTC.

    Raises
    ------
    DataError
        The file breaks a rule; the message names the file and the lines.
    UsageError
        The configuration names an encoding, a delimiter or one of our columns that there is not.
    """
    path, named_by = _csv_path(config, split), "--data names the folder that holds it"
    csv = open_csv(path, sep=config.sep, encoding=config.encoding, named_by=named_by)
    columns = _find_columns(csv, config.columns, needs_views=split == TRAIN)
    lowest = 0.0 if target_must_be_non_negative else -math.inf
    rows = _Rows(csv, columns, config, DateReader(today or today_utc()), lowest)
    for row in csv.rows():
        rows.add(row)
    return rows.table(split)


def check_overlap(train: VideoTable, test: VideoTable, *, forbid: bool) -> int:
    """Number of test ids that are training ids too; with `forbid`, DataError if there are any."""
    known = set(train.ids)
    rows = [row for row, video_id in enumerate(test.ids) if video_id in known]
    if rows and forbid:
        listed = "; ".join(f"line {test.line[row]}: {shown(test.ids[row])}" for row in rows[:LISTED])
        raise DataError(
            f"{test.path}: no id may also be in {train.path}, however {len(rows)} are ({listed}); "
            "their views are known to the model: remove them from one of the files"
        )
    return len(rows)


def exact_number(text: str) -> int | float | None:
    """The number a cell holds: an int where it is written as one; None if it is no finite number below 2^63.

    >>> exact_number("15685415432"), exact_number(" 12.0"), exact_number("1,234"), exact_number("1e400")
    (15685415432, 12.0, None, None)
    """
    text = text.strip()
    if _INTEGER.fullmatch(text):
        number: int | float = int(text)
    elif _DECIMAL.fullmatch(text):
        number = float(text)
    else:
        return None
    return number if -(2**63) <= number < 2**63 else None


def _csv_path(config: DatasetConfig, split: str) -> Path:
    return config.data / f"{split}.csv"


def _find_columns(csv: CsvFile, mapped: Mapping[str, str], *, needs_views: bool) -> dict[str, int]:
    """Our names of the columns that are there -> their index."""
    if unknown := sorted(set(mapped) - set(COLUMNS)):
        raise UsageError(f"[columns] may rename {', '.join(COLUMNS)}, however: {', '.join(map(shown, unknown))}")
    if len(csv.header) == 1 and (hint := other_delimiter(csv.header[0], csv.sep)):
        raise DataError(f"{csv.path}: one column named {shown(csv.header[0])} - {hint}")
    wanted = {ours: mapped.get(ours, ours) for ours in COLUMNS if ours != "thumbnail" or ours in mapped}
    if not needs_views:
        del wanted["views"]
    columns = {ours: index for ours, name in wanted.items() if (index := csv.position(name)) is not None}
    required = {"id", "views", *mapped} & set(wanted)
    missing = [f"a column {wanted[ours]!r}" for ours in wanted if ours in required and ours not in columns]
    missing += [f"{a!r} or {b!r}" for a, b in (("title", "description"), ("date", "year")) if not {a, b} & set(columns)]
    if missing:
        raise DataError(f"{csv.path} must have {' and '.join(missing)}, however its columns are: {csv.names}")
    return columns


def _cell(fields: list[str], index: int | None) -> str:
    return "" if index is None else fields[index]


def _text(fields: list[str], columns: Mapping[str, int]) -> VideoText:
    return VideoText(_cell(fields, columns.get("title")), _cell(fields, columns.get("description")))


class _Rows:
    """Collects the rows of one file that pass every check."""

    def __init__(
        self, csv: CsvFile, columns: Mapping[str, int], config: DatasetConfig, dates: DateReader, lowest: float
    ) -> None:
        self.csv, self.columns, self.config, self.dates, self.lowest = csv, columns, config, dates, lowest
        self.row_of: dict[str, int] = {}  # id -> row, in order
        self.views: list[int | float] = []
        self.channel: list[str] = []
        self.thumbnail_names: list[str] = []
        self.line, self.second, self.year, self.row_bytes = array("q"), array("q"), array("q"), array("q")
        self.text_digest, self.title_digest = bytearray(), bytearray()
        self.text_parts: set[str] = set()
        self.bad_labels: list[str] = []
        self.counts: Counter[str] = Counter()
        self.first_of: dict[str, str] = {}

    def add(self, row: CsvRow) -> None:
        video_id = self._id(row)
        if "views" in self.columns:
            views = self._label(row)
            if views is None or self._repeats(video_id, row.line, views):
                return
            self.views.append(views)
        else:
            self._repeats(video_id, row.line, None)
        self.row_of[video_id] = len(self.row_of)
        self.line.append(row.line)
        self.row_bytes.extend((row.start, row.end))
        self._add_text(_text(row.fields, self.columns))
        self._add_date(row)
        self._add_names(row.fields)

    def table(self, split: str) -> VideoTable:
        self._refuse_bad_labels()
        if not self.row_of:
            raise DataError(f"{self.csv.path} must hold at least one video, however no usable row follows its header")
        published = np.array(self.second, np.int64).view("datetime64[s]")
        folder = self.csv.path.parent / split
        has_names = "thumbnail" in self.columns
        return VideoTable(
            split=split,
            ids=list(self.row_of),
            line=np.array(self.line, np.int64),
            views=_exact_array(self.views) if "views" in self.columns else None,
            published=published,
            year=calendar_year(published, np.array(self.year, np.int64)),
            channel=self.channel,
            text_digest=np.frombuffer(self.text_digest, np.uint8).reshape(-1, DIGEST_BYTES),
            title_digest=np.frombuffer(self.title_digest, np.uint8).reshape(-1, DIGEST_BYTES),
            text_parts=tuple(part for part in VideoText._fields if part in self.text_parts),
            thumbnails=folder if has_names or folder.is_dir() else None,
            counts=dict(self.counts),
            first_of=self.first_of,
            csv=self.csv,
            columns=self.columns,
            row_bytes=np.array(self.row_bytes, np.int64).reshape(-1, 2),
            thumbnail_names=self.thumbnail_names if has_names else None,
        )

    def _id(self, row: CsvRow) -> str:
        video_id = row.fields[self.columns["id"]]
        if not video_id.strip():
            fault = "not be blank"
        elif len(video_id) > MAX_ID_CHARACTERS:
            fault = f"have at most {MAX_ID_CHARACTERS:,} characters"
        elif "\0" in video_id:
            fault = "hold no NUL character"
        elif _has_surrogates(video_id):
            fault = "hold no half of a surrogate pair, which no UTF-8 file can keep"
        else:
            return video_id
        raise DataError(f"{self.csv.path}, line {row.line}: the id must {fault}, however it is {shown(video_id)}")

    def _label(self, row: CsvRow) -> int | float | None:
        """The views of a row; None for a bad label, which is noted."""
        text = row.fields[self.columns["views"]]
        number = exact_number(text)
        if number is not None and number >= self.lowest:
            return number
        self.counts["bad_labels_dropped"] += 1
        if len(self.bad_labels) < LISTED:
            self.bad_labels.append(f"line {row.line}: {shown(text)}")
        return None

    def _refuse_bad_labels(self) -> None:
        if not self.bad_labels or self.config.on_bad_label == "drop":
            return
        least = "" if self.lowest < 0 else ", at least 0"
        raise DataError(
            f"{self.csv.path}: views must be a finite number below 2^63{least}, however "
            f"{self.counts['bad_labels_dropped']} are not ({'; '.join(self.bad_labels)}); "
            "correct them, or leave those rows out with --on-bad-label drop"
        )

    def _repeats(self, video_id: str, line: int, views: int | float | None) -> bool:
        """Whether the row says again what an earlier one said and may be left out."""
        first = self.row_of.get(video_id)
        if first is None:
            return False
        remedy = "remove one of them"
        if views is not None and views != self.views[first]:
            remedy = f"their views differ ({self.views[first]} and {views}): {remedy}"
        elif views is not None and self.config.on_duplicate == "first":
            self.counts["duplicate_rows_dropped"] += 1
            return True
        elif views is not None:
            remedy += ", or keep the first with --on-duplicate first"
        raise DataError(
            f"{self.csv.path}, line {line}: an id must occur once, however {shown(video_id)} is also on line "
            f"{self.line[first]}; {remedy}"
        )

    def _add_text(self, text: VideoText) -> None:
        self.text_digest += text.digest
        self.title_digest += text.title_digest
        self.text_parts.update(name for name, part in text._asdict().items() if part.strip())
        for part in text:
            if "\0" in part:
                self.counts["nul_removed"] += 1
            if _has_surrogates(part):
                self.counts["surrogates_replaced"] += 1

    def _add_date(self, row: CsvRow) -> None:
        date_text, year_text = (_cell(row.fields, self.columns.get(name)) for name in ("date", "year"))
        found = self.dates.read(date_text, year_text)
        self.second.append(found.second)
        self.year.append(found.year)
        if not found.fault:
            return
        self.counts[found.fault] += 1
        if found.fault not in self.first_of:
            first = f"line {row.line}, {shown(date_text.strip() or year_text.strip())}"
            accepted = self.dates.accepted(found.fault)
            self.first_of[found.fault] = f"(first: {first}); {accepted}; these count as unknown"

    def _add_names(self, fields: list[str]) -> None:
        channel = _cell(fields, self.columns.get("channel")).strip()
        if _has_surrogates(channel):
            channel = without_surrogates(channel)
            self.counts["surrogates_replaced"] += 1
        self.channel.append(sys.intern(channel))  # few channels have many videos
        if "thumbnail" in self.columns:
            self.thumbnail_names.append(_cell(fields, self.columns["thumbnail"]))


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:DIGEST_BYTES]


def _has_surrogates(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def _exact_array(
    views: list[int | float],
) -> Int64[np.ndarray, " video"] | Float64[np.ndarray, " video"]:
    exact = all(isinstance(number, int) for number in views)
    return np.array(views, dtype=np.int64 if exact else np.float64)
