"""From caches and tables to what the heads see: one block per modality, aligned by video id."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from features.errors import CacheError, UsageError
from features.store import EmbeddingStore
from features.videos import VideoTable
from heads.inputs import Block, Inputs
from pipeline.workspace import Workspace

AGE = "age"
ENCODED = ("image", "text")


@dataclass(frozen=True)
class Source:
    """Where one modality comes from: an encoder's cache (its tag and the kind of vector), or the table (no tag)."""

    modality: str
    kind: str
    tag: str = ""


def choose_sources(
    workspace: Workspace, tags: Sequence[str], wanted: Sequence[str], *, has_age: bool
) -> tuple[Source, ...]:
    """The modalities to train on: those asked for, or everything that the caches and the dates give.

    With several encoders a modality carries its encoder's name, such as `image@ViT-L-14`.

    Raises
    ------
    UsageError
        A modality that is not known, or that neither the caches nor the dataset have.
    """
    needs_cache = not wanted or any(name != AGE for name in wanted)
    tags = (tags or [workspace.only_cache()]) if needs_cache else []
    there = []
    for tag in tags:
        store = EmbeddingStore.open(workspace.cache(tag, "train_val"))
        there += [Source(kind if len(tags) == 1 else f"{kind}@{tag}", kind, tag) for kind in store.plan.dims]
    if has_age:
        there.append(Source(AGE, AGE))
    if not wanted:
        return tuple(there)
    chosen = tuple(source for source in there if source.modality in wanted or source.kind in wanted)
    missing = [
        name for name in wanted if name not in {word for source in there for word in (source.modality, source.kind)}
    ]
    if missing:
        known = ", ".join(source.modality for source in there)
        raise UsageError(f"--modalities names {', '.join(missing)}, but there are only {known}")
    return chosen


def gather(
    workspace: Workspace, sources: Sequence[Source], videos: VideoTable, reference: np.datetime64
) -> tuple[Inputs, dict[str, str]]:
    """Read the caches once into memory; returns the inputs, and what encoder (hex) each cache was made by.

    Raises
    ------
    CacheError
        A cache is missing, unfinished or damaged, or lacks videos of the table.
    """
    stores = {
        tag: EmbeddingStore.open(workspace.cache(tag, videos.split))
        for tag in dict.fromkeys(source.tag for source in sources if source.tag)
    }
    blocks = []
    for source in sources:
        if source.kind == AGE:
            blocks.append(Block.scalar(source.modality, videos.ages_years(reference)))
            continue
        store = stores[source.tag]
        if source.kind not in store.plan.dims:
            raise CacheError(f"the cache in {store.folder} has no {source.kind}: run `vp extract --model {source.tag}`")
        embeddings = store.read(source.kind).aligned(videos.ids)
        blocks.append(Block.embedding(source.modality, embeddings.vectors, embeddings.present))
    return Inputs(tuple(blocks)), {tag: store.plan.encoder for tag, store in stores.items()}
