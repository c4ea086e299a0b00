"""Fitted heads as a torch module on embeddings: what lets gradients reach the encoder that makes them.

The module begins as the fitted model exactly and is written back as one. Heads of embeddings and of numbers (the age)
are trained with the weights; readers stay as they were fitted. A head that reads a name or words (`channel`, `words`)
stays as it is: its term is a constant of each row.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64, Int64

from heads.fitted import Branch, FittedHeads, Head
from heads.inputs import AnyBlock, Category, Inputs
from heads.readers import AsIs, CategoryMeans, Knots, Projection

LEAST_SHARE = 1e-3
"""Share of the weights that a modality starts with at least: logarithms need one. Its head shrinks by as much."""


@dataclass(frozen=True, eq=False)
class Learning:
    """Which rows a fold learns from, and their targets on its z scale; `rng` parts them.

    A channel's mean holds the target of the very row that is to learn from it: these rows read it from the others.
    """

    train_rows: Int64[np.ndarray, " train"]
    z: Float64[np.ndarray, " row"]
    rng: np.random.Generator


@dataclass(frozen=True, eq=False)
class KnownRows:
    """What is known of some rows without an encoder.

    offset
        The sum of the terms that stay as they are, on the z scale.
    columns
        Modality -> for each of its branches what its reader read.
    present
        Modality -> 1 where it is present, else 0; of those in `columns`.
    """

    offset: Float[torch.Tensor, " row"]
    columns: Mapping[str, Sequence[Float[torch.Tensor, "row column"]]]
    present: Mapping[str, Float[torch.Tensor, " row"]]

    def to(self, device: torch.device) -> "KnownRows":
        """The same on a device."""
        return self._each(lambda values: values.to(device))

    def take(self, rows: Int64[torch.Tensor, " row"]) -> "KnownRows":
        """These rows, given where the values are."""
        return self._each(lambda values: values[rows])

    def _each(self, made: Callable[[torch.Tensor], torch.Tensor]) -> "KnownRows":
        return KnownRows(
            made(self.offset),
            {name: [made(part) for part in parts] for name, parts in self.columns.items()},
            {name: made(present) for name, present in self.present.items()},
        )


class DifferentiableHeads(torch.nn.Module):
    """z = intercept + offset + sum over trained m of weight_m * head_m(x_m) * present_m.

    The weights stay on the simplex: those of frozen heads keep their shares, the others share the rest by a softmax.
    """

    def __init__(self, fitted: FittedHeads) -> None:
        super().__init__()
        shares = np.maximum(fitted.weights, LEAST_SHARE)
        shares /= shares.sum()
        scaled = {
            name: head.recentred(0.0, float(weight / share))
            for (name, head), weight, share in zip(fitted.heads.items(), fitted.weights, shares, strict=True)
        }
        self._fitted = replace(fitted, heads=scaled, weights=shares)
        self.trained = tuple(name for name, head in scaled.items() if not _is_frozen(head))
        self.embedded = tuple(name for name in self.trained if not _reads(scaled[name], Knots))
        self.heads = torch.nn.ModuleList(_Branches(scaled[name].branches) for name in self.trained)
        own = torch.tensor([shares[fitted.modalities.index(name)] for name in self.trained], dtype=torch.float32)
        self._mass = float(own.sum())
        self.logits = torch.nn.Parameter(torch.log(own))
        self.intercept = torch.nn.Parameter(torch.tensor(fitted.intercept, dtype=torch.float32))

    @property
    def modalities(self) -> tuple[str, ...]:
        """All modalities, in the order of `weights`."""
        return self._fitted.modalities

    @property
    def shares(self) -> Float[torch.Tensor, " trained"]:
        """Weights of the trained modalities."""
        return self._mass * torch.softmax(self.logits, dim=0)

    def known(self, inputs: Inputs | None, n_rows: int, learning: Learning | None = None) -> KnownRows:
        """What the frozen heads and the readers say of rows; `inputs` needs no embeddings, so there may be none.

        With `learning`, rows to learn from are read as they were when the heads were fitted.
        """
        offset = np.zeros(n_rows)
        columns, present = {}, {}
        for name, weight in zip(self._fitted.modalities, self._fitted.weights, strict=True):
            if name in self.embedded or inputs is None:
                continue
            head, block = self._fitted.heads[name], inputs.block(name)
            if name in self.trained:
                columns[name] = [torch.from_numpy(branch.reader.read(block)) for branch in head.branches]
                present[name] = torch.from_numpy(block.present.astype(np.float32))
            else:
                offset += weight * _frozen_outputs(head, block, learning) * block.present
        return KnownRows(torch.from_numpy(offset.astype(np.float32)), columns, present)

    def outputs(
        self, vectors: Mapping[str, Float[torch.Tensor, "row dim"]], known: KnownRows
    ) -> Float[torch.Tensor, "trained row"]:
        """Outputs of the trained heads; `vectors` are as the encoder gave them, and are scaled to length 1 here."""
        outs = []
        for name, head in zip(self.trained, self._each, strict=True):
            if name in self.embedded:
                unit = torch.nn.functional.normalize(vectors[name].float(), dim=1)
                outs.append(head(head.columns(unit)))
            else:
                outs.append(head(known.columns[name]))
        return torch.stack(outs)

    def present(
        self, embedded: Mapping[str, Float[torch.Tensor, " row"]], known: KnownRows
    ) -> Float[torch.Tensor, "trained row"]:
        """Where each trained modality is present."""
        return torch.stack([embedded[name] if name in self.embedded else known.present[name] for name in self.trained])

    def combined(
        self, outputs: Float[torch.Tensor, "trained row"], present: Float[torch.Tensor, "trained row"], known: KnownRows
    ) -> Float[torch.Tensor, " row"]:
        """Predicted z."""
        return self.intercept + known.offset + (self.shares[:, None] * outputs * present).sum(dim=0)

    def fitted(self, inputs: Inputs, train_rows: Int64[np.ndarray, " row"]) -> FittedHeads:
        """The model as it is now, in the canonical gauge; `inputs` hold the vectors of the encoder as it is now."""
        names = self._fitted.modalities
        trained = {name: Head(head.fitted()) for name, head in zip(self.trained, self._each, strict=True)}
        return FittedHeads.canonical(
            {name: trained.get(name, self._fitted.heads[name]) for name in names},
            raw_weights=self.weights(),
            intercept=float(self.intercept.item()),
            inputs=inputs,
            train_rows=train_rows,
            standardisation=self._fitted.standardisation,
            target=self._fitted.target,
        )

    def weights(self) -> Float64[np.ndarray, " modality"]:
        """Weights of all modalities, as they are trained; they sum to 1."""
        shares = dict(zip(self.trained, _to_numpy(self.shares).astype(np.float64), strict=True))
        weights = np.array([shares.get(name, own) for name, own in self._fitted_weights()], dtype=np.float64)
        weights /= weights.sum()
        return weights

    def parameter_groups(self, lr: float, weight_decay: float) -> list[dict[str, object]]:
        """Groups for AdamW: matrices decay; biases, logits and the intercept do not."""
        matrices = [p for p in self.parameters() if p.ndim == 2]
        others = [p for p in self.parameters() if p.ndim != 2]
        return [
            {"params": matrices, "lr": lr, "weight_decay": weight_decay},
            {"params": others, "lr": lr, "weight_decay": 0.0},
        ]

    def _fitted_weights(self) -> Iterable[tuple[str, float]]:
        return zip(self._fitted.modalities, self._fitted.weights.tolist(), strict=True)

    @property
    def _each(self) -> Iterable["_Branches"]:
        return cast("Iterable[_Branches]", self.heads)  # to type checkers a ModuleList holds any module


class _Branches(torch.nn.Module):
    """The branches of one head; their outputs are added."""

    def __init__(self, branches: Sequence[Branch]) -> None:
        super().__init__()
        self.each = torch.nn.ModuleList(_Layers(branch) for branch in branches)

    @property
    def _each(self) -> Iterable["_Layers"]:
        return cast("Iterable[_Layers]", self.each)

    def columns(self, unit: Float[torch.Tensor, "row dim"]) -> list[torch.Tensor]:
        """What each branch reads of embeddings."""
        return [layers.columns(unit) for layers in self._each]

    def forward(self, columns: Sequence[torch.Tensor]) -> Float[torch.Tensor, " row"]:
        """Outputs for rows, present or not."""
        outs = [layers(part) for layers, part in zip(self._each, columns, strict=True)]
        return torch.stack(outs).sum(dim=0)

    def fitted(self) -> tuple[Branch, ...]:
        """Copies with the parameters of now."""
        return tuple(layers.fitted() for layers in self._each)


class _Layers(torch.nn.Module):
    """The layers of one branch behind its reader."""

    components: torch.Tensor
    mean: torch.Tensor

    def __init__(self, branch: Branch) -> None:
        super().__init__()
        self._branch = branch
        self.table = None if branch.table is None else _parameter(branch.table)
        self.weights = torch.nn.ParameterList(map(_parameter, branch.weights))
        self.biases = torch.nn.ParameterList(map(_parameter, branch.biases))
        if isinstance(branch.reader, Projection):
            self.register_buffer("components", torch.from_numpy(branch.reader.components), persistent=False)
            self.register_buffer("mean", torch.from_numpy(branch.reader.mean), persistent=False)

    def columns(self, unit: Float[torch.Tensor, "row dim"]) -> Float[torch.Tensor, "row column"]:
        """What the branch reads of embeddings of length 1."""
        if not isinstance(self._branch.reader, Projection):
            return unit
        projected: Float[torch.Tensor, "row column"] = (unit - self.mean) @ self.components
        return projected

    def forward(self, columns: Float[torch.Tensor, "row column"]) -> Float[torch.Tensor, " row"]:
        """Linear layers with ReLU between them, behind the embedding layer if there is one."""
        hidden = columns if self.table is None else columns @ self.table
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            hidden = torch.relu(hidden @ weight + bias)
        outputs: Float[torch.Tensor, " row"] = (hidden @ self.weights[-1] + self.biases[-1])[:, 0]
        return outputs

    def fitted(self) -> Branch:
        """The branch with the parameters of now."""
        return replace(
            self._branch,
            weights=tuple(map(_to_numpy, self.weights)),
            biases=tuple(map(_to_numpy, self.biases)),
            table=None if self.table is None else _to_numpy(self.table),
        )


def _frozen_outputs(head: Head, block: AnyBlock, learning: Learning | None) -> Float64[np.ndarray, " row"]:
    outputs = head.outputs(block)
    if learning is not None and isinstance(block, Category):
        rows = learning.train_rows
        _, columns = CategoryMeans.fit_train(block, learning.z, rows, learning.rng)
        outputs[rows] = sum(branch.after(columns[rows]) for branch in head.branches)
    return outputs


def _is_frozen(head: Head) -> bool:
    return not (_reads(head, Knots) or _reads(head, AsIs))


def _reads(head: Head, reader: type[AsIs] | type[Knots]) -> bool:
    """Whether all branches read so, be it through a projection."""
    readers = [branch.reader for branch in head.branches]
    return all(isinstance(each.reader if isinstance(each, Projection) else each, reader) for each in readers)


def _parameter(array: Float32[np.ndarray, "..."]) -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.from_numpy(array.copy()))


def _to_numpy(tensor: Float[torch.Tensor, "..."]) -> Float32[np.ndarray, "..."]:
    return tensor.detach().float().cpu().numpy().copy()
