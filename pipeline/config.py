"""The options of every command; each default is written once, here or in the configuration inherited from.

The text in `Annotated` is what `vp COMMAND --help` shows; `REPEATABLE` marks an option that is given once per value.
"""

from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Annotated, Literal

from features.config import DatasetConfig
from heads.config import MAX_SEED, HeadsConfig

REPEATABLE = "repeatable"
POSITIONAL = "positional"
"""Marks an option that stands on the command line without a flag; a file names it as it does every other."""

Day = date
"""The type of an option that is itself called `date`."""


@dataclass(frozen=True, kw_only=True)
class WorkFolderConfig:
    """A command that needs the work folder alone."""

    work: Annotated[Path, "folder that vp writes to"] = Path("work")


@dataclass(frozen=True, kw_only=True)
class WorkConfig(DatasetConfig, WorkFolderConfig):
    """A command that reads the dataset and writes into the work folder."""


@dataclass(frozen=True, kw_only=True)
class VectorsConfig(WorkConfig):
    """A command that reads a cache whole."""

    stream: Annotated[
        bool | None, "read the vectors shard by shard instead of into memory (default: if they would not fit)"
    ] = None


MAX_TIMEOUT = 1_000_000_000
"""Seconds, thirty years; the system cannot wait much longer."""


@dataclass(frozen=True, kw_only=True)
class ExtractConfig(WorkConfig):
    """`vp extract`."""

    model: Annotated[str, "encoder: a short name such as ViT-L-14, a hub id, a local folder, or tiny"] = "ViT-L-14"
    gpus: Annotated[tuple[int, ...], "GPUs to use, such as 0,1,2 (default: all there are)"] = ()
    device: Annotated[str, "auto, cpu, or cuda"] = "auto"
    modalities: Annotated[
        tuple[str, ...], "image,text, or image,title,description (default: what the dataset has)"
    ] = ()
    precision: Annotated[
        Literal["auto", "fp32", "bf16", "fp16", "int8"],
        "arithmetic of the encoder: bf16 on GPUs, fp32 on CPUs; int8, for CPUs, is measured first",
    ] = "auto"
    batch_size: Annotated[
        int | None, "rows per forward pass (halved where memory runs out); of packed texts 16 tokens each"
    ] = None
    num_workers: Annotated[int | None, "threads that decode thumbnails, in each process"] = None
    compile: Annotated[bool, "compile the tower of images first: a minute or more, worth it on long GPU runs"] = False
    workers: Annotated[int | None, "processes on the CPU (on GPUs there is one for each)"] = None
    worker_timeout: Annotated[float, "seconds without a word after which a process is taken for hung"] = 600.0
    shard_index: Annotated[int | None, "which part of the shards to make, from 0, when machines share the work"] = None
    num_shards: Annotated[str, "into how many parts; auto: index and number from SLURM, torchrun or Kubernetes"] = "1"
    text: Annotated[
        Literal["joined", "separate"],
        "joined: one vector of title, a space, description; separate: one of the title, one of the description",
    ] = "joined"
    max_bad: Annotated[float, "share of bad thumbnails above which the command fails (they are kept either way)"] = 0.01
    allow_bin_weights: Annotated[bool, "accept a checkpoint that has only .bin weights (read without unpickling)"] = (
        False
    )
    wait_lock: Annotated[float, "seconds to wait for another process that writes to the same cache"] = 0.0

    def __post_init__(self) -> None:
        timeout = self.worker_timeout
        rules = {
            f"--batch-size must be at least 1, not {self.batch_size}": self.batch_size is None or self.batch_size >= 1,
            f"--num-workers must be at least 1, not {self.num_workers}": self.num_workers is None
            or self.num_workers >= 1,
            f"--workers must be 1 or more, not {self.workers}": self.workers is None or self.workers >= 1,
            f"--worker-timeout must be above 0 and at most {MAX_TIMEOUT:,}, not {timeout}": 0 < timeout <= MAX_TIMEOUT,
            f"--max-bad must lie between 0 and 1, not at {self.max_bad}": 0 <= self.max_bad <= 1,
            f"--wait-lock must not be negative, as {self.wait_lock} is": self.wait_lock >= 0,
        }
        if broken := [rule for rule, holds in rules.items() if not holds]:
            raise ValueError("; ".join(broken))


