"""What a worker process of a fine-tuning does: it trains a fold, and later makes its member.

Between the two lies the choice of how far each fold goes from the frozen weights, which the other folds make.
"""

from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64, Int64

from features.encoders import EncoderConfig
from features.families import load_encoder
from features.videos import VideoTable
from heads.differentiable import DifferentiableHeads
from heads.fitted import FittedHeads
from heads.folds import FoldPlan
from heads.inputs import AnyBlock, Block, Inputs
from heads.members import EpochRecord
from pipeline.config import FinetuneConfig
from pipeline.finetune_batches import RowFeed
from pipeline.finetune_loop import FACTORS, FoldTask, FoldTraining
from pipeline.finetune_model import TunedModel, Values, Vectors, mixed
from pipeline.finetune_start import START_WITHIN
from pipeline.finetuned import rounded_difference, towers_name, write_towers

MOMENTS = ("best", "final")


@dataclass(frozen=True, eq=False, kw_only=True)
class Context:
    """What all folds have in common; picklable.

    kind_of
        Modality that the encoder makes -> "image" or "text".
    from_table
        What the table alone gives, by split; None where the run reads nothing of that kind.
    expected
        What the run that this begins with predicts out of fold, in log views; from vectors of `cached_precision`.
    """

    config: FinetuneConfig
    name: str
    encoder: EncoderConfig
    kind_of: Mapping[str, str]
    train: VideoTable
    test: VideoTable | None
    from_table: Mapping[str, Inputs | None]
    log_views: Float64[np.ndarray, " video"]
    plan: FoldPlan
    heads: Mapping[int, FittedHeads]
    expected: Float64[np.ndarray, " video"]
    precision: str
    cached_precision: str
    feed_threads: int
    compute_threads: int
    folder: Path


@dataclass(frozen=True)
class TrainFold:
    """Train a fold, or go on with it."""

    fold: int


@dataclass(frozen=True)
class MakeMember:
    """Make the member of a trained fold: `factors` say how far each moment goes from the frozen weights."""

    fold: int
    factors: Mapping[str, float]
    into: Path


@dataclass(frozen=True, eq=False)
class Trained:
    """A fold is trained: squared errors on its validation rows by moment and factor, and its epochs."""

    errors: Mapping[str, list[float]]
    records: list[EpochRecord]
    best_epoch: int


@dataclass(frozen=True, eq=False)
class Predicted:
    """What a member gives for rows, in log views."""

    baseline: float
    contributions: Float64[np.ndarray, "modality row"]

    @property
    def log_views(self) -> Float64[np.ndarray, " row"]:
        """The sum."""
        total: Float64[np.ndarray, " row"] = self.baseline + self.contributions.sum(axis=0)
        return total


@dataclass(frozen=True, eq=False)
class Made:
    """A member by moment: its heads, what it predicts for its validation rows and for the test videos."""

    heads: Mapping[str, FittedHeads]
    validation: Mapping[str, Predicted]
    test: Mapping[str, Predicted] | None


@dataclass(frozen=True)
class FinetuneSetup:
    """Makes the worker in its process."""

    compute_threads: int

    def __call__(self, device: str) -> "FinetuneWorker":
        """Set up the process that this is called in."""
        if device == "cpu":
            torch.set_num_threads(self.compute_threads)
        return FinetuneWorker(device)


