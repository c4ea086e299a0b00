"""What a fine-tuned run holds beside its heads: the towers of each member, and its predictions of the test videos.

Towers are kept as their difference to the frozen weights, in float16: of each changed tensor, as vp loads it.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from jaxtyping import Float64

from features import durable
from features.encoders import EncoderConfig
from features.errors import CacheError
from features.videos import VideoTable
from pipeline.runs import Run

if TYPE_CHECKING:
    import torch

    from features.families import TowerEncoder

FORMAT = "vp-towers"
SCHEMA = 1
TEST_PREDICTIONS = "test_predictions.csv"
_KEY = "vp"

Moment = Literal["best", "final"]


def towers_name(name: str, fold: int, moment: str) -> str:
    """Where a run keeps the towers of a member, inside its folder."""
    return f"checkpoints/{name}_fold{fold}_{moment}_towers.safetensors"


def rounded_difference(
    start: Mapping[str, "torch.Tensor"], tuned: Mapping[str, "torch.Tensor"]
) -> "dict[str, torch.Tensor]":
    """Differences of the towers' tensors that changed, in float16; heads are kept elsewhere."""
    import torch  # noqa: PLC0415 - whoever only reads predictions does not need it

    differences = {}
    for name, value in tuned.items():
        difference = (value - start[name]).to(torch.float16)
        if not name.startswith("heads.") and bool(difference.any()):
            differences[name] = difference
    return differences


def write_towers(path: Path, differences: "Mapping[str, torch.Tensor]", facts: Mapping[str, Any]) -> None:
    """Publish the towers of a member; `facts` are kept in the file."""
    import safetensors.torch  # noqa: PLC0415 - as above

    document = json.dumps({"format": FORMAT, "schema": SCHEMA, **facts}, sort_keys=True)
    durable.publish(path, safetensors.torch.save(dict(differences), metadata={_KEY: document}))


def is_finetuned(run: Run) -> bool:
    """Whether the run has towers of its own, so that the vectors in the caches are not what its heads read."""
    return "finetuned_from" in run.record


def load_tuned_encoder(
    run: Run, fold: int, moment: Moment, *, encoder: EncoderConfig, kinds: Sequence[str], device: str, precision: str
) -> "TowerEncoder":
    """The encoder of one member; `encoder` is the frozen one that the run was made with.

    The differences are added in float32, before any cast, as bf16 would round most of them away.

    Raises
    ------
    CacheError
        The file is missing or damaged, or belongs to another encoder.
    """
    from features.families import load_encoder  # noqa: PLC0415 - torch and transformers

    path = run.verified(towers_name(run.name, fold, moment))
    differences = _differences(path, encoder)
    tuned = load_encoder(encoder, kinds, device, "fp32")
    add_differences(tuned, differences)
    if precision == "fp32":
        return tuned
    cast = load_encoder(encoder, kinds, device, precision)
    for kind, tower in cast.towers.items():
        own = dict(tuned.towers[kind].named_parameters())
        for name, parameter in tower.named_parameters():
            parameter.data.copy_(own[name].data)
    return cast


def add_differences(encoder: "TowerEncoder", differences: "Mapping[str, torch.Tensor]") -> None:
    """Make frozen towers tuned ones."""
    for kind, tower in encoder.towers.items():
        for name, parameter in tower.named_parameters():
            if (difference := differences.get(f"{kind}.{name}")) is not None:
                parameter.data.add_(difference.to(parameter.device, parameter.dtype))


def _differences(path: Path, encoder: EncoderConfig) -> "dict[str, torch.Tensor]":
    import safetensors.torch  # noqa: PLC0415 - as above
    from safetensors import SafetensorError, safe_open  # noqa: PLC0415 - as above

    try:
        with safe_open(path, "pt") as file:
            document = json.loads((file.metadata() or {})[_KEY])
        differences = safetensors.torch.load_file(path)
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise CacheError(f"{path} is missing or damaged ({error}): run `vp finetune` again") from error
    if (document["format"], document["schema"]) != (FORMAT, SCHEMA):
        raise CacheError(f"{path} has format {document['format']} {document['schema']}: run `vp finetune` again")
    if document["weights_sha256"] != encoder.weights_sha256:
        raise CacheError(
            f"{path} changes the encoder with weights {document['weights_sha256'][:12]}, however {encoder.tag} has "
            f"{encoder.weights_sha256[:12]}: give the encoder that the run was made with"
        )
    return differences


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
    if not is_finetuned(run):
        return None
    told = run.record.get("test_digest")
    if told != table_digest(videos):
        what = "has predicted no test videos" if told is None else "has predicted other videos, titles or dates"
        raise CacheError(f"the fine-tuned run {run.name} {what}: run `vp finetune` again for {videos.path}")
    raw = run.verified(TEST_PREDICTIONS).read_bytes()
    table = pd.read_csv(BytesIO(raw), dtype={"id": str}, keep_default_na=False)
    shape = (run.n_folds, len(videos))
    names = [f"contribution_{modality}" for modality in run.modalities]
    contributions = np.stack([table[name].to_numpy(np.float64).reshape(shape) for name in names], axis=1)
    return StoredPredictions(
        table[f"log_pred_{moment}"].to_numpy(np.float64).reshape(shape), contributions, tuple(run.modalities)
    )


def predictions_table(ids: Sequence[str], folds: Sequence[Mapping[str, np.ndarray]]) -> pd.DataFrame:
    """As `test_predictions.csv` holds them: for each fold one row per video, with the columns of `oof.csv`."""
    parts = [pd.DataFrame({"id": ids, "fold": fold, **columns}) for fold, columns in enumerate(folds)]
    return pd.concat(parts, ignore_index=True)


def table_digest(videos: VideoTable) -> str:
    """SHA-256 over ids, texts, dates and channels: what predictions were made of, apart from the thumbnails."""
    digest = sha256()
    for part in (json.dumps([videos.ids, videos.channel]).encode(), videos.text_digest, videos.year):
        digest.update(part if isinstance(part, bytes) else np.ascontiguousarray(part).tobytes())
    digest.update(videos.published.astype("datetime64[s]").astype(np.int64).tobytes())
    return digest.hexdigest()
