"""The two tables of a dataset, read together, and what they offer."""

from dataclasses import dataclass

import numpy as np

from features.config import DatasetConfig
from features.errors import DataError
from features.kinds import IMAGE, TEXT
from features.progress import Progress
from features.videos import VideoTable, check_overlap, has_split, read_videos

TRAIN, TEST = "train_val", "test"


@dataclass(frozen=True)
class Dataset:
    """Training videos, and the videos to predict if there are any."""

    train: VideoTable
    test: VideoTable | None

    @property
    def tables(self) -> list[VideoTable]:
        """The splits that are there."""
        return [self.train] if self.test is None else [self.train, self.test]

    def encodable(self, *, separate: bool = False) -> list[str]:
        """The kinds of vector that an encoder can make here; with `separate`, titles and descriptions get their own."""
        image = [IMAGE] if any(table.thumbnails is not None for table in self.tables) else []
        together = [TEXT] if self.train.has_text else []
        return image + (list(self.train.text_parts) if separate else together)

    def newest(self) -> np.datetime64:
        """The newest date of all videos: ages count from there, never from the clock of the machine."""
        dates = [table.newest() for table in self.tables]
        known = [date for date in dates if not np.isnat(date)]
        return max(known) if known else np.datetime64("NaT", "s")


def read_dataset(config: DatasetConfig, progress: Progress, *, non_negative: bool = True) -> Dataset:
    """Read and check train_val.csv and, if it is there, test.csv; what was repaired or dropped is told."""
    train = read_training_videos(config, progress, non_negative=non_negative)
    test = read_videos(config, TEST) if has_split(config, TEST) else None
    if test is None:
        progress.note(f"no {TEST}.csv in {config.data}: training videos only")
        return Dataset(train, None)
    _tell_counts(test, progress)
    if overlap := check_overlap(train, test, forbid=config.forbid_overlap):
        progress.warn(f"{overlap} ids are both in {train.path.name} and {test.path.name}: scores will flatter")
    return Dataset(train, test)


def read_training_videos(config: DatasetConfig, progress: Progress, *, non_negative: bool) -> VideoTable:
    """Read and check train_val.csv alone."""
    train = read_videos(config, TRAIN, target_must_be_non_negative=non_negative)
    _tell_counts(train, progress)
    return train


def comparable_dataset(config: DatasetConfig, progress: Progress) -> Dataset | None:
    """The dataset, or None with a warning if it cannot be read: then caches are not compared with it."""
    try:
        return read_dataset(config, progress, non_negative=False)
    except DataError as error:
        progress.warn(f"nothing is compared with the dataset, because it cannot be read: {error}")
        return None


def require_test(dataset: Dataset, config: DatasetConfig) -> VideoTable:
    """The videos to predict."""
    if dataset.test is None:
        raise DataError(f"a submission predicts the videos of {config.data / 'test.csv'}, which is not there")
    return dataset.test


def _tell_counts(table: VideoTable, progress: Progress) -> None:
    for what, count in table.counts.items():
        if count:
            first = f" {table.first_of[what]}" if what in table.first_of else ""
            progress.warn(f"{table.path}: {what.replace('_', ' ')}: {count}{first}")
