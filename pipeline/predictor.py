"""Predict videos that are not in the dataset, from Python: the same words as on the command line.

    predictor = Predictor.open(work="work", run="clip_multimodal")
    best, *others = predictor.predict(images=["a.jpg", "b.jpg"], titles=["How I made a cake"])

A prediction is the mean of the run's members of the last epoch, in log views: they saw no row that their intervals
were calibrated on.
"""

from collections.abc import Sequence
from datetime import date as Day  # noqa: N812 - `date` is the word of the option
from datetime import timedelta
from functools import cached_property
from itertools import product
from pathlib import Path

import numpy as np
from jaxtyping import Float64

from features.config import DatasetConfig
from features.dates import FIRST_YEAR, DateReader, Published, today_utc
from features.errors import CacheError, DataError, UsageError
from features.progress import Progress, Silent
from features.status import Status
from features.texts import cleaned
from heads.inputs import Inputs
from heads.intervals import Band, Intervals
from heads.members import FittedModel
from heads.targets import Target
from pipeline.candidates import Candidate, Seen, look_at
from pipeline.inputs import AGE, Source
from pipeline.members import models_of
from pipeline.prediction import OK, Explained, Prediction
from pipeline.run_encoders import RunEncoders
from pipeline.run_record import open_whole_run, read_metrics
from pipeline.runs import Moment, Run, only_run
from pipeline.standing import Standing
from pipeline.tuning.finetuned import towers_of
from pipeline.workspace import Workspace

LEVELS = (0.5, 0.9)
AHEAD = timedelta(days=365)
"""How far ahead a video may be planned."""