class FinetuneWorker:
    """Trains folds and makes members on one device; satisfies `features.worker.Worker`."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._context: Context

    def share(self, shared: Context) -> None:
        """Take what all folds have in common."""
        self._context = shared

    def announce(self, job: TrainFold | MakeMember) -> None:
        """Nothing is read ahead: a fold takes long, and its feed reads ahead on its own."""

    def work(self, job: TrainFold | MakeMember, tell: Callable[[int], None]) -> "Future[Any]":
        """Do one job; nothing is left to wait for."""
        done: Future[Any] = Future()
        fold = _Fold(self._context, job.fold, self._device, tell)
        done.set_result(fold.trained() if isinstance(job, TrainFold) else fold.made(job))
        return done


class _Fold:
    def __init__(self, context: Context, fold: int, device: str, tell: Callable[[int], None]) -> None:
        self._context, self._fold, self._tell = context, fold, tell
        kinds = list(dict.fromkeys(context.kind_of.values()))
        encoder = load_encoder(context.encoder, kinds, device, "fp32")
        self._encoder = encoder
        heads = DifferentiableHeads(context.heads[fold])
        self._known = heads.known(context.from_table[context.train.split], len(context.train))
        self._model = TunedModel(
            encoder, heads, context.kind_of, context.config, device=device, precision=context.precision
        )

    def _feed(self, videos: VideoTable) -> RowFeed:
        kinds = list(dict.fromkeys(self._context.kind_of.values()))
        return RowFeed(self._encoder, self._context.encoder, kinds, videos, self._context.feed_threads)

    def _training(self) -> FoldTraining:
        context, fold = self._context, self._fold
        val_rows = context.plan.val_rows(fold)
        task = FoldTask(
            fold=fold,
            train_rows=context.plan.train_rows(fold),
            val_rows=val_rows,
            log_views=context.log_views,
            expected=context.expected[val_rows],
            standardisation=context.heads[fold].standardisation,
            config=context.config,
            start_within=max(START_WITHIN[context.precision], START_WITHIN[context.cached_precision]),
            folder=context.folder / f"fold{fold}",
        )
        return FoldTraining(self._model, self._feed(context.train), self._known, task, self._tell)

    def trained(self) -> Trained:
        """Train to the end."""
        state = self._training().run()
        return Trained(state.errors, state.records, state.best_epoch)

    def made(self, job: MakeMember) -> Made:
        """Embed all rows with the towers that were chosen, and write the member in its canonical gauge."""
        training = self._training()
        state = training.finished()
        kept = {"best": state.best, "final": state.average}
        heads, validation, test = {}, {}, {}
        for moment in MOMENTS:
            values = self._stored(training.start, mixed(training.start, kept[moment], job.factors[moment]), moment, job)
            self._model.put(values)
            heads[moment], validation[moment] = self._member()
            if self._context.test is not None:
                rows = np.arange(len(self._context.test))
                test[moment] = _predicted(heads[moment], self._inputs(self._context.test, rows))
        return Made(heads, validation, test or None)

    def _stored(self, start: Values, values: Values, moment: str, job: MakeMember) -> Values:
        """Publish the towers; returns the values that whoever loads them will have."""
        differences = rounded_difference(start, values)
        facts = {
            "run": self._context.name,
            "fold": self._fold,
            "moment": moment,
            "factor": job.factors[moment],
            "weights_sha256": self._context.encoder.weights_sha256,
        }
        write_towers(job.into / towers_name(self._context.name, self._fold, moment), differences, facts)
        towers = {name: value.clone() for name, value in start.items() if not name.startswith("heads.")}
        for name, difference in differences.items():
            towers[name] += difference.to(towers[name])
        return {**values, **towers}

    def _member(self) -> tuple[FittedHeads, Predicted]:
        context = self._context
        train_rows, val_rows = context.plan.train_rows(self._fold), context.plan.val_rows(self._fold)
        rows = np.concatenate([train_rows, val_rows])
        inputs = self._inputs(context.train, rows)
        fitted = self._model.heads.fitted(inputs, np.arange(len(train_rows)))
        return fitted, _predicted(fitted, inputs.take(slice(len(train_rows), None)))

    def _inputs(self, videos: VideoTable, rows: Int64[np.ndarray, " row"]) -> Inputs:
        """What the heads see of these rows, with the towers as they are now."""
        context = self._context
        batches = self._feed(videos).batches(rows, context.config.batch_size)
        embedded: Vectors = self._model.embed(batches, self._tell)
        blocks: list[AnyBlock] = []
        for modality in self._model.heads.modalities:
            if modality in context.kind_of:
                kind = context.kind_of[modality]
                blocks.append(Block.embedding(modality, embedded.vectors[kind], embedded.present[kind]))
            elif (table := context.from_table[videos.split]) is not None:
                blocks.append(table.block(modality).take(rows))
        return Inputs(tuple(blocks))


def _predicted(heads: FittedHeads, inputs: Inputs) -> Predicted:
    return Predicted(heads.baseline, heads.contributions(inputs))


def chosen_factor(errors: Mapping[int, Mapping[str, list[float]]], fold: int, moment: str) -> float:
    """The factor with the least squared error on all folds but this one; the nearest to frozen of equals.

    >>> errors = {fold: {"best": [4.0, 1.0, 2.0, 9.0, 9.0, 9.0]} for fold in (1, 2)}
    >>> chosen_factor({0: {"best": [0.0] * 6}, **errors}, 0, "best")
    0.2
    """
    others = [by_moment[moment] for other, by_moment in errors.items() if other != fold]
    return FACTORS[int(np.sum(others, axis=0).argmin())]
