"""A trained member without torch: what it predicts, why, and how it is written down."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64, Int64

from heads.inputs import JOINT, AnyBlock, Inputs, row_chunks
from heads.readers import Columns, Reader, reader_from
from heads.simplex import Gauge, canonical_gauge
from heads.targets import Standardisation, Target


@dataclass(frozen=True, eq=False, kw_only=True)
class Branch:
    """A network from one modality to one number, on the z scale: linear layers with ReLU between them.

    `reader` turns the modality into columns, which a `table` with one embedding per column may replace first. Weights
    are (inputs, outputs); a single layer is a linear head. Raises ValueError where the layers do not fit together.
    """

    reader: Reader
    weights: tuple[Float32[np.ndarray, "_ _"], ...]
    biases: tuple[Float32[np.ndarray, " _"], ...]
    table: Float32[np.ndarray, "column dim"] | None = None

    def __post_init__(self) -> None:
        if not self.weights or len(self.weights) != len(self.biases):
            raise ValueError(f"a head needs a bias for each layer, given {len(self.weights)} and {len(self.biases)}")
        widths = [weight.shape for weight in self.weights]
        outputs = [bias.shape[0] for bias in self.biases]
        fed_by = [self.reader.width if self.table is None else self.table.shape[1], *outputs]
        if widths != list(pairwise(fed_by)) or outputs[-1] != 1:
            raise ValueError(f"layers must fit together and end in one number, given {widths=} and {outputs=}")
        if self.table is not None and len(self.table) != self.reader.width:
            raise ValueError(f"an embedding layer needs {self.reader.width} embeddings, given {len(self.table)}")

    def forward(self, block: AnyBlock) -> Float32[np.ndarray, " video"]:
        """Outputs for every row, whether present or not."""
        return self.after(self.reader.read(block))

    def after(self, columns: Columns) -> Float32[np.ndarray, " video"]:
        """Outputs for rows whose columns were read already."""
        hidden = columns
        if self.table is not None:
            hidden = hidden @ self.table
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            hidden = np.maximum(hidden @ weight + bias, 0)
        outputs: Float32[np.ndarray, " video"] = (hidden @ self.weights[-1] + self.biases[-1])[:, 0]
        return outputs

    def recentred(self, centre: float, scale: float) -> "Branch":
        """The branch whose output is `(output - centre) * scale`; only its last layer differs."""
        weight = (self.weights[-1] * scale).astype(np.float32)
        bias = ((self.biases[-1] - centre) * scale).astype(np.float32)
        return replace(self, weights=(*self.weights[:-1], weight), biases=(*self.biases[:-1], bias))

    def tensors(self) -> Iterator[tuple[str, np.ndarray]]:
        """Every parameter by name."""
        yield from ((f"reader.{name}", tensor) for name, tensor in self.reader.tensors())
        if self.table is not None:
            yield "table", self.table
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            yield from ((f"weight_{layer}", weight), (f"bias_{layer}", bias))

    @classmethod
    def from_tensors(cls, kind: str, tensors: Mapping[str, np.ndarray]) -> "Branch":
        """The branch of `dict(branch.tensors())`, whose reader is of this kind."""
        layers = range(sum(name.startswith("weight_") for name in tensors))
        return cls(
            reader=reader_from(kind, below(tensors, "reader")),
            weights=tuple(tensors[f"weight_{layer}"] for layer in layers),
            biases=tuple(tensors[f"bias_{layer}"] for layer in layers),
            table=tensors.get("table"),
        )


@dataclass(frozen=True, eq=False)
class Head:
    """The regressor of one modality: the sum of its branches."""

    branches: tuple[Branch, ...]

    def outputs(self, block: AnyBlock, rows: Int64[np.ndarray, " row"] | None = None) -> Float64[np.ndarray, " video"]:
        """What the head gives for some rows (all where None), whether present or not; in chunks."""
        n_rows = block.n_videos if rows is None else len(rows)
        out = np.zeros(n_rows)
        for chunk in row_chunks(n_rows):
            part = block.take(chunk if rows is None else rows[chunk])
            for branch in self.branches:
                out[chunk] += branch.forward(part)
        return out

    def recentred(self, centre: float, scale: float) -> "Head":
        """The head whose output is `(output - centre) * scale`."""
        first, *others = self.branches
        return Head((first.recentred(centre, scale), *(branch.recentred(0.0, scale) for branch in others)))

    def tensors(self) -> Iterator[tuple[str, np.ndarray]]:
        """Every parameter by name, such as `0.weight_1`."""
        for index, branch in enumerate(self.branches):
            yield from ((f"{index}.{name}", tensor) for name, tensor in branch.tensors())

    @property
    def kinds(self) -> list[str]:
        """How each branch reads, for `from_tensors`."""
        return [branch.reader.kind for branch in self.branches]

    @classmethod
    def from_tensors(cls, kinds: Sequence[str], tensors: Mapping[str, np.ndarray]) -> "Head":
        """The head of `dict(head.tensors())` and `head.kinds`."""
        branches = [Branch.from_tensors(kind, below(tensors, str(index))) for index, kind in enumerate(kinds)]
        return cls(tuple(branches))


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
        inputs: Inputs,
        train_rows: Int64[np.ndarray, " row"],
        standardisation: Standardisation,
        target: Target,
        row_weights: Float64[np.ndarray, " row"] | None = None,
    ) -> "FittedHeads":
        """A trained model rewritten; where every modality is present, it predicts what it did before."""
        blocks = [inputs.block(modality) for modality in heads]
        outputs = np.stack(
            [head.outputs(block, train_rows) for head, block in zip(heads.values(), blocks, strict=True)]
        )
        present = np.stack([block.present[train_rows] for block in blocks])
        gauge = canonical_gauge(outputs, present, raw_weights, intercept, row_weights)
        return cls.in_gauge(heads, gauge, raw_weights, standardisation, target)

    @classmethod
    def in_gauge(
        cls,
        heads: Mapping[str, Head],
        gauge: Gauge,
        raw_weights: Float64[np.ndarray, " modality"],
        standardisation: Standardisation,
        target: Target,
    ) -> "FittedHeads":
        """A trained model rewritten as its gauge says."""
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
        """Its terms, in the order of its weights: the modalities it reads, then `joint` if it reads across them."""
        return tuple(self.heads)

    @property
    def additive(self) -> bool:
        """Whether every term reads one modality alone; fine-tuning an encoder needs that."""
        return JOINT not in self.heads

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

    def averaged_with(self, others: Sequence["FittedHeads"]) -> "FittedHeads":
        """The heads that predict the mean of these and others: every branch of each, its share of the mean.

        Raises ValueError where they were not trained on the same rows and modalities.
        """
        members = (self, *others)
        if any(m.modalities != self.modalities or m.standardisation != self.standardisation for m in members):
            raise ValueError("only heads of the same fold and modalities have a mean")
        weights = np.mean([member.weights for member in members], axis=0)

        def mean_head(index: int, modality: str) -> Head:
            whole = len(members) * weights[index]
            shares = [float(m.weights[index] / whole) if whole else 0.0 for m in members]
            parts = [m.heads[modality].recentred(0.0, share) for m, share in zip(members, shares, strict=True)]
            return Head(tuple(branch for part in parts for branch in part.branches))

        return replace(
            self,
            heads={modality: mean_head(index, modality) for index, modality in enumerate(self.modalities)},
            weights=weights,
            raw_weights=np.mean([member.raw_weights for member in members], axis=0),
            intercept=float(np.mean([member.intercept for member in members])),
        )

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Parameters of the heads by name, such as `image.0.weight_0`."""
        return {
            f"{modality}.{name}": tensor for modality, head in self.heads.items() for name, tensor in head.tensors()
        }

    def to_metadata(self) -> dict[str, Any]:
        """Everything else, for JSON, and the shapes that `from_arrays` demands."""
        return {
            "kind": "heads",
            "modalities": list(self.modalities),
            "weights": self.weights.tolist(),
            "raw_weights": self.raw_weights.tolist(),
            "intercept": self.intercept,
            "target": self.target.kind,
            "target_mean": self.standardisation.mean,
            "target_sd": self.standardisation.sd,
            "readers": {modality: head.kinds for modality, head in self.heads.items()},
            "tensors": declared(self.to_arrays()),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, Any]) -> "FittedHeads":
        """The heads that `to_arrays` and `to_metadata` describe.

        Raises ValueError for metadata without one of its keys and for tensors that are missing, unknown, not finite, or
        not as large as the metadata says.
        """
        _check_metadata(metadata)
        check_tensors(arrays, metadata["tensors"])
        try:
            heads = cls._from_checked(arrays, metadata)
        except KeyError as error:
            raise ValueError(f"the heads' tensors lack {error}") from error
        if unused := sorted(arrays.keys() - heads.to_arrays().keys()):
            raise ValueError(f"the heads' metadata do not say what these tensors are: {', '.join(unused)}")
        return heads

    @classmethod
    def _from_checked(cls, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, Any]) -> "FittedHeads":
        return cls(
            heads={
                modality: Head.from_tensors(metadata["readers"][modality], below(arrays, modality))
                for modality in metadata["modalities"]
            },
            weights=np.array(metadata["weights"], dtype=np.float64),
            raw_weights=np.array(metadata["raw_weights"], dtype=np.float64),
            intercept=float(metadata["intercept"]),
            standardisation=Standardisation(mean=float(metadata["target_mean"]), sd=float(metadata["target_sd"])),
            target=Target(metadata["target"]),
        )


