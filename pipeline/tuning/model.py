"""The towers of an encoder and the heads of one fold as one model, whose parameters can be taken out and put back."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Float64, Int64

from features.augment import random_crops
from features.kinds import IMAGE
from features.torch_encoder import sent
from heads.differentiable import DifferentiableHeads, KnownRows
from pipeline.config import FinetuneConfig
from pipeline.tuning.batches import Batch, RowFeed
from pipeline.tuning.towers import TrainedTowers, Values, copied, put

HEAD_WEIGHT_DECAY = 0.01
EMBED_TIMES = 4
"""So many times the rows of a training batch are taken without gradients: nothing is kept of them, and more keep a GPU
busy."""


@dataclass(frozen=True, eq=False)
class Vectors:
    """Vectors by kind, in float32 and not normalised, and where there is one."""

    vectors: dict[str, Float32[np.ndarray, "row dim"]]
    present: Mapping[str, Bool[np.ndarray, " row"]]


class TunedModel:
    """Towers in float32, heads on top; `kind_of` says which vector each embedded modality reads."""

    def __init__(
        self,
        towers: TrainedTowers,
        heads: DifferentiableHeads,
        kind_of: Mapping[str, str],
        config: FinetuneConfig,
        *,
        device: str,
        precision: str,
    ) -> None:
        self._towers, self.kind_of, self.device = towers, kind_of, torch.device(device)
        self.heads = heads.to(self.device)
        self._bf16 = precision == "bf16"
        self._embed_rows = EMBED_TIMES * config.batch_size
        of_heads = {f"heads.{name}": parameter for name, parameter in self.heads.named_parameters()}
        self.parameters: dict[str, torch.nn.Parameter] = towers.parameters | of_heads
        self.parameter_groups = [*towers.groups, *self.heads.parameter_groups(config.head_lr, HEAD_WEIGHT_DECAY)]

    def values(self) -> Values:
        """A copy of the trained parameters as they are now, on the CPU."""
        return copied(self.parameters)

    def put(self, values: Mapping[str, torch.Tensor]) -> None:
        """Make the parameters these values."""
        put(self.parameters, values)

    @contextlib.contextmanager
    def holding(self, values: Mapping[str, torch.Tensor]) -> Iterator[None]:
        """The model with other values, for a while."""
        before = self.values()
        self.put(values)
        try:
            yield
        finally:
            self.put(before)

    def training(self, *, on: bool) -> None:
        """Towers in the mode of training, or of use."""
        self._towers.training(on=on)

    def vectors(self, batch: Batch, augment: torch.Generator | None = None) -> dict[str, Float[torch.Tensor, "row _"]]:
        """Vectors of a batch by kind; training pictures are cropped at random."""
        vectors: dict[str, Float[torch.Tensor, "row _"]] = {}
        crops = None
        if batch.pixels is not None:
            pixels = sent(batch.pixels, self.device)
            # Not under autocast: in bf16 crops would be looked up half a pixel off.
            crops = pixels if augment is None else random_crops(pixels, augment)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._bf16):
            if crops is not None:
                vectors[IMAGE] = self._towers.encoder.image_vectors(crops)
            for kind, texts in batch.texts.items():
                vectors[kind] = self._towers.encoder.text_vectors(texts.tokens, texts.pad_to)
        return vectors

    def embed(self, feed: RowFeed, rows: Int64[np.ndarray, " row"], tell: Callable[[int], None]) -> Vectors:
        """Vectors of many rows, without gradients; `tell` hears of rows as they are done."""
        parts: list[dict[str, Any]] = []
        present: list[Mapping[str, Any]] = []
        self.training(on=False)
        with torch.no_grad():
            for batch in feed.batches(rows, self._embed_rows):
                parts.append({kind: part.float().cpu().numpy() for kind, part in self.vectors(batch).items()})
                present.append(batch.present)
                tell(len(batch.rows))
        return Vectors(_joined(parts), _joined(present))

    def z_and_terms(
        self, vectors: Mapping[str, torch.Tensor], present: Mapping[str, np.ndarray], known: KnownRows
    ) -> tuple[Float[torch.Tensor, " row"], Float[torch.Tensor, "trained row"], Float[torch.Tensor, "trained row"]]:
        """Predicted z of rows; the outputs of the trained heads; where their modalities are present."""
        heads = self.heads
        here = {
            name: sent(torch.from_numpy(present[self.kind_of[name]].astype(np.float32)), self.device)
            for name in heads.embedded
        }
        there = heads.present(here, known)
        outputs = heads.outputs({name: vectors[self.kind_of[name]] for name in heads.embedded}, known)
        return heads.combined(outputs, there, known), outputs, there

    def predict(self, embedded: Vectors, known: KnownRows) -> Float64[np.ndarray, " row"]:
        """Predicted z of rows that were embedded."""
        on_device = {kind: sent(torch.from_numpy(part), self.device) for kind, part in embedded.vectors.items()}
        with torch.no_grad():
            z = self.z_and_terms(on_device, embedded.present, known)[0]
        return z.double().cpu().numpy()


def _joined(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {kind: np.concatenate([part[kind] for part in parts]) for kind in parts[0]}
