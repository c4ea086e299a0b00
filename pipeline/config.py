"""The options of every command; each default is written once, here or in the configuration inherited from.

The text in `Annotated` is what `vp COMMAND --help` shows; `REPEATABLE` marks an option that is given once per value.
"""

from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Annotated, Literal

from features.config import DatasetConfig
from heads.config import HeadsConfig

REPEATABLE = "repeatable"


@dataclass(frozen=True, kw_only=True)
class WorkConfig(DatasetConfig):
    """A command that reads the dataset and writes into the work folder."""

    work: Annotated[Path, "folder that vp writes to"] = Path("work")


@dataclass(frozen=True, kw_only=True)
class ExtractConfig(WorkConfig):
    """`vp extract`."""

    model: Annotated[str, "encoder: a short name such as ViT-L-14, a hub id, a local folder, or tiny"] = "ViT-L-14"
    gpus: Annotated[tuple[int, ...], "GPUs to use, such as 0,1,2 (default: all there are)"] = ()
    device: Annotated[str, "auto, cpu, or cuda"] = "auto"
    modalities: Annotated[tuple[str, ...], "image,text (default: what the dataset has)"] = ()
    precision: Annotated[
        Literal["auto", "fp32", "bf16", "fp16"], "arithmetic of the encoder: bf16 on GPUs, fp32 on CPUs"
    ] = "auto"
    batch_size: Annotated[int | None, "rows per forward pass"] = None
    num_workers: Annotated[int | None, "threads that decode thumbnails"] = None
    text: Annotated[Literal["joined"], "joined: title, a space, description"] = "joined"
    max_bad: Annotated[float, "share of bad thumbnails above which the command fails (they are kept either way)"] = 0.01
    allow_bin_weights: Annotated[bool, "accept a checkpoint that has only .bin weights (read without unpickling)"] = (
        False
    )
    wait_lock: Annotated[float, "seconds to wait for another process that writes to the same cache"] = 0.0


@dataclass(frozen=True, kw_only=True)
class TrainHeadsConfig(WorkConfig, HeadsConfig):
    """`vp train-heads`."""

    model: Annotated[tuple[str, ...], "encoder whose cache is used (default: the only cache there is)", REPEATABLE] = ()
    modalities: Annotated[
        tuple[str, ...], "of image,text,age,channel,words (default: those of the first three that are there)"
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


@dataclass(frozen=True, kw_only=True)
class SubmitConfig(WorkConfig):
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
    "submit": SubmitConfig,
    "score": ScoreConfig,
    "demo": DemoConfig,
}
"""Command -> its options; also the tables that `vp.toml` may hold."""
