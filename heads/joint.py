"""Several modalities read as one: what a network across them sees."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32

from heads.inputs import JOINT, AnyBlock, Joint
from heads.readers import FoldReaders, Reader, reader_from, wrong_block


@dataclass(frozen=True, eq=False)
class JointReader:
    """Reads the columns of several modalities side by side; zeros where one is absent."""

    readers: Mapping[str, Reader]

    @property
    def kind(self) -> str:
        """The kind of every reader in it, such as `joint image=projected_as_is age=knots`."""
        return " ".join([JOINT, *(f"{modality}={reader.kind}" for modality, reader in self.readers.items())])

    @property
    def width(self) -> int:
        """Columns of all readers."""
        return sum(reader.width for reader in self.readers.values())

    def read(self, block: AnyBlock) -> Float32[np.ndarray, "video column"]:
        """The columns of every row."""
        if not isinstance(block, Joint):
            raise wrong_block(block, "several modalities")
        own = {part.modality: part for part in block.blocks}
        return beside(block, {modality: reader.read(own[modality]) for modality, reader in self.readers.items()})

    def tensors(self) -> Iterator[tuple[str, np.ndarray]]:
        """Every reader's tensors, named after its modality."""
        for modality, reader in self.readers.items():
            yield from ((f"{modality}.{name}", tensor) for name, tensor in reader.tensors())

    @classmethod
    def from_tensors(cls, kind: str, tensors: Mapping[str, np.ndarray]) -> "JointReader":
        """The reader of `kind` and `dict(reader.tensors())`."""
        readers = {}
        for named in kind.split(" ")[1:]:
            modality, _, inner = named.rpartition("=")
            prefix = f"{modality}."
            own = {name.removeprefix(prefix): array for name, array in tensors.items() if name.startswith(prefix)}
            readers[modality] = reader_from(inner, own)
        return cls(readers)


def joined(fitted: FoldReaders, block: Joint) -> FoldReaders:
    """What one fold learned of every modality, as what it learned of all together; no reader may read words as such."""
    columns = beside(block, {modality: fitted.columns[modality] for modality in fitted.readers})
    return FoldReaders({JOINT: JointReader(fitted.readers)}, {JOINT: columns})


def beside(block: Joint, columns: Mapping[str, Float32[np.ndarray, "video _"]]) -> Float32[np.ndarray, "video column"]:
    """The columns of each modality side by side, zeros where it is absent."""
    present = {part.modality: part.present for part in block.blocks}
    return np.hstack([np.where(present[m][:, None], own, np.float32(0)) for m, own in columns.items()])
