"""What tells a fine-tuned run from others: towers of its own for each member, and stored predictions of test videos."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from io import BytesIO
from typing import Any

import numpy as np
from jaxtyping import Float64

from features.errors import CacheError
from features.videos import VideoTable
from pipeline.runs import Moment, Run

TEST_PREDICTIONS = "test_predictions.csv"


def towers_of(run: Run, fold: int, moment: Moment) -> str:
    """The file of a member's towers, inside the run's folder; empty for a run whose members share frozen ones."""
    return str(run.part("towers")[fold][moment]) if run.is_finetuned else ""


@dataclass(frozen=True, eq=False)
class StoredPredictions:
    """What each fold predicts for the test videos, in log views, and what each modality added."""

    log_views: Float64[np.ndarray, "fold video"]
    contributions: Float64[np.ndarray, "fold modality video"]
    modalities: tuple[str, ...]

    @property
    def effects(self) -> list[dict[str, float]]:
        """Mean contribution of each modality over the videos, by fold."""
        means = self.contributions.mean(axis=2).tolist()
        return [dict(zip(self.modalities, mean, strict=True)) for mean in means]


def stored_predictions(run: Run, videos: VideoTable, moment: Moment) -> StoredPredictions | None:
    """The predictions of a fine-tuned run for `videos`, in their order; None for another run.

    Raises
    ------
    CacheError
        The run has predicted other videos: its towers must be run again for these.
    """
    if not run.is_finetuned:
        return None
    if what := other_videos(run, videos):
        raise CacheError(
            f"the fine-tuned run {run.name} {what}: run `vp finetune` again for {videos.path}, or `vp predict --csv`"
        )
    path = run.verified(TEST_PREDICTIONS)
    try:
        return _read_predictions(path.read_bytes(), run, videos, moment)
    except (ValueError, KeyError, OverflowError) as error:
        raise CacheError(f"{path} is damaged ({error}): run `vp finetune` again") from error


def other_videos(run: Run, videos: VideoTable) -> str:
    """Why a fine-tuned run has no predictions for `videos`; empty if it has, and for another run, which needs none."""
    told = run.record.get("test_digest")
    if not run.is_finetuned or told == table_digest(videos):
        return ""
    return "has predicted no test videos" if told is None else "has predicted other videos, titles or dates"


def _read_predictions(raw: bytes, run: Run, videos: VideoTable, moment: Moment) -> StoredPredictions:
    """Raises ValueError or KeyError for a table that is not of this run and these videos."""
    import pandas as pd  # noqa: PLC0415 - slow, and only who reads or writes predictions needs it

    table = pd.read_csv(BytesIO(raw), dtype={"id": str}, keep_default_na=False)
    if table["id"].tolist() != videos.ids * run.n_folds:
        raise ValueError("its videos are others")
    shape = (run.n_folds, len(videos))
    names = [f"log_pred_{moment}", *(f"contribution_{modality}" for modality in run.modalities)]
    log_views, *contributions = (table[name].to_numpy(np.float64).reshape(shape) for name in names)
    if not np.isfinite([log_views, *contributions]).all():
        raise ValueError("a number is not finite")
    return StoredPredictions(log_views, np.stack(contributions, axis=1), tuple(run.modalities))


def predictions_table(ids: Sequence[str], folds: Sequence[Mapping[str, np.ndarray]]) -> Any:
    """A pandas table as `test_predictions.csv` holds it: one row per fold and video, with the columns of `oof.csv`."""
    import pandas as pd  # noqa: PLC0415 - as above

    parts = [pd.DataFrame({"id": ids, "fold": fold, **columns}) for fold, columns in enumerate(folds)]
    return pd.concat(parts, ignore_index=True)


def table_digest(videos: VideoTable) -> str:
    """SHA-256 over ids, texts, dates and channels: what predictions were made of, apart from the thumbnails."""
    digest = sha256()
    for part in (json.dumps([videos.ids, videos.channel]).encode(), videos.text_digest, videos.year):
        digest.update(part if isinstance(part, bytes) else np.ascontiguousarray(part).tobytes())
    digest.update(videos.published.astype("datetime64[s]").astype(np.int64).tobytes())
    return digest.hexdigest()