@dataclass(frozen=True, kw_only=True)
class TrainHeadsConfig(VectorsConfig, HeadsConfig):
    """`vp train-heads`."""

    model: Annotated[tuple[str, ...], "encoder whose cache is used (default: the only cache there is)", REPEATABLE] = ()
    modalities: Annotated[
        tuple[str, ...], "of image,text (or title,description),age,channel,words (default: all of the cache, and age)"
    ] = ()
    split: Annotated[
        Literal["kfold", "stratified", "group", "time", "file"],
        "kfold: random; stratified: by views; group: channels stay whole; time: newest validates; file: --fold-file",
    ] = "kfold"
    sweep: Annotated[
        tuple[str, ...],
        "mlp, hybrid: try values, such as lr=1e-3,3e-3, of lr, hidden-dim, dropout, weight-decay; every combination",
        REPEATABLE,
    ] = ()
    near_duplicates: Annotated[
        bool, "also look for thumbnails and texts that are nearly the same on both sides of a fold"
    ] = False
    fold_file: Annotated[Path | None, "CSV with the columns id and fold, for --split file"] = None
    diagnostics: Annotated[
        bool, "also score the linear head under harder splits, by year and channel, and test against train"
    ] = True
    reference_date: Annotated[date | None, "day from which ages count (default: the newest date in the dataset)"] = None
    name: Annotated[str, "name of the run"] = "clip_multimodal"
    device: Annotated[str, "auto, cpu, or cuda"] = "auto"
    wandb: Annotated[Literal["disabled", "offline", "online"], "log to Weights & Biases as well"] = "disabled"


TOWER_LR, LORA_LR = 1e-5, 1e-4


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(WorkConfig):
    """`vp finetune`."""

    init: Annotated[str | None, "run to start from (default: the only run there is)"] = None
    name: Annotated[str | None, "name of the new run (default: that of --init, and _finetuned)"] = None
    model: Annotated[str | None, "the encoder's folder, if the run's encoder was a local folder"] = None
    gpus: Annotated[tuple[int, ...], "GPUs to use, such as 0,1,2; one fold on each (default: all there are)"] = ()
    device: Annotated[str, "auto, cpu, or cuda"] = "auto"
    epochs: Annotated[int, "passes over the training rows of each fold"] = 5
    batch_size: Annotated[int, "rows per forward pass"] = 16
    accumulate: Annotated[int, "forward passes per training step"] = 1
    num_workers: Annotated[int | None, "threads that decode thumbnails, for each fold"] = None
    lr: Annotated[float | None, "learning rate of the encoder's last layer (default: 1e-5, with --lora 1e-4)"] = None
    layer_decay: Annotated[float, "factor on the learning rate from each layer to the one before it"] = 0.65
    head_lr: Annotated[float, "learning rate of heads and weights"] = 3e-4
    unfreeze: Annotated[str, "all, or last:N for the last N blocks of each tower"] = "all"
    lora: Annotated[int, "rank of what is added to the linear layers and trained in their place; 0: off"] = 0
    freeze_clip: Annotated[bool, "train the heads alone"] = False
    gradient_checkpointing: Annotated[bool, "compute activations twice to save most of their memory"] = False
    patience: Annotated[int, "stop after so many epochs without a better validation error; 0: never"] = 0
    seed: Annotated[int, "seed of everything random"] = 42
    force: Annotated[bool, "train a large encoder on a CPU all the same"] = False
    wandb: Annotated[Literal["disabled", "offline", "online"], "log to Weights & Biases as well"] = "disabled"

    def __post_init__(self) -> None:
        rules = {
            "--epochs must be at least 1": self.epochs >= 1,
            "--batch-size must be at least 1": self.batch_size >= 1,
            "--accumulate must be at least 1": self.accumulate >= 1,
            "--num-workers must be at least 1": self.num_workers is None or self.num_workers >= 1,
            "--lr and --head-lr must be above 0": self.tower_lr > 0 and self.head_lr > 0,
            "--lora takes a rank of at least 1, or 0 for none": self.lora >= 0,
            "--lora and --freeze-clip exclude each other": not (self.lora and self.freeze_clip),
            "--layer-decay must be above 0 and at most 1": 0 < self.layer_decay <= 1,
            "--patience must not be negative": self.patience >= 0,
            f"--seed must lie between 0 and {MAX_SEED}, not at {self.seed}": 0 <= self.seed <= MAX_SEED,
        }
        if broken := [rule for rule, holds in rules.items() if not holds]:
            raise ValueError("; ".join(broken))

    @property
    def tower_lr(self) -> float:
        """Learning rate of the encoder's last layer; additions that begin at zero bear a higher one."""
        return self.lr if self.lr is not None else (LORA_LR if self.lora else TOWER_LR)


