"""What a member learned of a modality in order to read it as columns of numbers, fitted on its training rows alone.

    AsIs           an embedding, column by column
    Knots          a number between knots (an embedding layer reads the result), and columns beside it
    CategoryMeans  a category as the shrunken mean of its training rows, and whether it is known at all
    TfIdf          words, sparse, weighed by how few videos have them
    Projection     columns of another reader, projected on a few components
    LatentWords    words as a direction in the space of a few components
    JointReader    the columns of several readers side by side (`heads.joint`)

Whatever depends on targets is read out of fold for the training rows themselves, or they would know their answers.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, Float64, Int64

from heads.inputs import JOINT, AnyBlock, Block, Category, Inputs, Joint, Words, hat_basis, quantile_knots
from heads.words import WordWeights, components

INNER_FOLDS = 5
"""Parts of the training rows that are read out of fold by a reader that learns from targets."""

Columns = Any
"""Float32 (video, column): a dense array, or a sparse one for words."""


@runtime_checkable
class Reader(Protocol):
    """Turns a block into columns."""

    @property
    def kind(self) -> str:
        """Its name in a checkpoint."""

    @property
    def width(self) -> int:
        """Number of columns."""

    def read(self, block: AnyBlock) -> Columns:
        """The columns of every row; raises ValueError for a block that the reader was not fitted for."""

    def tensors(self) -> Iterator[tuple[str, np.ndarray]]:
        """Everything it learned, by name."""


@dataclass(frozen=True, eq=False)
class AsIs:
    """Reads an embedding of `width` numbers as it is."""

    width: int
    kind = "as_is"

    def read(self, block: AnyBlock) -> Float32[np.ndarray, "video column"]:
        """The embedding; raises ValueError for another width."""
        if not isinstance(block, Block) or block.values.shape[1] != self.width:
            given = block.values.shape[1] if isinstance(block, Block) else type(block).__name__
            raise ValueError(
                f"the {block.modality} head reads vectors of {self.width} numbers, given {given}: "
                "use the encoder it was trained on"
            )
        return block.values

    def tensors(self) -> Iterator[tuple[str, np.ndarray]]:
        """Its width, so that a checkpoint says what it reads."""
        yield "width", np.array([self.width], dtype=np.int64)


@dataclass(frozen=True, eq=False)
class Knots:
    """Reads the first number of a block between `knots` and the `beside` other columns as they are."""

    knots: Float32[np.ndarray, " knot"]
    beside: int = 0
    kind = "knots"

    @classmethod
    def fit(cls, block: Block, train_rows: Int64[np.ndarray, " row"]) -> "Knots":
        """Knots at the quantiles of the training rows that have the number."""
        here = train_rows[block.present[train_rows]]
        return cls(quantile_knots(block.values[here, 0]), block.values.shape[1] - 1)

    @property
    def width(self) -> int:
        """One column per knot, and those beside."""
        return len(self.knots) + self.beside

    def read(self, block: AnyBlock) -> Float32[np.ndarray, "video column"]:
        """Weights of the knots, and the other columns."""
        if not isinstance(block, Block) or block.values.shape[1] != 1 + self.beside:
            raise ValueError(f"the {block.modality} head reads {1 + self.beside} numbers: train it again")
        return np.hstack([hat_basis(block.values[:, 0], self.knots), block.values[:, 1:]])

    def tensors(self) -> Iterator[tuple[str, np.ndarray]]:
        """The knots, and how many columns stand beside."""
        yield from (("knots", self.knots), ("beside", np.array([self.beside], dtype=np.int64)))


@dataclass(frozen=True, eq=False)
class CategoryMeans:
    """Reads a category as two columns: its shrunken mean target (0 where it is unknown), and 1 where it is known."""

    codes: Int64[np.ndarray, " category"]  # increasing
    means: Float32[np.ndarray, " category"]
    kind = "category_means"
    width = 2

    @classmethod
    def fit(cls, codes: Int64[np.ndarray, " row"], z: Float64[np.ndarray, " row"]) -> "CategoryMeans":
        """Means of z shrunken towards 0, the more the fewer rows a category has.

        With n rows and mean y the category gets n y / (n + k), where k is the variance within categories over that
        between them: the best linear guess of a random effect (Robinson, "That BLUP is a good thing", 1991).

        >>> fitted = CategoryMeans.fit(np.array([7, 7, 9, 9]), np.array([1.0, 1.0, -1.0, -1.0]))
        >>> fitted.means
        array([ 1., -1.], dtype=float32)
        """
        known, place, counts = np.unique(codes, return_inverse=True, return_counts=True)
        means = np.bincount(place, weights=z) / counts
        shrink = counts / (counts + _variance_ratio(z, means[place], counts))
        return cls(known, (means * shrink).astype(np.float32))

    @classmethod
    def fit_train(
        cls,
        block: Category,
        z: Float64[np.ndarray, " video"],
        train_rows: Int64[np.ndarray, " row"],
        rng: np.random.Generator,
    ) -> "tuple[CategoryMeans, Float32[np.ndarray, 'video 2']]":
        """The reader, and the columns of all rows: those of training rows out of fold, over `INNER_FOLDS` parts."""
        here = train_rows[block.present[train_rows]]
        reader = cls.fit(block.codes[here], z[here])
        columns = reader.read(block)
        parts = np.array_split(rng.permutation(here), INNER_FOLDS)
        for part in parts:
            others = np.setdiff1d(here, part)
            inner = cls.fit(block.codes[others], z[others])
            columns[part] = inner.read(block.take(part))
        return reader, columns

    def read(self, block: AnyBlock) -> Float32[np.ndarray, "video 2"]:
        """Mean and whether it is known."""
        if not isinstance(block, Category):
            raise wrong_block(block, "a category")
        place = np.searchsorted(self.codes, block.codes).clip(max=max(len(self.codes) - 1, 0))
        known = block.present & (len(self.codes) > 0)
        if len(self.codes):
            known = known & (self.codes[place] == block.codes)
        means = self.means[place] if len(self.codes) else np.zeros(len(block.codes), np.float32)
        return np.stack([np.where(known, means, 0), known], axis=1).astype(np.float32)

    def tensors(self) -> Iterator[tuple[str, np.ndarray]]:
        """Codes and means."""
        yield from (("codes", self.codes), ("means", self.means))


def wrong_block(block: AnyBlock, wanted: str) -> ValueError:
    """The error of a head that is given a block of another form."""
    return ValueError(f"the {block.modality} head reads {wanted}, given {type(block).__name__}: train it again")


def _variance_ratio(
    z: Float64[np.ndarray, " row"], mean_of_row: Float64[np.ndarray, " row"], counts: Int64[np.ndarray, " category"]
) -> float:
    """Variance within categories over the variance between them, by the moments of a one-way layout.

    The sum of squares between G categories of n rows in all expects (G - 1) within + (n - sum n_g² / n) between.
    """
    n, categories = len(z), len(counts)
    if n == categories or categories < 2:
        return 1.0  # nothing tells the two apart; a prior as strong as one row
    within = float(np.square(z - mean_of_row).sum()) / (n - categories)
    spread = float(np.square(mean_of_row - z.mean()).sum()) - (categories - 1) * within
    between = spread / (n - float(np.square(counts).sum()) / n)
    return within / between if between > 0 else float(n)


@dataclass(frozen=True, eq=False)
class TfIdf:
    """Reads hashed words as sparse, L2-normalised TF-IDF over the columns that its training rows hold."""

    weights: WordWeights
    kind = "tf_idf"

    @property
    def width(self) -> int:
        """Number of kept words."""
        return len(self.weights.idf)

    def read(self, block: AnyBlock) -> Columns:
        """TF-IDF of every row."""
        if not isinstance(block, Words):
            raise wrong_block(block, "words")
        return self.weights.read(block.counts)

    def tensors(self) -> Iterator[tuple[str, np.ndarray]]:
        """What the words weigh."""
        return iter(self.weights.tensors().items())


@dataclass(frozen=True, eq=False)
class Projection:
    """Reads `reader`'s columns projected on a few components: (column - mean) @ components."""

    reader: "AsIs | TfIdf"
    mean: Float32[np.ndarray, " column"]
    components: Float32[np.ndarray, "column component"]

    @property
    def kind(self) -> str:
        """Named after what is projected."""
        return f"projected_{self.reader.kind}"

    @property
    def width(self) -> int:
        """Number of components."""
        return int(self.components.shape[1])

    def read(self, block: AnyBlock) -> Float32[np.ndarray, "video component"]:
        """Components of every row; zeros where the modality is absent."""
        projected = self.reader.read(block) @ self.components - self.mean @ self.components
        read: Float32[np.ndarray, "video component"] = np.where(block.present[:, None], projected, 0).astype(np.float32)
        return read

    def tensors(self) -> Iterator[tuple[str, np.ndarray]]:
        """The inner reader's tensors, mean and components."""
        yield from self.reader.tensors()
        yield from (("mean", self.mean), ("components", self.components))