class Predictor:
    """One run, ready to score thumbnails and titles; use `open`."""

    def __init__(self, run: Run, encoders: RunEncoders, dataset: DatasetConfig) -> None:
        self.run, self._encoders = run, encoders
        self.sources = [Source(**source) for source in run.part("sources")]
        self.reference = np.datetime64(run.part("reference_date"))
        self.target = Target(run.part("target"))
        self.standing = Standing(run, dataset)
        self._models: dict[str, list[FittedModel]] = {}

    @classmethod
    def open(
        cls,
        *,
        work: str | Path = "work",
        run: str | None = None,
        dataset: DatasetConfig | None = None,
        model: Sequence[str] = (),
        device: str = "auto",
        progress: Progress | None = None,
    ) -> "Predictor":
        """Open a finished run (the only one, if none is named).

        `dataset` is read only for percentiles within a channel; `model` names the folder of an encoder that cannot be
        found by its name; both default as they do on the command line.

        Raises
        ------
        UsageError, CacheError
            There is no such run, or several and none is named; a checkpoint is damaged.
        """
        workspace = Workspace(Path(work))
        found = open_whole_run(workspace.run(run or only_run(workspace.runs)))
        encoders = RunEncoders(workspace, found, models=model, device=device, progress=progress or Silent())
        return cls(found, encoders, dataset or DatasetConfig())

    def predict(
        self,
        *,
        images: Sequence[str | Path] = (),
        titles: Sequence[str] = (),
        description: str = "",
        date: Day | None = None,
        year: int | None = None,
        channel: str = "",
    ) -> list[Prediction]:
        """Score every image with every title, the highest first.

        What is not given counts as the mean of the training videos; without date and year the age is 0.

        Raises
        ------
        UsageError
            Neither image nor title, a title without a word, both date and year, one that `dates` does not believe; or
            the encoder cannot be found.
        DataError
            An image cannot be read.
        CacheError
            The encoder is not the one that the run was trained on.
        """
        _check_given(images, titles, date, year)
        published = _published(date, year, self.dates)
        pairs = list(product(map(str, images) if images else [""], titles or [""]))
        candidates = [
            Candidate(
                image=Path(image) if image else None,
                title=title,
                description=description,
                published=published,
                channel=channel,
            )
            for image, title in pairs
        ]
        predictions = self.predict_each(candidates)
        bad = {one.image: one.status for one in predictions if one.image and one.status != OK}
        if bad:
            listed = ", ".join(f"{image} ({status.replace('_', ' ')})" for image, status in bad.items())
            raise DataError(f"an image must be a JPEG, PNG, WEBP or GIF file that can be read, however: {listed}")
        return sorted(predictions, key=lambda one: -one.log_views)

    @cached_property
    def dates(self) -> DateReader:
        """Reads days of publication, to a year after today or after the reference date, whichever is later."""
        known = [] if np.isnat(self.reference) else [self.reference.astype("datetime64[D]").item()]
        return DateReader(min(max([today_utc(), *known]), Day.max - AHEAD) + AHEAD)

    def predict_each(self, candidates: Sequence[Candidate]) -> list[Prediction]:
        """Score candidates, in their order; a bad image is a status and no error."""
        seen, image_status = self._seen(candidates)
        explained = Explained.by(self._members("final"), seen["final"])
        ends = [
            list(zip(*(self._views(end) for end in band.apply(explained.log_views)), strict=True))
            for band in self._bands
        ]
        best = Explained.by(self._members("best"), seen["best"])
        standing = self.standing.percentiles(best.without(AGE), [one.channel_name for one in candidates])
        views, baseline = self._views(explained.log_views), self._views(np.array([explained.baseline]))[0]
        return [
            Prediction(
                image=str(candidate.image) if isinstance(candidate.image, Path) else "",
                title=candidate.title,
                views=views[row],
                interval_50=ends[0][row],
                interval_90=ends[1][row],
                percentile=standing[row][0],
                percentile_in_channel=standing[row][1],
                baseline=baseline,
                log_views=float(explained.log_views[row]),
                contributions=dict(zip(explained.modalities, explained.contributions[:, row].tolist(), strict=True)),
                target=self.target.kind,
                status=_image_status(candidate, image_status[row]),
            )
            for row, candidate in enumerate(candidates)
        ]

    def _seen(self, candidates: Sequence[Candidate]) -> tuple[dict[Moment, list[Inputs]], list[int]]:
        """What every member sees of candidates: all the same, unless each has towers of its own; and image statuses."""
        by_towers: dict[str, Seen] = {}
        inputs: dict[Moment, list[Inputs]] = {"final": [], "best": []}
        for moment, of_members in inputs.items():
            for fold in range(self.run.n_folds):
                towers = towers_of(self.run, fold, moment)
                if towers not in by_towers:
                    self._encoders.wear(towers)
                    by_towers[towers] = look_at(candidates, self.sources, self._encoders, self.reference)
                of_members.append(by_towers[towers].inputs)
        return inputs, next(iter(by_towers.values())).image_status.tolist()

    def _members(self, moment: Moment) -> list[FittedModel]:
        if moment not in self._models:
            self._models[moment] = list(models_of(self.run, moment).values())
        return self._models[moment]

    def _views(self, log_views: Float64[np.ndarray, " video"]) -> list[float]:
        views: list[float] = self.target.from_log(log_views).tolist()
        return views

    @cached_property
    def _bands(self) -> list[Band]:
        """The bands of `LEVELS`, from the out-of-fold residuals of the last epoch."""
        bands = {
            band.level: band for band in Intervals.from_dict(read_metrics(self.run, "intervals")["intervals"]).pooled
        }
        if not bands.keys() >= set(LEVELS):
            raise CacheError(f"run {self.run.name} was calibrated for {list(bands)}, not {LEVELS}: train it again")
        return [bands[level] for level in LEVELS]


def _image_status(candidate: Candidate, status: int) -> str:
    """What is wrong with an image; none at all is not wrong."""
    return OK if candidate.image is None else Status(status).label


def _check_given(images: Sequence[str | Path], titles: Sequence[str], date: Day | None, year: int | None) -> None:
    if isinstance(images, str) or isinstance(titles, str):
        raise UsageError('images and titles are lists, such as images=["a.jpg"]')
    if not images and not titles:
        raise UsageError("give something to score: --image FILE, --title TEXT (each may be repeated), or --csv FILE")
    if any(not cleaned(title).strip() for title in titles):
        raise UsageError("--title must hold a word, however one is empty: leave it out to count the title as the mean")
    if any(not str(image).strip() for image in images):
        raise UsageError("--image must name a file, however one is empty")
    if date is not None and year is not None:
        raise UsageError("--date and --year exclude each other")


def _published(date: Day | None, year: int | None, dates: DateReader) -> Published:
    found = dates.read("" if date is None else date.isoformat(), "" if year is None else str(year))
    if found.fault and date is not None:
        raise UsageError(
            f"--date must lie between {dates.first_day} and {dates.last_day}, a year ahead, however: {date}; leave it "
            "out for age 0"
        )
    if found.fault:
        raise UsageError(f"--year must be a year from {FIRST_YEAR} to {dates.today.year}, however: {year}")
    return found
