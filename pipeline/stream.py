"""Caches that are larger than the memory: what the heads see of them, read shard by shard in every pass."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, UInt8

from features.errors import CacheError
from features.progress import Progress, Silent
from features.store import Embeddings, EmbeddingStore
from features.videos import VideoTable
from heads.inputs import CHUNK_ROWS, AnyBlock, Block, Inputs, Rows, row_chunks
from pipeline.inputs import Gathered, Source, block_from_table, gather, open_stores
from pipeline.workspace import Workspace


@dataclass(frozen=True, eq=False)
class Vectors:
    """The embeddings of one modality, in the cache."""

    store: EmbeddingStore
    kind: str
    ids: Sequence[str]

    def chunks(self) -> Iterator[Embeddings]:
        """They, a chunk of rows at a time.

        Raises
        ------
        CacheError
            A shard is damaged, or the rows are not those of `ids`.
        """
        start = 0
        for found in self.store.ranges(self.kind, CHUNK_ROWS):
            if found.ids != self.ids[start : start + len(found.ids)]:
                raise self.other_rows()
            yield found
            start += len(found.ids)

    def other_rows(self) -> CacheError:
        """The error of a cache that does not go row by row with the table."""
        return CacheError(
            f"the rows of the cache in {self.store.folder} are not those of the dataset, in its order, and only such a "
            f"cache can be read shard by shard: run `{self.store.extract}` again, which computes new videos only (or "
            "--no-stream)"
        )


@dataclass(frozen=True, eq=False)
class StoredInputs:
    """Inputs whose embeddings stay in their caches; the `Chunks` of `heads.chunks`."""

    outline: Inputs
    vectors: Mapping[str, Vectors]  # by modality
    progress: Progress = field(default_factory=Silent)

    def __iter__(self) -> Iterator[tuple[slice, Inputs]]:
        """The rows and their inputs, a chunk at a time; a pass may take minutes, so its progress is told."""
        self.progress.begin("a pass over the vectors", self.outline.n_videos, "rows")
        streams = {modality: vectors.chunks() for modality, vectors in self.vectors.items()}
        for rows in row_chunks(self.outline.n_videos):
            chunk = {modality: next(stream) for modality, stream in streams.items()}
            blocks = (
                Block.embedding(name, chunk[name].vectors, chunk[name].present, first_row=rows.start)
                if (name := block.modality) in chunk
                else block.take(rows)
                for block in self.outline.blocks
            )
            yield rows, Inputs(tuple(blocks))
            self.progress.advance(rows.stop - rows.start)
        self.progress.end()

    def take(self, rows: Rows) -> Inputs:
        """The inputs of these rows, in this order, in memory; it takes a pass over the caches."""
        wanted = np.arange(self.outline.n_videos)[rows]
        blocks = {block.modality: block.take(wanted) for block in self.outline.blocks}
        values = {
            name: np.empty(block.values.shape, np.float32)
            for name, block in blocks.items()
            if isinstance(block, Block) and name in self.vectors
        }
        for here, inputs in self:
            places = np.flatnonzero((here.start <= wanted) & (wanted < here.stop))
            for block in inputs.take(wanted[places] - here.start).blocks:
                if isinstance(block, Block) and block.modality in values:
                    values[block.modality][places] = block.values
        filled = {name: Block(modality=name, values=own, present=blocks[name].present) for name, own in values.items()}
        return Inputs(tuple((blocks | filled).values()))


def read_inputs(
    workspace: Workspace,
    sources: Sequence[Source],
    videos: VideoTable,
    reference: np.datetime64,
    *,
    stream: bool,
    progress: Progress | None = None,
) -> Gathered[Inputs] | Gathered[StoredInputs]:
    """What the heads see of the videos: in memory, or from the shards; raises as `gather` does."""
    if not stream:
        return gather(workspace, sources, videos, reference)
    stores = open_stores(workspace, sources, videos.split)
    blocks: list[AnyBlock] = []
    vectors: dict[str, Vectors] = {}
    thumbnail_digest = None
    for source in sources:
        if not source.tag:
            blocks.append(block_from_table(source, videos, reference))
            continue
        store = stores[source.tag]
        vectors[source.modality] = own = Vectors(store, source.kind, videos.ids)
        present, digest = _surveyed(own)
        blocks.append(Block.outlined(source.modality, store.plan.dims[source.kind], present))
        if source.kind == "image":
            thumbnail_digest = digest
    inputs = StoredInputs(Inputs(tuple(blocks)), vectors, progress or Silent())
    return Gathered(inputs, {tag: store.plan for tag, store in stores.items()}, thumbnail_digest)


def _surveyed(vectors: Vectors) -> tuple[Bool[np.ndarray, " video"], UInt8[np.ndarray, "video 16"]]:
    """Which rows have a vector, and what each was made from; a pass that checks every shard before anything is done."""
    if vectors.store.plan.rows != len(vectors.ids):
        raise vectors.other_rows()
    present, digests = zip(*((chunk.present, chunk.source_digest) for chunk in vectors.chunks()), strict=True)
    return np.concatenate(present), np.concatenate(digests)
