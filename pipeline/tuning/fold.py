"""One fold where it is trained: from what all folds have in common to its member.

Between training and making a member lies the choice of how far each fold goes from the frozen weights, which the other
folds make.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float64, Int64

from features.encoders import EncoderConfig
from features.videos import VideoTable
from heads.differentiable import DifferentiableHeads, Learning
from heads.fitted import FittedHeads
from heads.folds import FoldPlan
from heads.inputs import AnyBlock, Block, Inputs
from heads.members import EpochRecord
from pipeline.config import FinetuneConfig
from pipeline.tuning.batches import RowFeed
from pipeline.tuning.loop import FoldTraining
from pipeline.tuning.model import TunedModel, Vectors
from pipeline.tuning.start import START_WITHIN
from pipeline.tuning.state import FoldState
from pipeline.tuning.steps import FoldTask
from pipeline.tuning.towers import TrainedTowers, Values, mixed
from pipeline.tuning.tuned_towers import changed_towers, towers_name, write_towers
from pipeline.tuning.unfinished import fold_folder


@dataclass(frozen=True, eq=False, kw_only=True)
class Context:
    """What all folds have in common; picklable.

    kind_of
        Modality that the encoder makes -> kind of vector.
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
    folder: Path

    @property
    def kinds(self) -> list[str]:
        """The kinds of vector that are needed."""
        return list(dict.fromkeys(self.kind_of.values()))


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

    @classmethod
    def of(cls, state: FoldState) -> "Trained":
        """What a state tells of its fold."""
        return cls(state.errors, state.records, state.best_epoch)

    def has_one_member(self, factors: Mapping[str, float]) -> bool:
        """Whether both moments are one: the last epoch was the best, and both go as far from the frozen weights."""
        return self.best_epoch == self.records[-1].epoch and factors["best"] == factors["final"]


@dataclass(frozen=True, eq=False)
class Predicted:
    """What a member gives for rows, in log views."""

    baseline: float
    contributions: Float64[np.ndarray, "modality row"]

    @classmethod
    def by(cls, heads: FittedHeads, inputs: Inputs) -> "Predicted":
        """What these heads give."""
        return cls(heads.baseline, heads.contributions(inputs))

    @property
    def log_views(self) -> Float64[np.ndarray, " row"]:
        """The sum."""
        total: Float64[np.ndarray, " row"] = self.baseline + self.contributions.sum(axis=0)
        return total


@dataclass(frozen=True, eq=False)
class Member:
    """A fold at one moment: its heads, the file of its towers, its predictions of validation rows and test videos."""

    heads: FittedHeads
    towers: str
    validation: Predicted
    test: Predicted | None


Made = dict[str, Member]
"""Both moments of a fold; one member if both are of the same epoch and go as far from the frozen weights."""


class FoldOnDevice:
    """One fold where it is trained: its model, which begins as its run left it, and its rows."""

    def __init__(
        self, context: Context, towers: TrainedTowers, fold: int, device: str, tell: Callable[[int], None]
    ) -> None:
        self._context, self._towers, self._fold, self._tell = context, towers, fold, tell
        towers.reset()
        heads = DifferentiableHeads(context.heads[fold])
        scale = context.heads[fold].standardisation
        learning = Learning(
            context.plan.train_rows(fold),
            scale.apply(context.log_views),
            np.random.default_rng((context.config.seed, fold)),
        )
        known = heads.known(context.from_table[context.train.split], len(context.train), learning)
        self.known = known.to(torch.device(device))
        self.model = TunedModel(
            towers, heads, context.kind_of, context.config, device=device, precision=context.precision
        )

    def feed(self, videos: VideoTable) -> RowFeed:
        """The rows of a table as the encoder reads them."""
        context = self._context
        return RowFeed(self._towers.encoder, context.encoder, context.kinds, videos, context.feed_threads)

    def trained(self) -> Trained:
        """Train to the end."""
        return Trained.of(self._training().run())

    def made(self, job: MakeMember) -> Made:
        """Make the member of each moment, once where they are the same."""
        training = self._training()
        state = training.finished()
        factors = job.factors
        final = self._member("final", mixed(training.start, state.average, factors["final"]), training.start, job)
        if Trained.of(state).has_one_member(factors):
            return {"best": final, "final": final}
        best = self._member("best", mixed(training.start, state.best, factors["best"]), training.start, job)
        return {"best": best, "final": final}

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
            folder=fold_folder(context.folder, fold),
        )
        return FoldTraining(self.model, self.feed(context.train), self.known, task, self._tell)

    def _member(self, moment: str, values: Values, start: Values, job: MakeMember) -> Member:
        """Keep towers, embed all rows with them, and write the heads in their canonical gauge."""
        file, as_loaded = self._stored(moment, values, start, job)
        self.model.put({**values, **as_loaded})
        context, rows_of = self._context, self._context.plan
        train_rows, val_rows = rows_of.train_rows(self._fold), rows_of.val_rows(self._fold)
        inputs = self._inputs(context.train, np.concatenate([train_rows, val_rows]))
        heads = self.model.heads.fitted(inputs, np.arange(len(train_rows)))
        validation = Predicted.by(heads, inputs.take(slice(len(train_rows), None)))
        if context.test is None:
            return Member(heads, file, validation, None)
        return Member(heads, file, validation, Predicted.by(heads, self._inputs(context.test)))

    def _stored(self, moment: str, values: Values, start: Values, job: MakeMember) -> tuple[str, Values]:
        """Publish the towers; returns the file, and their values as whoever loads it will have them."""
        changes, as_loaded = changed_towers(start, values)
        facts = {
            "run": self._context.name,
            "fold": self._fold,
            "moment": moment,
            "factor": job.factors[moment],
            "weights_sha256": self._context.encoder.weights_sha256,
        }
        file = towers_name(self._context.name, self._fold, moment)
        write_towers(job.into / file, changes, facts)
        return file, as_loaded

    def _inputs(self, videos: VideoTable, some: Int64[np.ndarray, " row"] | None = None) -> Inputs:
        """What the heads see of some rows (all where None), with the towers as they are now."""
        context = self._context
        rows = np.arange(len(videos)) if some is None else some
        embedded: Vectors = self.model.embed(self.feed(videos), rows, self._tell)
        blocks: list[AnyBlock] = []
        for modality in self.model.heads.modalities:
            if modality in context.kind_of:
                kind = context.kind_of[modality]
                blocks.append(Block.embedding(modality, embedded.vectors[kind], embedded.present[kind]))
            elif (table := context.from_table[videos.split]) is not None:
                blocks.append(table.block(modality).take(rows))
        return Inputs(tuple(blocks))
