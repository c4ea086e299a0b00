"""What a fine-tuning starts from: a run with one encoder and additive heads, and the same videos, folds and weights."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from features.encoders import EncoderConfig
from features.errors import CacheError, DataError, UsageError
from features.videos import VideoTable
from heads.fitted import FittedHeads
from heads.folds import FoldPlan
from heads.targets import Target
from pipeline.config import FinetuneConfig
from pipeline.found_encoder import find_encoder
from pipeline.inputs import CHANNEL, FROM_TABLE, WORDS, Source
from pipeline.oof import SavedOutOfFold, read_oof
from pipeline.repairs import train_command
from pipeline.run_record import open_whole_run, read_metrics
from pipeline.runs import Run, read_run, run_names
from pipeline.workspace import Workspace

SCORES = ("oof_msle", "oof_msle_final", "fold_msle", "fold_msle_final")
"""What a fine-tuned run is held against, of the run that it started from."""

START_WITHIN = {"fp32": 0.01, "fp16": 0.1, "bf16": 0.1, "int8": 0.5}
"""By how much, in z, the untrained model may differ from its run, by the precision of either's vectors."""


@dataclass(frozen=True, eq=False)
class Start:
    """A run that may be fine-tuned, its encoder and folds, and the heads of every fold.

    They are those of `final`, which no validation row has chosen; `expected` is what they predict out of fold, in log
    views.
    """

    run: Run
    sources: Sequence[Source]
    encoder: EncoderConfig
    cached_precision: str
    plan: FoldPlan
    heads: Mapping[int, FittedHeads]
    log_views: Float64[np.ndarray, " video"]
    expected: Float64[np.ndarray, " video"]

    @property
    def kind_of(self) -> dict[str, str]:
        """Modality that the encoder makes -> kind of vector."""
        return {source.modality: source.kind for source in self.sources if source.tag}

    @property
    def from_table(self) -> list[Source]:
        """Modalities that the table gives."""
        return [source for source in self.sources if source.kind in FROM_TABLE]

    @property
    def frozen(self) -> list[str]:
        """Modalities whose heads stay as they are."""
        return [source.modality for source in self.sources if source.kind in (CHANNEL, WORDS)]


def read_start(config: FinetuneConfig, workspace: Workspace, videos: VideoTable) -> Start:
    """Read the run, and refuse what cannot be continued.

    Raises
    ------
    UsageError
        The run has no encoder or several, heads that are not additive or of several seeds, or is fine-tuned already.
    CacheError
        Videos, views, folds or the encoder's weights are not those of the run.
    DataError, UnfitDataError
        There are no views to learn from.
    """
    run = open_whole_run(workspace.run(config.init or _only_start(workspace)))
    sources = [Source(**source) for source in run.part("sources")]
    tag = _only_encoder(run, sources)
    heads = {fold: _additive(run, fold) for fold in range(run.n_folds)}
    read_metrics(run, *SCORES)  # what the result is held against must not turn out damaged after hours
    saved = read_oof(run)
    again = f"run `{train_command(run.name, config, run.record.get('config'))}` again"
    plan = _plan(run, saved, videos, again)
    if videos.views is None:
        raise DataError(f"{videos.path} has no column of views to learn from")
    log_views = Target(run.part("target")).to_log(videos.views.astype(np.float64))
    _check_views(saved, log_views, again)
    encoder, cached_precision = find_encoder(workspace, run, tag, config.model)
    return Start(run, sources, encoder, cached_precision, plan, heads, log_views, saved.final)


def _only_start(workspace: Workspace) -> str:
    names = [name for name in run_names(workspace.runs) if not read_run(workspace.run(name)).is_finetuned]
    if not names:
        raise CacheError(f"no run in {workspace.runs} to start from: run `vp train-heads` first")
    if len(names) > 1:
        raise UsageError(f"several runs in {workspace.runs}: choose with --init, one of {', '.join(names)}")
    return names[0]


def _only_encoder(run: Run, sources: Sequence[Source]) -> str:
    if run.is_finetuned:
        raise UsageError(
            f"run {run.name} is fine-tuned already: start from {run.part('finetuned_from')['run']}, with more --epochs"
        )
    tags = sorted({source.tag for source in sources if source.tag})
    if len(tags) != 1:
        has = f"has {len(tags)} ({', '.join(tags)})" if tags else "has none"
        raise UsageError(
            f"fine-tuning takes a run with one encoder, however {run.name} {has}: train one with `vp train-heads "
            "--model ONE --name NAME`"
        )
    if len(run.record.get("seeds") or [None]) > 1:
        raise UsageError(f"fine-tuning takes a run with one seed, however {run.name} has several: train one with one")
    return tags[0]


def _additive(run: Run, fold: int) -> FittedHeads:
    heads = run.checkpoint(fold, "final").heads
    if not isinstance(heads, FittedHeads) or not getattr(heads, "additive", True):
        raise UsageError(
            f"fine-tuning takes an additive head, through which gradients flow; run {run.name} has another "
            f"({run.part('config').get('head')}): train with --head linear, hybrid or mlp"
        )
    return heads


def _plan(run: Run, saved: SavedOutOfFold, videos: VideoTable, again: str) -> FoldPlan:
    told = run.part("folds")
    if saved.ids != videos.ids:
        raise CacheError(
            f"run {run.name} was trained on {len(saved.ids)} videos that are not the {len(videos)} of {videos.path}: "
            f"{again}"
        )
    plan = FoldPlan(
        fold_of=saved.fold_of, split=told["split"], seed=told.get("seed"), expanding=bool(told.get("expanding"))
    )
    if plan.digest(videos.ids) != told["digest"]:
        raise CacheError(f"the folds of run {run.name} are not those that its run.json names: {again}")
    return plan


def _check_views(saved: SavedOutOfFold, log_views: Float64[np.ndarray, " video"], again: str) -> None:
    if not np.allclose(saved.log_views, log_views, rtol=0, atol=1e-6):
        raise CacheError(f"the views in the dataset are not those that run {saved.run} was trained on: {again}")
