"""`vp predict`: which of these thumbnails and titles does better, by how much, and why."""

from collections.abc import Iterator, Sequence

from features.errors import UsageError
from features.progress import Progress
from features.videos import has_split
from pipeline.config import PredictConfig
from pipeline.dataset import TRAIN
from pipeline.inputs import AGE, CHANNEL, WORDS
from pipeline.outcome import Outcome
from pipeline.outputs import check_output
from pipeline.predict_table import predict_table
from pipeline.prediction import Prediction
from pipeline.predictor import Predictor
from pipeline.ranking import ranking, sentence
from pipeline.workspace import Workspace

__all__ = ["Prediction", "Predictor", "predict"]

READS = {
    "image": ("image",),
    "title": ("text", "title", WORDS),
    "description": ("text", "description", WORDS),
    "date": (AGE,),
    "year": (AGE,),
}
READS |= {"channel": (CHANNEL,)}
"""Option -> the kinds of modality that it says something to."""


def predict(config: PredictConfig, progress: Progress) -> Outcome:
    """Score every image with every title, or the rows of a CSV file, with one run.

    Raises
    ------
    UsageError, DataError, StorageError, CacheError
        See `pipeline.errors` for what each means and its exit code.
    """
    _check_options(config)
    predictor = Predictor.open(
        work=config.work,
        run=config.run or None,
        dataset=config,
        model=config.model,
        device=config.device,
        progress=progress,
    )
    if config.csv is not None:
        return predict_table(config, config.csv, predictor, progress)
    predictions = predictor.predict(
        images=config.image,
        titles=config.title,
        description=config.description,
        date=config.date,
        year=config.year,
        channel=config.channel,
    )
    for note in _notes(config, predictor, predictions):
        progress.note(note)
    verdict = sentence(predictions, predictor.standing.chance_of_order)
    facts = {"run": predictor.run.name, "verdict": verdict, "results": [one.to_dict() for one in predictions]}
    return Outcome([*ranking(predictions, config.channel), "", verdict], facts)


def _check_options(config: PredictConfig) -> None:
    """A CSV file says everything in its columns, and results go nowhere where they would do harm."""
    given = [name for name in READS if getattr(config, name) not in (None, (), "")]
    if config.csv is not None and given:
        raise UsageError(f"--csv has columns for what it scores: leave out {', '.join(f'--{name}' for name in given)}")
    if config.csv is None and (config.out is not None or config.root is not None):
        raise UsageError("--out and --root belong to --csv FILE")
    if config.csv is not None and config.out is not None:
        check_output(config.out, config, Workspace(config.work), inputs=[config.csv])


def _notes(config: PredictConfig, predictor: Predictor, predictions: Sequence[Prediction]) -> Iterator[str]:
    """What was given and does not matter, and what matters and was not given."""
    kinds = {source.kind for source in predictor.sources}
    given = [name for name in READS if getattr(config, name) not in (None, (), "")]
    idle = [f"--{name}" for name in given if not kinds & set(READS[name])]
    if idle:
        read = ", ".join(predictor.run.modalities)
        yield f"run {predictor.run.name} reads {read}: {', '.join(idle)} makes no difference to the views it predicts"
    told = {kind for name in given for kind in READS[name]} | {AGE}
    if absent := [source.modality for source in predictor.sources if source.kind not in told]:
        yield f"not given, so counted as the mean of the training videos: {', '.join(absent)}"
    if AGE in kinds and config.date is None and config.year is None:
        day = str(predictor.reference).partition("T")[0]
        yield f"no --date: age 0 at {day}, the reference date of the run"
    if config.channel and not has_split(config, TRAIN):
        yield f"{config.data} holds no {TRAIN}.csv: no percentile within the channel (name the dataset with --data)"
    elif config.channel and predictions[0].percentile_in_channel is None:
        yield f"no training video is of the channel {config.channel!r}: it counts as a new one"