@dataclass(frozen=True, kw_only=True)
class SubmitConfig(VectorsConfig):
    """`vp submit`."""

    run: Annotated[tuple[str, ...], "run to submit (default: the only run there is)", REPEATABLE] = ()
    method: Annotated[Literal["mean", "median", "weighted_mean"], "how the members are combined"] = "mean"
    weights: Annotated[
        tuple[str, ...], "weights for weighted_mean: 0.4,0.3,0.3 in fold order, or fold_0=0.4,fold_1=0.3,..."
    ] = ()
    checkpoint: Annotated[Literal["best", "final"], "best: epoch of lowest validation error; final: last epoch"] = (
        "best"
    )
    space: Annotated[Literal["log", "views"], "average log1p(views), or views"] = "log"
    sample: Annotated[Path | None, "sample submission whose header (and order) is followed"] = None


@dataclass(frozen=True, kw_only=True)
class StatusConfig(WorkConfig):
    """`vp status`."""

    hash: Annotated[bool, "compare the contents of thumbnails, not only their sizes and times"] = False


@dataclass(frozen=True, kw_only=True)
class VerifyConfig(WorkConfig):
    """`vp verify`."""

    sources: Annotated[bool, "also hash every thumbnail and compare it with what its vector was made from"] = True


@dataclass(frozen=True, kw_only=True)
class PruneConfig(WorkFolderConfig):
    """`vp prune`."""

    yes: Annotated[bool, "remove the files; without it they are only listed"] = False
    cache: Annotated[tuple[str, ...], "encoder whose whole cache is removed; may be repeated", REPEATABLE] = ()
    run: Annotated[tuple[str, ...], "run to remove; may be repeated", REPEATABLE] = ()
    unfinished: Annotated[tuple[str, ...], "run whose unfinished fine-tuning is given up", REPEATABLE] = ()


@dataclass(frozen=True, kw_only=True)
class ReportConfig(WorkConfig):
    """`vp report`."""

    run: Annotated[str, "run to report on (default: the only run there is)"] = ""
    out: Annotated[Path | None, "file of the page (default: report.html in the run's folder)"] = None


@dataclass(frozen=True, kw_only=True)
class PredictConfig(WorkConfig):
    """`vp predict`."""

    image: Annotated[tuple[str, ...], "thumbnail to score, with every --title; may be repeated", REPEATABLE] = ()
    title: Annotated[tuple[str, ...], "title to score; may be repeated", REPEATABLE] = ()
    description: Annotated[str, "description, the same for all"] = ""
    date: Annotated[
        Day | None, "day of publication, at most a year ahead (default: age 0 at the run's reference date)"
    ] = None
    year: Annotated[int | None, "year of publication, where the day is not known"] = None
    channel: Annotated[str, "channel, as the dataset names it; adds the percentile among its training videos"] = ""
    csv: Annotated[
        Path | None, "score the rows of this file: image (relative to it), title, description, date, year, channel"
    ] = None
    root: Annotated[Path | None, "with --csv: folder that no image may lie outside of (default: the file's own)"] = None
    out: Annotated[Path | None, "with --csv: write the results to this file (default: stdout)"] = None
    run: Annotated[str, "run to predict with (default: the only run there is)"] = ""
    model: Annotated[
        tuple[str, ...], "the encoder of the run, where it is a local folder (default: found by its name)", REPEATABLE
    ] = ()
    device: Annotated[str, "auto, cpu, or cuda"] = "auto"


@dataclass(frozen=True, kw_only=True)
class CompareConfig(WorkConfig):
    """`vp compare`."""

    runs: Annotated[tuple[str, ...], "the two runs to compare", REPEATABLE, POSITIONAL] = ()
    checkpoint: Annotated[
        Literal["best", "final"], "final: last epoch, chosen without the rows that score it; best: flatters a little"
    ] = "final"


@dataclass(frozen=True, kw_only=True)
class ScoreConfig:
    """`vp score`."""

    submission: Annotated[Path | None, "submission CSV (first column id, second column views)"] = None
    truth: Annotated[Path | None, "CSV with the true views (columns id and views)"] = None


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """`vp demo`."""

    out: Annotated[Path, "folder that the demo draws its dataset and writes its results to"] = Path("vp-demo")


CONFIG_OF: dict[str, type] = {
    "extract": ExtractConfig,
    "train-heads": TrainHeadsConfig,
    "finetune": FinetuneConfig,
    "submit": SubmitConfig,
    "report": ReportConfig,
    "predict": PredictConfig,
    "compare": CompareConfig,
    "score": ScoreConfig,
    "status": StatusConfig,
    "verify": VerifyConfig,
    "prune": PruneConfig,
    "demo": DemoConfig,
}
"""Command -> its options; also the tables that `vp.toml` may hold."""