def below(arrays: Mapping[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    """The arrays whose names begin with `name` and a dot, without that."""
    prefix = f"{name}."
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def _check_metadata(metadata: Mapping[str, Any]) -> None:
    known = (
        *("modalities", "weights", "raw_weights", "intercept", "target", "target_mean", "target_sd"),
        *("readers", "tensors"),
    )
    if missing := [key for key in known if key not in metadata]:
        raise ValueError(f"the heads' metadata must have {', '.join(known)}; missing: {', '.join(missing)}")
    lengths = {key: len(metadata[key]) for key in ("modalities", "weights", "raw_weights")}
    if len(set(metadata["modalities"])) < len(metadata["modalities"]):
        raise ValueError(f"the heads' metadata must name a modality once, given {metadata['modalities']}")
    if not np.isfinite([*metadata["weights"], *metadata["raw_weights"], metadata["intercept"]]).all():
        raise ValueError("the heads' weights and intercept must be finite")
    if len(set(lengths.values())) > 1:
        raise ValueError(f"the heads' metadata must have one weight per modality, given {lengths}")


def declared(arrays: Mapping[str, np.ndarray]) -> dict[str, list[Any]]:
    """Type and shape of each array, for JSON."""
    return {name: [str(array.dtype), *array.shape] for name, array in arrays.items()}


def check_tensors(arrays: Mapping[str, np.ndarray], expected: Mapping[str, Sequence[Any]]) -> None:
    """Raise ValueError unless these are just the arrays that were declared, without a NaN."""
    found = declared(arrays)
    problems = [f"{name} is missing" for name in expected if name not in found]
    problems += [f"{name} is unknown" for name in found if name not in expected]
    problems += [f"{name} is not finite" for name, array in arrays.items() if np.isnan(array).any()]
    problems += [
        f"{name} is {found[name]}, not {list(expected[name])}"
        for name in found
        if name in expected and found[name] != list(expected[name])
    ]
    if problems:
        raise ValueError(f"the heads' tensors must be those of their metadata: {'; '.join(problems)}")
