"""`vp finetune`: run + images -> run with the encoder unfrozen, one fold per device, resumable after every epoch."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from features import durable
from features.errors import UsageError, WorkersFailedError
from features.lora import require_peft
from features.progress import Progress
from features.supervise import Done, Lost, Supervisor
from features.videos import VideoTable
from heads.inputs import Inputs
from pipeline.config import FinetuneConfig
from pipeline.dataset import Dataset, read_dataset
from pipeline.devices import BF16_CAPABILITY, choose_devices, cores, gpu
from pipeline.inputs import gather
from pipeline.outcome import Outcome, size_told
from pipeline.runs import MOMENTS, building
from pipeline.tracking import RunLog, run_log
from pipeline.tuning.begun import begin, decisive
from pipeline.tuning.finetuned import table_digest
from pipeline.tuning.fold import Context, Made, MakeMember, Trained, TrainFold
from pipeline.tuning.loop import chosen_factor
from pipeline.tuning.memory import estimate, refuse_on_cpu
from pipeline.tuning.result import Result, facts_of, outcome
from pipeline.tuning.start import Start, read_start
from pipeline.tuning.unfinished import fold_folder, records_so_far, tuning_folder
from pipeline.tuning.worker import FinetuneSetup
from pipeline.workspace import Workspace

PATIENCE_SECONDS = 1800.0
"""A worker says a word after every batch; loading an encoder from a slow disk is the longest that it is silent."""
MAX_FEED_THREADS = 16


def finetune(config: FinetuneConfig, progress: Progress) -> Outcome:
    """Train towers, heads and weights of every fold together, starting from a run, and keep them as a run.

    Raises
    ------
    UsageError, DataError, StorageError, LockedError, CacheError, WorkersFailedError
        See `pipeline.errors` for what each means and its exit code.
    """
    begun = time.monotonic()
    workspace = Workspace(config.work)
    dataset = read_dataset(config, progress, non_negative=False)
    stage = Stage.prepared(config, workspace, dataset, progress)
    with building(stage.folder) as aside:
        metrics = stage.run(aside, begun)
    durable.discard_tree(stage.tuning)  # all that is in it stands in the run now
    return outcome(config, stage.folder, metrics, has_test=dataset.test is not None)


@dataclass(frozen=True, eq=False)
class Stage:
    """A fine-tuning, read and checked; nothing is written yet."""

    config: FinetuneConfig
    workspace: Workspace
    dataset: Dataset
    start: Start
    context: Context
    devices: list[str]
    progress: Progress

    @classmethod
    def prepared(cls, config: FinetuneConfig, workspace: Workspace, dataset: Dataset, progress: Progress) -> "Stage":
        """Read and check everything, before anything is written."""
        start = read_start(config, workspace, dataset.train)
        devices = choose_devices(config.device, config.gpus)[: start.plan.n_folds]
        name = config.name or f"{start.run.name}_finetuned"
        if name == start.run.name:
            raise UsageError(f"--name {name} is the run that this starts from: choose another")
        if config.lora:
            require_peft()
        _tell_needs(config, workspace, start, devices, progress)
        context = _context(config, workspace, dataset, start, name=name, devices=devices)
        return cls(config, workspace, dataset, start, context, devices, progress)

    @property
    def folder(self) -> Path:
        """Of the run that is made."""
        return self.workspace.run(self.context.name)

    @property
    def tuning(self) -> Path:
        """Of what is not finished yet."""
        return self.context.folder

    def run(self, aside: Path, begun: float) -> dict[str, Any]:
        """Train, choose, make the members, and write the run; returns its metrics."""
        name, precision = self.context.name, self.context.precision
        decided = decisive(self.config, self.start.run, precision, table_digest(self.dataset.train))
        threads = begin(self.tuning, name, decided, self.progress)
        with (
            run_log(
                aside / "metrics.jsonl",
                mode=self.config.wandb,
                name=name,
                folder=self.workspace.root,
                config=facts_of(name, self.config, self.start, precision),
                progress=self.progress,
            ) as log,
            Supervisor[TrainFold | MakeMember, Any](
                FinetuneSetup(threads),
                self.devices,
                patience_seconds=PATIENCE_SECONDS,
                warn=self.progress.warn,
                jobs_each=1,
            ) as workers,
        ):
            trained = self._train(workers, log)
            factors = _factors(trained, expanding=self.start.plan.expanding)
            result = Result(
                name=name,
                config=self.config,
                dataset=self.dataset,
                start=self.start,
                precision=precision,
                trained=trained,
                made=self._make(workers, trained, factors, aside),
                factors=factors,
            )
            training, oof = result.scored()
            metrics = result.metrics(training, oof) | {"seconds": time.monotonic() - begun}
            log.results(training, metrics)
        result.write(aside, training, oof, metrics)
        return metrics

    def _train(self, workers: Supervisor[TrainFold | MakeMember, Any], log: RunLog) -> dict[int, Trained]:
        plan, epochs = self.start.plan, self.config.epochs
        rows = sum(len(plan.train_rows(fold)) for fold in range(plan.n_folds))
        where = ", ".join(self.devices)
        self.progress.begin(f"fine-tuning {plan.n_folds} folds on {where}", epochs * rows, "rows")
        logged = dict.fromkeys(range(plan.n_folds), 0)
        trained: dict[int, Trained] = {}
        for event in workers.run(self.context, [TrainFold(fold) for fold in range(plan.n_folds)]):
            fold = event.job.fold
            if isinstance(event, Lost):
                raise WorkersFailedError(_lost(fold, event.reason))
            if isinstance(event, Done):
                trained[fold] = event.result
                records = event.result.records
            else:
                self.progress.advance(event.units, device=event.device)
                records = records_so_far(fold_folder(self.tuning, fold)) if event.units == 0 else []
            for record in records[logged[fold] :]:
                log.epoch(record)
                logged[fold] += 1
        self.progress.end()
        return trained

    def _make(
        self,
        workers: Supervisor[TrainFold | MakeMember, Any],
        trained: Mapping[int, Trained],
        factors: Mapping[int, Mapping[str, float]],
        aside: Path,
    ) -> dict[int, Made]:
        jobs = [MakeMember(fold, chosen, aside) for fold, chosen in factors.items()]
        members = sum(1 if trained[job.fold].has_one_member(job.factors) else len(MOMENTS) for job in jobs)
        tables = sum(len(videos) for videos in self.dataset.tables)
        self.progress.begin("predicting with the tuned towers", members * tables, "rows")
        made: dict[int, Made] = {}
        for event in workers.run(self.context, jobs):
            if isinstance(event, Lost):
                raise WorkersFailedError(_lost(event.job.fold, event.reason))
            if isinstance(event, Done):
                made[event.job.fold] = event.result
            else:
                self.progress.advance(event.units, device=event.device)
        self.progress.end()
        return made


def _context(
    config: FinetuneConfig, workspace: Workspace, dataset: Dataset, start: Start, *, name: str, devices: list[str]
) -> Context:
    reference = np.datetime64(start.run.part("reference_date"))
    feed_threads = 1 if devices[0] == "cpu" else min(MAX_FEED_THREADS, max(1, cores() // len(devices)))
    return Context(
        config=config,
        name=name,
        encoder=start.encoder,
        kind_of=start.kind_of,
        train=dataset.train,
        test=dataset.test,
        from_table={videos.split: _from_table(workspace, start, videos, reference) for videos in dataset.tables},
        log_views=start.log_views,
        plan=start.plan,
        heads=start.heads,
        expected=start.expected,
        precision=_precision(devices),
        cached_precision=start.cached_precision,
        feed_threads=config.num_workers or feed_threads,
        folder=tuning_folder(workspace.run(name)),
    )


def _factors(trained: Mapping[int, Trained], *, expanding: bool) -> dict[int, dict[str, float]]:
    """How far each fold goes from the frozen weights, at each moment."""
    errors = {fold: result.errors for fold, result in trained.items()}
    return {
        fold: {moment: chosen_factor(errors, fold, moment, expanding=expanding) for moment in MOMENTS}
        for fold in sorted(errors)
    }


def _precision(devices: list[str]) -> str:
    """bf16 where GPUs compute in it: fp16 would need its losses scaled, so older ones train in float32."""
    gpus = [device for device in devices if device != "cpu"]
    return "bf16" if gpus and all(gpu(device).capability >= BF16_CAPABILITY for device in gpus) else "fp32"


def _tell_needs(
    config: FinetuneConfig, workspace: Workspace, start: Start, devices: list[str], progress: Progress
) -> None:
    kinds, folds = list(dict.fromkeys(start.kind_of.values())), start.plan.n_folds
    rows = max(len(start.plan.train_rows(fold)) for fold in range(folds))
    estimated = estimate(config, start.encoder, kinds, rows, _precision(devices))
    if devices == ["cpu"]:
        refuse_on_cpu(config, estimated, folds)
    progress.note(f"{start.encoder.tag}: {estimated.told}; {estimated.told_beside(folds)}")
    if (free := durable.free_bytes(workspace.root)) < (needed := estimated.disk_bytes(folds)):
        progress.warn(
            f"{workspace.root} has {size_told(free)} free, and {size_told(needed)} may be needed; should the disk be "
            "full, what is finished is kept, and the same command goes on"
        )
    if start.frozen:
        progress.note(f"{' and '.join(start.frozen)} stay as they are; everything else is trained")


def _from_table(workspace: Workspace, start: Start, videos: VideoTable, reference: np.datetime64) -> Inputs | None:
    sources = start.from_table
    return gather(workspace, sources, videos, reference).inputs if sources else None


def _lost(fold: int, reason: str) -> str:
    return (
        f"fold {fold} killed its worker again and again ({reason}): every finished epoch is kept, so run the same "
        "command again; if memory was the reason, with a smaller --batch-size or --gradient-checkpointing"
    )
