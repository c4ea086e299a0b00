"""`--precision int8`: measured on the dataset before it is used, and refused if it changes the vectors too much."""

import json
from collections.abc import Sequence

import numpy as np

from features.encoders import EncoderConfig
from features.plan import CachePlan
from features.preprocess import read_thumbnail
from features.progress import Progress
from features.videos import VideoTable

INT8, RECORD = "int8", "int8_agreement"
"""The precision, and the key of its measurement in the environment of a manifest."""

SAMPLE_ROWS = 64


def int8_record(
    encoder: EncoderConfig,
    kinds: Sequence[str],
    videos: VideoTable,
    *,
    device: str,
    earlier: CachePlan | None,
    progress: Progress,
) -> dict[str, str]:
    """How near vectors in 8 bits are to those in fp32, ready for a manifest: from an earlier plan, else measured.

    Raises
    ------
    UsageError
        Not near enough (the message has the numbers), or the device is a GPU.
    """
    if earlier is not None and RECORD in earlier.environment:
        return {RECORD: earlier.environment[RECORD]}
    from features.families import load_encoder  # noqa: PLC0415 - imports torch and transformers
    from features.quantised import measured_agreement, require_agreement  # noqa: PLC0415 - as above

    quantised = load_encoder(encoder, kinds, device, INT8)
    exact = load_encoder(encoder, kinds, "cpu", "fp32")
    pixels, texts = _sample(encoder, kinds, videos)
    found = measured_agreement(exact, quantised, pixels=pixels, texts=texts)
    require_agreement(found, encoder.tag)
    for kind, agreement in found.items():
        progress.note(
            f"int8: {kind} vectors have a cosine of {agreement.mean:.4f} with those in fp32 (smallest "
            f"{agreement.smallest:.4f}; without what all share {agreement.centred_mean:.4f}, smallest "
            f"{agreement.centred_smallest:.4f}; {agreement.inputs} inputs)"
        )
    return {RECORD: json.dumps({kind: agreement.to_dict() for kind, agreement in found.items()})}


def _sample(encoder: EncoderConfig, kinds: Sequence[str], videos: VideoTable) -> tuple["np.ndarray | None", list[str]]:
    """Pictures and texts of rows that are spread evenly over the table."""
    rows = np.unique(np.linspace(0, len(videos) - 1, SAMPLE_ROWS).astype(int)).tolist()
    texts: list[str] = []
    pixels = None
    if "text" in kinds:
        words = [videos.texts(row, row + 1)[0] for row in rows]
        texts = [encoder.text.prompt(text.title, text.description).text for text in words] if encoder.text else []
    if "image" in kinds:
        read = (read_thumbnail(videos.thumbnail(row), encoder.preprocess).pixels for row in rows)
        good = [crop for crop in read if crop is not None]
        pixels = np.stack(good) if good else None
    return pixels, texts
