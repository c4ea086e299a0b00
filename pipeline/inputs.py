"""From caches and tables to what the heads see: one block per modality, aligned by video id."""

import hashlib
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
from jaxtyping import Int32, Int64, Shaped, UInt8

from features.dates import ages_years, calendar_columns
from features.errors import CacheError, UsageError
from features.extract_command import model_of, text_option
from features.plan import CachePlan
from features.store import EmbeddingStore
from features.videos import VideoTable
from features.words import hashed_words
from heads.chunks import Chunks
from heads.inputs import AnyBlock, Block, Category, Inputs, Words
from pipeline.workspace import Workspace

AGE, CHANNEL, WORDS = "age", "channel", "words"
FROM_TABLE = (AGE, CHANNEL, WORDS)
"""Modalities that need no encoder: they are read from the table alone."""

Chunks_co = TypeVar("Chunks_co", bound=Chunks, covariant=True)


@dataclass(frozen=True)
class Source:
    """Where one modality comes from: an encoder's cache (its tag and the kind of vector), or the table (no tag)."""

    modality: str
    kind: str
    tag: str = ""


@dataclass(frozen=True, eq=False)
class Gathered(Generic[Chunks_co]):
    """What the heads see, the manifest of each cache it comes from (by tag), and digests of the thumbnails, if any."""

    inputs: Chunks_co
    plans: Mapping[str, CachePlan]
    thumbnail_digest: UInt8[np.ndarray, "video 16"] | None

    @property
    def encoders(self) -> dict[str, str]:
        """What identifies the encoder (hex) that made each cache, by its tag."""
        return {tag: plan.encoder for tag, plan in self.plans.items()}


def choose_sources(
    workspace: Workspace, tags: Sequence[str], wanted: Sequence[str], videos: VideoTable
) -> tuple[Source, ...]:
    """The modalities to train on: those asked for, or everything that the caches and the dates give.

    With several encoders a modality carries its encoder's name, such as `image@ViT-L-14`.

    Raises
    ------
    UsageError
        A modality that is not known, or that neither the caches nor the dataset have.
    """
    needs_cache = not wanted or any(name not in FROM_TABLE for name in wanted)
    tags = (tags or [workspace.only_cache()]) if needs_cache else []
    there = []
    for tag in tags:
        store = EmbeddingStore.open(workspace.cache(tag, videos.split))
        there += [Source(kind if len(tags) == 1 else f"{kind}@{tag}", kind, tag) for kind in store.plan.dims]
    there += [Source(kind, kind) for kind in _in_table(videos)]
    if not wanted:
        return tuple(source for source in there if source.kind not in (CHANNEL, WORDS))
    known = {word for source in there for word in (source.modality, source.kind)}
    missing = [name for name in wanted if name not in known]
    if missing:
        listed = ", ".join(source.modality for source in there)
        raise UsageError(f"--modalities names {', '.join(missing)}, but there are only {listed}")
    return tuple(source for source in there if source.modality in wanted or source.kind in wanted)


def gather(
    workspace: Workspace, sources: Sequence[Source], videos: VideoTable, reference: np.datetime64
) -> Gathered[Inputs]:
    """Read the caches once into memory, and everything else that the sources name.

    Raises
    ------
    CacheError
        A cache is missing, unfinished or damaged, or lacks videos of the table.
    """
    stores = open_stores(workspace, sources, videos.split)
    blocks: list[AnyBlock] = []
    thumbnail_digest = None
    for source in sources:
        if not source.tag:
            blocks.append(block_from_table(source, videos, reference))
            continue
        store = stores[source.tag]
        embeddings = store.read(source.kind).aligned(videos.ids, store.extract)
        blocks.append(Block.embedding(source.modality, embeddings.vectors, embeddings.present))
        if source.kind == "image":
            thumbnail_digest = embeddings.source_digest
    return Gathered(Inputs(tuple(blocks)), {tag: store.plan for tag, store in stores.items()}, thumbnail_digest)


def open_stores(workspace: Workspace, sources: Sequence[Source], split: str) -> dict[str, EmbeddingStore]:
    """The finished cache of each encoder that the sources name, by its tag.

    Raises
    ------
    CacheError
        A cache is missing or unfinished, or has no vectors of a kind.
    """
    stores: dict[str, EmbeddingStore] = {}
    for source in sources:
        if source.tag and source.tag not in stores:
            stores[source.tag] = EmbeddingStore.open(workspace.cache(source.tag, split))
        store = stores.get(source.tag)
        if store is not None and source.kind not in store.plan.dims:
            model, separate = shlex.quote(model_of(source.tag, store.plan)), text_option([source.kind])
            raise CacheError(
                f"the cache in {store.folder} has no {source.kind}: run `vp extract --model {model}{separate}`"
            )
    return stores


def age_block(
    modality: str,
    published: Shaped[np.ndarray, " video"],
    year: Int32[np.ndarray, " video"],
    reference: np.datetime64,
) -> Block:
    """Ages at `reference` in years, and beside them where in year, week and day a video was published."""
    return Block.scalar(modality, ages_years(published, year, reference), calendar_columns(published))


def channel_block(modality: str, names: Sequence[str]) -> Category:
    """Channels by name; an empty name is no channel."""
    return Category(modality=modality, codes=_codes(names), present=np.array([bool(name) for name in names], bool))


def words_block(modality: str, counts: Any) -> Words:
    """Hashed words (video, column), sparse; a row without any has no words."""
    return Words(modality=modality, counts=counts, present=np.diff(counts.indptr) > 0)


def block_from_table(source: Source, videos: VideoTable, reference: np.datetime64) -> AnyBlock:
    """A modality that needs no encoder."""
    if source.kind == AGE:
        return age_block(source.modality, videos.published, videos.year, reference)
    if source.kind == CHANNEL:
        return channel_block(source.modality, videos.channel)
    return words_block(source.modality, hashed_words(videos))


def _in_table(videos: VideoTable) -> list[str]:
    """Which modalities the table itself gives."""
    there = {AGE: not np.isnat(videos.newest()), CHANNEL: any(videos.channel), WORDS: videos.has_text}
    return [kind for kind, is_there in there.items() if is_there]


def _codes(names: Sequence[str]) -> Int64[np.ndarray, " video"]:
    """A number for each name that is the same in every table and on every machine."""
    codes = {name: hashlib.blake2b(name.encode(), digest_size=8).digest() for name in dict.fromkeys(names)}
    return np.array([int.from_bytes(codes[name], "big", signed=True) for name in names], dtype=np.int64)
