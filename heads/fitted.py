"""A trained member without torch: what it predicts, why, and how it is written down."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64

from heads.inputs import Block, Inputs, hat_basis, row_chunks
from heads.simplex import canonical_gauge
from heads.targets import Standardisation, Target


@dataclass(frozen=True, eq=False, kw_only=True)
class Head:
    """The network of one modality: linear layers with ReLU between them, on the z scale.

    Weights are (inputs, outputs). A scalar's head begins with an embedding layer: a `table` with one embedding per
    knot. Raises ValueError where the layers do not fit together.
    """

    weights: tuple[Float32[np.ndarray, "_ _"], ...]
    biases: tuple[Float32[np.ndarray, " _"], ...]
    knots: Float32[np.ndarray, " knot"] | None = None
    table: Float32[np.ndarray, "knot dim"] | None = None

    def __post_init__(self) -> None:
        if not self.weights or len(self.weights) != len(self.biases):
            raise ValueError(f"a head needs a bias for each layer, given {len(self.weights)} and {len(self.biases)}")
        widths = [weight.shape for weight in self.weights]
        outputs = [bias.shape[0] for bias in self.biases]
        fed_by = [self.weights[0].shape[0] if self.table is None else self.table.shape[1], *outputs]
        if widths != list(pairwise(fed_by)) or outputs[-1] != 1:
            raise ValueError(f"layers must fit together and end in one number, given {widths=} and {outputs=}")
        if (None if self.knots is None else len(self.knots)) != (None if self.table is None else len(self.table)):
            raise ValueError("an embedding layer needs one embedding per knot")

    @property
    def dim(self) -> int:
        """Width of the block that the head reads."""
        return self.weights[0].shape[0] if self.knots is None else 1

    def outputs(self, block: Block) -> Float64[np.ndarray, " video"]:
        """What the head gives for every row, whether present or not; raises ValueError for another width."""
        if block.values.shape[1] != self.dim:
            raise ValueError(
                f"the {block.modality} head reads vectors of {self.dim} numbers, given {block.values.shape[1]}: "
                "use the encoder it was trained on"
            )
        out = np.empty(len(block.values))
        for chunk in row_chunks(len(out)):
            out[chunk] = self._forward(block.values[chunk])
        return out

    def recentred(self, centre: float, scale: float) -> "Head":
        """The head whose output is `(output - centre) * scale`; only its last layer differs."""
        weight = (self.weights[-1] * scale).astype(np.float32)
        bias = ((self.biases[-1] - centre) * scale).astype(np.float32)
        return Head(
            weights=(*self.weights[:-1], weight), biases=(*self.biases[:-1], bias), knots=self.knots, table=self.table
        )

    def tensors(self) -> Iterator[tuple[str, Float32[np.ndarray, "..."]]]:
        """Every parameter by name."""
        if self.knots is not None and self.table is not None:
            yield from (("knots", self.knots), ("table", self.table))
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            yield from ((f"weight_{layer}", weight), (f"bias_{layer}", bias))

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, np.ndarray]) -> "Head":
        """The head of `dict(head.tensors())`."""
        layers = range(sum(name.startswith("weight_") for name in tensors))
        return cls(
            weights=tuple(tensors[f"weight_{layer}"] for layer in layers),
            biases=tuple(tensors[f"bias_{layer}"] for layer in layers),
            knots=tensors.get("knots"),
            table=tensors.get("table"),
        )

    def _forward(self, values: Float32[np.ndarray, "video dim"]) -> Float32[np.ndarray, " video"]:
        hidden = values
        if self.knots is not None and self.table is not None:
            hidden = hat_basis(values[:, 0], self.knots) @ self.table
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            hidden = np.maximum(hidden @ weight + bias, 0)
        outputs: Float32[np.ndarray, " video"] = (hidden @ self.weights[-1] + self.biases[-1])[:, 0]
        return outputs


@dataclass(frozen=True, eq=False, kw_only=True)
class FittedHeads:
    """One trained member at one moment, in the canonical gauge of `heads.simplex`.

    With z the standardised log views, z = intercept + sum over m of weights_m * heads_m, each head being centred on
    the member's training rows and counting 0 where its modality is absent. `raw_weights` are the simplex weights as
    they were trained.
    """

    heads: Mapping[str, Head]
    weights: Float64[np.ndarray, " modality"]
    raw_weights: Float64[np.ndarray, " modality"]
    intercept: float
    standardisation: Standardisation
    target: Target

    @classmethod
    def canonical(
        cls,
        heads: Mapping[str, Head],
        *,
        raw_weights: Float64[np.ndarray, " modality"],
        intercept: float,
        train_inputs: Inputs,
        standardisation: Standardisation,
        target: Target,
    ) -> "FittedHeads":
        """A trained model rewritten; where every modality is present, it predicts what it did before."""
        outputs = np.stack([head.outputs(train_inputs.block(modality)) for modality, head in heads.items()])
        gauge = canonical_gauge(outputs, train_inputs.present, raw_weights, intercept)
        return cls(
            heads={
                modality: head.recentred(centre, scale)
                for (modality, head), centre, scale in zip(
                    heads.items(), gauge.centre.tolist(), gauge.scale.tolist(), strict=True
                )
            },
            weights=gauge.weights,
            raw_weights=raw_weights,
            intercept=gauge.intercept,
            standardisation=standardisation,
            target=target,
        )

    @property
    def modalities(self) -> tuple[str, ...]:
        """The modalities it reads, in the order of its weights."""
        return tuple(self.heads)

    @property
    def baseline(self) -> float:
        """Log views of a video of which nothing is known."""
        return self.standardisation.mean + self.standardisation.sd * self.intercept

    def contributions(self, inputs: Inputs) -> Float64[np.ndarray, "modality video"]:
        """What each modality adds to the baseline, in log views: exp of it is a factor on 1 + views.

        Its mean over the training rows is 0; where the modality is absent it is 0.
        """
        blocks = [inputs.block(modality) for modality in self.modalities]
        terms = [
            weight * head.outputs(block) * block.present
            for weight, head, block in zip(self.weights, self.heads.values(), blocks, strict=True)
        ]
        contributions: Float64[np.ndarray, "modality video"] = self.standardisation.sd * np.stack(terms)
        return contributions

    def predict(self, inputs: Inputs) -> Float64[np.ndarray, " video"]:
        """Log views: the baseline plus all contributions."""
        log_views: Float64[np.ndarray, " video"] = self.baseline + self.contributions(inputs).sum(axis=0)
        return log_views

    def to_arrays(self) -> dict[str, Float32[np.ndarray, "..."]]:
        """Parameters of the heads by name, such as `image.weight_0`."""
        return {
            f"{modality}.{name}": tensor for modality, head in self.heads.items() for name, tensor in head.tensors()
        }

    def to_metadata(self) -> dict[str, Any]:
        """Everything else, for JSON, and the shapes that `from_arrays` demands."""
        return {
            "modalities": list(self.modalities),
            "weights": self.weights.tolist(),
            "raw_weights": self.raw_weights.tolist(),
            "intercept": self.intercept,
            "target": self.target.kind,
            "target_mean": self.standardisation.mean,
            "target_sd": self.standardisation.sd,
            "tensors": {name: list(tensor.shape) for name, tensor in self.to_arrays().items()},
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, Any]) -> "FittedHeads":
        """The heads that `to_arrays` and `to_metadata` describe.

        Raises ValueError for metadata without one of its keys and for tensors that are missing, unknown, or not as
        large as the metadata says.
        """
        _check_metadata(metadata)
        _check_tensors(arrays, metadata["tensors"])
        return cls(
            heads={modality: Head.from_tensors(_below(arrays, modality)) for modality in metadata["modalities"]},
            weights=np.array(metadata["weights"], dtype=np.float64),
            raw_weights=np.array(metadata["raw_weights"], dtype=np.float64),
            intercept=float(metadata["intercept"]),
            standardisation=Standardisation(mean=float(metadata["target_mean"]), sd=float(metadata["target_sd"])),
            target=Target(metadata["target"]),
        )


def _below(arrays: Mapping[str, np.ndarray], modality: str) -> dict[str, np.ndarray]:
    prefix = f"{modality}."
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def _check_metadata(metadata: Mapping[str, Any]) -> None:
    known = ("modalities", "weights", "raw_weights", "intercept", "target", "target_mean", "target_sd", "tensors")
    if missing := [key for key in known if key not in metadata]:
        raise ValueError(f"the heads' metadata must have {', '.join(known)}; missing: {', '.join(missing)}")
    lengths = {key: len(metadata[key]) for key in ("modalities", "weights", "raw_weights")}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"the heads' metadata must have one weight per modality, given {lengths}")


def _check_tensors(arrays: Mapping[str, np.ndarray], shapes: Mapping[str, Sequence[int]]) -> None:
    problems = [f"{name} is missing" for name in shapes if name not in arrays]
    problems += [f"{name} is unknown" for name in arrays if name not in shapes]
    problems += [
        f"{name} has shape {list(array.shape)} and type {array.dtype}, not {list(shapes[name])} and float32"
        for name, array in arrays.items()
        if name in shapes and (array.shape != tuple(shapes[name]) or array.dtype != np.float32)
    ]
    if problems:
        raise ValueError(f"the heads' tensors must be those of their metadata: {'; '.join(problems)}")