@dataclass(frozen=True, eq=False)
class LatentWords:
    """Reads words as TF-IDF @ components, scaled to length 1: what a text is about, however many rare words it has.

    Without the scaling a text of rare words lies near 0 whatever it is about (trees on 2,731 videos: MSLE 1.38, 1.30
    with it).
    """

    words: TfIdf
    components: Float32[np.ndarray, "word component"]
    kind = "latent_tf_idf"

    @property
    def width(self) -> int:
        """Number of components."""
        return int(self.components.shape[1])

    def read(self, block: AnyBlock) -> Float32[np.ndarray, "video component"]:
        """The direction of every row; zeros where no word is known."""
        projected = np.asarray(self.words.read(block) @ self.components)
        length = np.linalg.norm(projected, axis=1, keepdims=True)
        read: Float32[np.ndarray, "video component"] = np.zeros_like(projected)
        np.divide(projected, length, out=read, where=length > 0)
        return read

    def tensors(self) -> Iterator[tuple[str, np.ndarray]]:
        """What the words weigh, and the components."""
        yield from self.words.tensors()
        yield "components", self.components


def reader_from(kind: str, tensors: Mapping[str, np.ndarray]) -> Reader:
    """The reader of `kind` whose `tensors` these are; ValueError or TypeError for no kind, KeyError for a gap."""
    if not isinstance(kind, str):
        raise TypeError(f"a reader is named by a text, not by {kind!r}")
    if kind.startswith("projected_"):
        inner = reader_from(kind.removeprefix("projected_"), tensors)
        if not isinstance(inner, AsIs | TfIdf):
            raise ValueError(f"no projection reads {inner.kind}")
        return Projection(inner, tensors["mean"], tensors["components"])
    if kind.startswith(f"{JOINT} "):
        from heads.joint import JointReader  # noqa: PLC0415  it is made of readers itself

        return JointReader.from_tensors(kind, tensors)
    if kind not in _SIMPLE:
        raise ValueError(f"a head reads with {', '.join(_SIMPLE)}, a projection or joint, given {kind}")
    return _SIMPLE[kind](tensors)


