"""`--precision int8`: measured on the dataset before it is used, and refused if it changes the vectors too much."""

import json
from collections.abc import Sequence

import numpy as np

from features.encoders import EncoderConfig
from features.plan import CachePlan
from features.preprocess import read_thumbnail
from features.progress import Progress
from features.videos import VideoTable

INT8 = "int8"

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
    """How near vectors in 8 bits are to those in fp32, ready for a manifest: what no earlier plan holds is measured.

    Raises
    ------
    UsageError
        Not near enough (the message has the numbers), or the device is a GPU.
    """
    there = earlier.environment if earlier is not None else {}
    known = {key: there[key] for kind in kinds if (key := _key(kind)) in there}
    new = [kind for kind in kinds if _key(kind) not in known]
    if not new:
        return known
    from features.families import load_encoder  # noqa: PLC0415 - imports torch and transformers
    from features.quantised import measured_agreement, require_agreement  # noqa: PLC0415 - as above

    quantised = load_encoder(encoder, new, device, INT8)
    exact = load_encoder(encoder, new, "cpu", "fp32")
    pixels, texts = _sample(encoder, new, videos)
    found = measured_agreement(exact, quantised, pixels=pixels, texts=texts)
    require_agreement(found, encoder.tag)
    for kind, agreement in found.items():
        progress.note(
            f"int8: {kind} vectors have a cosine of {agreement.mean:.4f} with those in fp32 (smallest "
            f"{agreement.smallest:.4f}; without what all share {agreement.centred_mean:.4f}, smallest "
            f"{agreement.centred_smallest:.4f}; {agreement.inputs} inputs)"
        )
    return known | {_key(kind): json.dumps(agreement.to_dict()) for kind, agreement in found.items()}


def _key(kind: str) -> str:
    """Where the environment of a manifest holds the measurement of a kind."""
    return f"int8_agreement_{kind}"


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
