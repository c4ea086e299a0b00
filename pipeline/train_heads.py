"""`vp train-heads`: cache -> run (heads of every fold, out-of-fold predictions, metrics)."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from features.encoders import cache_tag
from features.errors import DataError, UsageError
from features.progress import Progress
from features.videos import VideoTable
from heads.chunks import Chunks, in_memory
from heads.folds import FoldPlan
from heads.inputs import Inputs
from heads.targets import Target
from pipeline.config import TrainHeadsConfig
from pipeline.dataset import Dataset, read_dataset
from pipeline.diagnostics import diagnose, told
from pipeline.fitting import told_sweep, train, tried
from pipeline.inputs import Gathered, Source, choose_sources
from pipeline.memory import training_streams
from pipeline.outcome import Outcome, table
from pipeline.outdated import tell_outdated
from pipeline.plans import make_plan, tell_duplicates, tell_near_duplicates
from pipeline.run_files import write_run
from pipeline.runs import building
from pipeline.scores import OutOfFold, distribution, metrics_of
from pipeline.settings import repeated_flags, to_plain
from pipeline.stream import StoredInputs, read_inputs
from pipeline.tracking import run_log
from pipeline.workspace import Workspace


def train_heads(config: TrainHeadsConfig, progress: Progress) -> Outcome:
    """Train one member per fold on the cached embeddings, and keep everything that tells how good they are.

    Raises
    ------
    UsageError, DataError, UnfitDataError, StorageError, LockedError, CacheError
        See `pipeline.errors` for what each means and its exit code.
    """
    start = time.monotonic()
    tried(config)  # a sweep that makes no sense is refused before anything is read
    workspace = Workspace(config.work)
    folder = workspace.run(config.name)
    task = _gathered_task(config, workspace, progress)
    with building(folder) as aside:
        metrics = task.run(aside, workspace, progress, start)
    return _outcome(config, folder, metrics, has_test=task.dataset.test is not None)


@dataclass(frozen=True, eq=False)
class _Task:
    """Everything a training needs, read and checked."""

    config: TrainHeadsConfig
    dataset: Dataset
    sources: tuple[Source, ...]
    reference: np.datetime64
    gathered: Gathered[Inputs] | Gathered[StoredInputs]
    log_views: Float64[np.ndarray, " video"]
    plan: FoldPlan
    duplicates: Mapping[str, int]
    near_duplicates: Mapping[str, Any]

    @property
    def videos(self) -> VideoTable:
        return self.dataset.train

    @property
    def inputs(self) -> Chunks:
        return self.gathered.inputs

    @property
    def modalities(self) -> tuple[str, ...]:
        return self.inputs.outline.modalities

    def run(self, aside: Path, workspace: Workspace, progress: Progress, start: float) -> dict[str, Any]:
        """Train, and write the whole run into `aside`; returns its metrics."""
        _tell_absent(self.inputs.outline, progress)
        lines = aside / "metrics.jsonl"
        with run_log(
            lines,
            mode=self.config.wandb,
            name=self.config.name,
            folder=workspace.root,
            config=self.facts(self.config),
            progress=progress,
            first_seed=self.config.seed,
        ) as log:
            fitted = train(self.config, self.inputs, self.log_views, self.plan, told=log.epoch, progress=progress)
            training = fitted.training
            oof = OutOfFold.predict(training.members, self.plan, self.inputs, self.log_views)
            ages = self.videos.ages_years(self.reference)
            metrics = {"run": self.config.name, "head": self.config.head, "rows": len(self.videos)}
            metrics |= metrics_of(training, oof, training.members[0].best.modalities, ages)
            metrics |= {"sweep": fitted.sweep} if fitted.sweep else {}
            metrics |= {"duplicates_across_folds": self.duplicates}
            metrics |= {"near_duplicates": self.near_duplicates} if self.near_duplicates else {}
            metrics |= {"seconds": time.monotonic() - start}
            log.results(training, metrics)
        if self.config.diagnostics:
            metrics["diagnostics"] = diagnose(self.config, self.videos, self.inputs, self._test_inputs(workspace), oof)
        facts = self.facts(fitted.config) | {"seeds": training.seeds, "additive": training.members[0].final.additive}
        write_run(aside, facts=facts, metrics=metrics, training=training, oof=oof, videos=self.videos)
        return metrics

    def _test_inputs(self, workspace: Workspace) -> Chunks | None:
        """What the heads would see of the test videos; None without them, or where their cache is not made yet."""
        test = self.dataset.test
        if test is None or not _is_cached(workspace, self.sources, test):
            return None
        stream = isinstance(self.inputs, StoredInputs)
        return read_inputs(workspace, self.sources, test, self.reference, stream=stream).inputs

    def facts(self, config: TrainHeadsConfig) -> dict[str, Any]:
        """What run.json says besides the digests of the files."""
        return {
            "name": self.config.name,
            "config": to_plain(config) | {"model": list(self.gathered.encoders)},
            "modalities": list(self.modalities),
            "sources": [vars(source) for source in self.sources],
            "encoders": dict(self.gathered.encoders),
            "reference_date": str(self.reference),
            "target": self.config.target,
            "folds": {
                "split": self.plan.split,
                "n": self.plan.n_folds,
                "seed": self.plan.seed,
                "expanding": self.plan.expanding,
                "digest": self.plan.digest(self.videos.ids),
            },
            "rows": len(self.videos),
            "training_log_views": distribution(self.log_views),
            "versions": {name: version(name) for name in ("vp", "torch", "numpy", "scikit-learn", "safetensors")},
        }


def _gathered_task(config: TrainHeadsConfig, workspace: Workspace, progress: Progress) -> _Task:
    dataset = read_dataset(config, progress, non_negative=config.target == "log1p")
    videos = dataset.train
    reference = _reference_date(config, dataset, progress)
    sources = choose_sources(workspace, list(dict.fromkeys(map(cache_tag, config.model))), config.modalities, videos)
    if config.joint and len(sources) == 1:
        raise UsageError(f"--joint reads across modalities, and there is only {sources[0].modality}: leave it out")
    read = dataset.tables if config.diagnostics else [videos]
    splits = [table.split for table in read if table is videos or _is_cached(workspace, sources, table)]
    stream = training_streams(config, workspace, sources, splits)
    if stream:
        progress.note("the vectors stay on disk: every pass reads them shard by shard")
    gathered = read_inputs(workspace, sources, videos, reference, stream=stream, progress=progress)
    tell_outdated(config, gathered.plans, videos, progress)
    log_views = Target(config.target).to_log(_views(videos))
    plan = make_plan(config, config.split, videos, log_views)
    duplicates = tell_duplicates(plan, videos, gathered.thumbnail_digest, progress)
    near = {}
    if config.near_duplicates:
        near = tell_near_duplicates(plan, videos.ids, in_memory(gathered.inputs), progress)
    return _Task(config, dataset, sources, reference, gathered, log_views, plan, duplicates, near)


def _is_cached(workspace: Workspace, sources: Sequence[Source], videos: VideoTable) -> bool:
    return all(workspace.has_cache(source.tag, videos.split) for source in sources if source.tag)


def _views(videos: VideoTable) -> Float64[np.ndarray, " video"]:
    if videos.views is None:
        raise DataError(f"{videos.path} has no column of views to learn from")
    return videos.views.astype(np.float64)


def _reference_date(config: TrainHeadsConfig, dataset: Dataset, progress: Progress) -> np.datetime64:
    newest = dataset.newest()
    if config.reference_date is None:
        return newest
    reference = np.datetime64(config.reference_date, "s")
    if not np.isnat(newest) and reference < newest:
        progress.warn(
            f"--reference-date {config.reference_date} is older than the newest video: some ages are negative"
        )
    return reference


def _tell_absent(inputs: Inputs, progress: Progress) -> None:
    for block in inputs.blocks:
        if count := int((~block.present).sum()):
            progress.note(
                f"{block.modality}: absent for {count} of {inputs.n_videos} videos, counted as its mean there"
            )


def _outcome(config: TrainHeadsConfig, folder: Path, metrics: Mapping[str, Any], *, has_test: bool) -> Outcome:
    folds = range(len(metrics["fold_msle"]))
    lines = [["", *[f"fold {fold}" for fold in folds], "all"]]
    lines.append(["MSLE best epoch", *[f"{value:.4f}" for value in metrics["fold_msle"]], f"{metrics['oof_msle']:.4f}"])
    final = metrics["fold_msle_final"]
    lines.append(["MSLE last epoch", *[f"{value:.4f}" for value in final], f"{metrics['oof_msle_final']:.4f}"])
    for modality, mean in metrics["weights"].items():
        per_fold = [f"{weights[modality]:.3f}" for weights in metrics["fold_weights"]]
        lines.append([f"weight {modality}", *per_fold, f"{mean:.3f} ±{metrics['weights_sd'][modality]:.3f}"])
    before = [*told_sweep(metrics["sweep"]), ""] if "sweep" in metrics else []
    diagnosed = [*told(metrics["diagnostics"]), ""] if "diagnostics" in metrics else []
    score = f"out-of-fold MSLE {metrics['oof_msle']:.4f}; a constant scores {metrics['oof_msle_constant']:.4f}"
    done = f"{config.name}: {metrics['rows']} videos in {metrics['seconds']:.1f} s -> {folder}"
    which = f" --run {config.name}" if config.name != TrainHeadsConfig.name else ""
    following = f"vp submit --method mean{which}{repeated_flags(config)}" if has_test else ""
    of_one = [_seeds_told(metrics)] if "seeds" in metrics else []
    return Outcome([*before, *table(lines), "", *diagnosed, *of_one, score, done], metrics, following)


def _seeds_told(metrics: Mapping[str, Any]) -> str:
    seeds = metrics["seeds"]
    spread = np.mean(seeds["fold_msle_final_sd"])
    return (
        f"{len(seeds['seeds'])} seeds: the mean of their predictions scores {metrics['oof_msle_final']:.4f} at the "
        f"last epoch, one of them {seeds['oof_msle_final_of_one']:.4f} (±{spread:.4f} within a fold)"
    )