_SIMPLE: dict[str, Callable[[Mapping[str, np.ndarray]], Reader]] = {
    AsIs.kind: lambda tensors: AsIs(int(tensors["width"][0])),
    Knots.kind: lambda tensors: Knots(tensors["knots"], int(tensors["beside"][0])),
    CategoryMeans.kind: lambda tensors: CategoryMeans(tensors["codes"], tensors["means"]),
    TfIdf.kind: lambda tensors: TfIdf(WordWeights.from_tensors(tensors)),
    LatentWords.kind: lambda tensors: LatentWords(TfIdf(WordWeights.from_tensors(tensors)), tensors["components"]),
}
"""How each kind of reader that reads one modality by itself is put together again."""


@dataclass(frozen=True, eq=False)
class FoldReaders:
    """What one fold learned of every modality, and the columns of all videos where they had to be fitted.

    An embedding has no columns here: it is read as it is, and shared by all folds. The training rows of a modality that
    learns from targets stand out of fold.
    """

    readers: Mapping[str, Reader]
    columns: Mapping[str, Columns]


def fit_readers(
    inputs: Inputs,
    z: Float64[np.ndarray, " video"],
    train_rows: Int64[np.ndarray, " row"],
    rng: np.random.Generator,
    *,
    n_components: int | None = None,
    keep_knots: bool = True,
) -> FoldReaders:
    """Fit every modality's reader on the training rows; words stay sparse unless they become `n_components`.

    Without `keep_knots` the columns between knots are left to be read again, some rows at a time.

    Every modality must be present in some training row, see `heads.inputs.check_presence`.
    """
    readers: dict[str, Reader] = {}
    columns: dict[str, Columns] = {}
    for block in inputs.blocks:
        name = block.modality
        if isinstance(block, Category):
            readers[name], columns[name] = CategoryMeans.fit_train(block, z, train_rows, rng)
        elif isinstance(block, Words):
            words = TfIdf(WordWeights.fit(block.counts, train_rows))
            reader = words if n_components is None else _latent(words, block.take(train_rows), n_components, rng)
            readers[name], columns[name] = reader, reader.read(block)
        elif isinstance(block, Joint):
            raise TypeError("what is joint is read by the readers of its modalities: fit those")
        elif block.knotted:
            reader_of_amounts = Knots.fit(block, train_rows)
            readers[name] = reader_of_amounts
            if keep_knots:
                columns[name] = reader_of_amounts.read(block)
        else:
            readers[name] = AsIs(block.values.shape[1])
    return FoldReaders(readers, columns)


def _latent(words: TfIdf, train_block: Words, n_components: int, rng: np.random.Generator) -> LatentWords:
    """Words on the components of the training rows."""
    return LatentWords(words, components(words.read(train_block), n_components, int(rng.integers(2**31))))
