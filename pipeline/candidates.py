"""Videos that may not exist yet, and what the heads of a run see of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from features.dates import NOT_A_TIME, Published
from features.decode import decode_file
from features.status import Status
from features.texts import cleaned, without_surrogates
from heads.inputs import AnyBlock, Block, Inputs
from pipeline.inputs import AGE, CHANNEL, WORDS, Source, age_block, channel_block, words_block
from pipeline.run_encoders import RunEncoders

UNDATED = Published(NOT_A_TIME, 0, "")


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One video to score; what is empty was not given, and counts as the mean of the training videos.

    `image` is a thumbnail, or why one that was given cannot be used. Without date and year the age is 0 at the run's
    reference date, and nothing is said of month, weekday and hour.
    """

    image: Path | Status | None = None
    title: str = ""
    description: str = ""
    published: Published = UNDATED
    channel: str = ""

    @property
    def source(self) -> Path | Status:
        """The image as an encoder reads it."""
        return Status.MISSING if self.image is None else self.image

    @property
    def channel_name(self) -> str:
        """The channel as a table of videos would hold it."""
        return without_surrogates(self.channel.strip())

    @property
    def has_text(self) -> bool:
        """Whether title or description say anything."""
        return bool(cleaned(self.title).strip() or cleaned(self.description).strip())


@dataclass(frozen=True, eq=False)
class Seen:
    """What the heads see of some candidates, and what became of the image of each (a `Status`)."""

    inputs: Inputs
    image_status: UInt8[np.ndarray, " video"]


def look_at(
    candidates: Sequence[Candidate], sources: Sequence[Source], encoders: RunEncoders, reference: np.datetime64
) -> Seen:
    """One block per modality of a run; images are looked at even where the run does not read them.

    Raises
    ------
    UsageError, CacheError
        An encoder cannot be found, or is not the one that the run was trained on.
    """
    blocks: list[AnyBlock] = []
    image_status = None
    for source in sources:
        if not source.tag:
            blocks.append(_from_words_and_dates(source, candidates, reference))
            continue
        if source.kind == "image":
            encoded = encoders.images(source.tag, [candidate.source for candidate in candidates])
            image_status = encoded.status
        else:
            texts = [(candidate.title, candidate.description) for candidate in candidates]
            encoded = encoders.texts(source.tag, source.kind, texts)
        blocks.append(Block.embedding(source.modality, encoded.vectors, encoded.present))
    if image_status is None:
        statuses = {image: _status(image) for image in dict.fromkeys(candidate.source for candidate in candidates)}
        image_status = np.array([statuses[candidate.source] for candidate in candidates], dtype=np.uint8)
    return Seen(Inputs(tuple(blocks)), image_status)


def _status(image: Path | Status) -> Status:
    return image if isinstance(image, Status) else decode_file(image).status


def _from_words_and_dates(source: Source, candidates: Sequence[Candidate], reference: np.datetime64) -> AnyBlock:
    if source.kind == AGE:
        published = np.array([candidate.published.second for candidate in candidates], np.int64).view("datetime64[s]")
        years = np.array([_year(candidate.published, reference) for candidate in candidates], np.int32)
        return age_block(source.modality, published, years, reference)
    if source.kind == CHANNEL:
        return channel_block(source.modality, [candidate.channel_name for candidate in candidates])
    if source.kind != WORDS:
        raise ValueError(f"a modality without an encoder is {AGE}, {CHANNEL} or {WORDS}, given {source.kind}")
    from features.words import count_words  # noqa: PLC0415 - scikit-learn, which only words need

    counts = count_words([one.title for one in candidates], [one.description for one in candidates])
    return words_block(source.modality, counts)


def _year(published: Published, reference: np.datetime64) -> int:
    """The year that an age is counted from where there is no day: that of the reference if none is given."""
    return published.year or int(reference.astype("datetime64[Y]").astype(np.int64)) + 1970
