"""A small dataset, its cache and a run over it, all written by hand, so that a test knows every number in it."""

import csv
import json
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from features.config import DatasetConfig
from features.progress import Silent
from features.store import EmbeddingStore
from features.videos import read_videos
from heads.intervals import calibrate, coverage
from pipeline.oof import SavedOutOfFold
from pipeline.reporting.sources import RunFiles, read_run_files
from pipeline.runs import building, open_run, seal
from pipeline.workspace import Workspace

MODALITIES = ("image", "text", "age")
BASELINE = 9.0
N_VIDEOS, N_FOLDS = 60, 3


class Told(Silent):
    """Progress that keeps its warnings."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, text: str) -> None:
        self.warnings.append(text)


class ReportWorld:
    """`root/dataset` and `root/work` with one run; the first video was never validated."""

    def __init__(self, root: Path, *, target: str = "log1p", modalities: tuple[str, ...] = MODALITIES) -> None:
        self.data, self.work = root / "dataset", Workspace(root / "work")
        self.target, self.modalities = target, modalities
        rng = np.random.default_rng(5)
        self.ids = [f"id-{row:02d}" for row in range(N_VIDEOS)]
        self.titles = [f"title {row}" for row in range(N_VIDEOS)]
        self.channels = [("big", "big", "small", f"only {row}")[row % 4] for row in range(N_VIDEOS)]
        self.years = [2015 + row % 6 for row in range(N_VIDEOS)]
        self.views = np.expm1(rng.normal(BASELINE, 1.5, N_VIDEOS)).astype(np.int64)
        self.fold = np.arange(N_VIDEOS) % N_FOLDS
        self.fold[0] = -1
        self.contributions = rng.normal(size=(len(modalities), N_VIDEOS))
        self.best = BASELINE + self.contributions.sum(axis=0)
        self.final = self.best + rng.normal(0, 0.1, N_VIDEOS)
        for values in (self.best, self.final, *self.contributions):
            values[0] = np.nan
        self.metrics: dict = {}
        self.encoders: dict[str, str] = {}

    @property
    def log_views(self) -> np.ndarray:
        return np.log1p(self.views) if self.target == "log1p" else self.views.astype(np.float64)

    @property
    def seen(self) -> np.ndarray:
        return self.fold >= 0

    @property
    def config(self) -> DatasetConfig:
        return DatasetConfig(data=self.data)

    def write_dataset(self) -> None:
        self.data.mkdir(parents=True, exist_ok=True)
        rows = zip(self.ids, self.channels, self.titles, self.views.tolist(), self.years, strict=True)
        with (self.data / "train_val.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([["id", "channel", "title", "views", "year"], *rows])

    def paint(self, size: tuple[int, int] = (48, 27)) -> None:
        folder = self.data / "train_val"
        folder.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(3)
        for id_ in self.ids:
            pixels = np.full((size[1], size[0], 3), rng.integers(0, 256, 3), np.uint8)
            Image.fromarray(pixels).save(folder / f"{id_}.jpg", "PNG")

    def embed(self, make) -> EmbeddingStore:
        """A cache named `fake`; `make` is that of one of conftest's worlds."""
        folder = self.work.cache("fake", "train_val")
        make(folder=folder, table=read_videos(self.config, "train_val"))
        store = EmbeddingStore.open(folder)
        self.encoders = {"fake": store.plan.encoder}
        return store

    def write_run(self, name: str = "hand", **metrics) -> None:
        self.metrics = self._metrics() | metrics
        with building(self.work.run(name)) as aside:
            self._table().to_csv(aside / "oof.csv", index=False, lineterminator="\n")
            sizes = [int((self.fold == fold).sum()) for fold in range(N_FOLDS)]
            info = {"fold": range(N_FOLDS), "train_size": [N_VIDEOS - size for size in sizes], "val_size": sizes}
            info |= {"best_epoch": [2, 1, 3], "best_msle": [1.0, 2.0, 3.0], "final_msle": [1.5, 2.5, 3.5]}
            pd.DataFrame(info).to_csv(aside / "fold_info.csv", index=False)
            (aside / "metrics.json").write_text(json.dumps(self.metrics))
            (aside / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in self._epochs()))
            seal(aside, self._record(name))

    def files(self, name: str = "hand") -> RunFiles:
        return read_run_files(open_run(self.work.run(name)))

    def _table(self) -> pd.DataFrame:
        columns = {"id": self.ids, "fold": self.fold, "log_views": self.log_views}
        columns |= {"log_pred_best": self.best, "log_pred_final": self.final}
        return pd.DataFrame(
            columns | {f"contribution_{m}": self.contributions[place] for place, m in enumerate(self.modalities)}
        )

    def _metrics(self) -> dict:
        share = 1 / len(self.modalities)
        numbers = {"shapley": 0.5, "share": share, "covariance_share": share, "alone": 0.6, "removed": 0.4}
        residuals = (self.log_views - self.final)[self.seen]
        measured = coverage(residuals, self.fold[self.seen].astype(np.int32))
        return {
            "run": "hand",
            "head": "mlp",
            "oof_msle_constant": 16.0,
            "fold_msle": [1.0, 2.0, 3.0],
            "fold_msle_final": [1.5, 2.5, 3.5],
            "weights": dict.fromkeys(self.modalities, share),
            "weights_sd": dict.fromkeys(self.modalities, 0.01),
            "fold_weights": [dict.fromkeys(self.modalities, share)] * N_FOLDS,
            "importance": dict.fromkeys(self.modalities, numbers),
            "intervals": calibrate(residuals).to_dict(),
            "coverage": [
                {
                    "level": level.level,
                    "overall": vars(level.overall),
                    "by_fold": {str(fold): vars(tally) for fold, tally in level.by_fold.items()},
                    "by_bin": {},
                }
                for level in measured
            ],
            "age_bin_edges_years": [2.0, 4.0],
            "duplicates_across_folds": {"title": 0},
            "seconds": 1.5,
        }

    def _epochs(self) -> list[dict]:
        weights = {f"weights/{modality}": 1 / len(self.modalities) for modality in self.modalities}
        return [
            {"epoch": epoch}
            | {
                f"fold_{fold}/{key}": value
                for key, value in ({"val/msle": 5.0 - epoch + fold, "train/loss_epoch": 0.5} | weights).items()
            }
            for epoch in (1, 2, 3)
            for fold in range(N_FOLDS)
        ] + [{"ensemble/oof_msle": 1.0}]

    def _record(self, name: str) -> dict:
        tags = {"image": "fake", "text": "fake"} if self.encoders else {}
        return {
            "name": name,
            "config": {"head": "mlp", "seed": 42},
            "modalities": list(self.modalities),
            "sources": [{"modality": m, "kind": m, "tag": tags.get(m, "")} for m in self.modalities],
            "encoders": self.encoders,
            "reference_date": "2021-01-01T00:00:00",
            "target": self.target,
            "folds": {"split": "kfold", "n": N_FOLDS, "seed": 42, "expanding": False, "digest": "d"},
            "rows": N_VIDEOS,
            "training_log_views": {"mean": 9.0, "sd": 1.0, "max": 14.0},
            "versions": {"vp": "0.1.0"},
            "created_utc": "2026-01-02T03:04:05+00:00",
        }


def out_of_fold(folds, log_views, predicted) -> SavedOutOfFold:
    """An `oof.csv` of a model that reads ages alone, whose best epoch is its last."""
    log_views, predicted = (np.array(values, np.float64) for values in (log_views, predicted))
    return SavedOutOfFold(
        run="run",
        ids=[str(row) for row in range(len(log_views))],
        fold_of=np.array(folds, np.int32),
        log_views=log_views,
        best=predicted,
        final=predicted,
        modalities=["age"],
        contributions=np.zeros((1, len(log_views))),
    )
