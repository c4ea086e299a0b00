"""The encoders that a run was trained on, found again and checked, for what is not in any cache."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Bool, Float16, Float32, UInt8

from features.embed import Encoder, rounded
from features.encoders import EncoderConfig, cache_tag
from features.errors import CacheError, UsageError
from features.families import load_encoder
from features.kinds import IMAGE, SEPARATE, TEXT
from features.preprocess import read_thumbnail
from features.progress import Progress
from features.status import Status
from features.videos import VideoText
from pipeline.devices import choose_device
from pipeline.found_encoder import FoundEncoder, find_encoder
from pipeline.runs import Run
from pipeline.workspace import Workspace

if TYPE_CHECKING:
    from pipeline.tuning.tuned_towers import ChangingEncoder


@dataclass(frozen=True, eq=False)
class Encoded:
    """One vector per row, rounded as a cache rounds it; a row whose status is not OK has none."""

    vectors: Float16[np.ndarray, "row dim"]
    status: UInt8[np.ndarray, " row"]

    @property
    def present(self) -> Bool[np.ndarray, " row"]:
        """Which rows have a vector."""
        return np.asarray(self.status == Status.OK)


class _Made(NamedTuple):
    """The vector of one image or text, or why there is none."""

    vector: Float32[np.ndarray, " dim"] | None
    status: Status


class RunEncoders:
    """Finds, checks and loads the encoders of a run, each when it is first needed.

    Parameters
    ----------
    models
        Names or folders of encoders, for those that cannot be found by the name of their cache.
    device
        "auto", "cpu" or "cuda".
    """

    def __init__(
        self, workspace: Workspace, run: Run, *, models: Sequence[str], device: str, progress: Progress
    ) -> None:
        self._workspace, self._run, self._device, self._progress = workspace, run, device, progress
        self._name_of = _by_tag(models, list(run.part("encoders")))
        self._encoders: dict[str, FoundEncoder] = {}
        self._loaded: dict[tuple[str, str], Encoder] = {}
        self._changing: dict[tuple[str, str], ChangingEncoder] = {}
        self._towers = ""

    def wear(self, towers: str) -> None:
        """Encode with the towers that a file of the run holds from now on; an empty name means the frozen ones."""
        self._towers = towers

    def images(self, tag: str, images: Sequence[Path | Status]) -> Encoded:
        """Vectors of thumbnails. Each is encoded alone, so its vector does not depend on what else is asked.

        Raises
        ------
        UsageError, CacheError
            The encoder cannot be found, or its files are not those that the run was trained on.
        """
        made = {image: self._image(tag, image) for image in dict.fromkeys(images)}
        return _encoded([made[image] for image in images], self._encoder(tag).dim[IMAGE])

    def texts(self, tag: str, kind: str, texts: Sequence[tuple[str, str]]) -> Encoded:
        """Vectors of titles and descriptions, each encoded alone; raises as `images` does."""
        if kind not in (TEXT, *SEPARATE):
            raise CacheError(f"run {self._run.name} reads {kind} of {tag}, which is not made for new videos")
        policy = self._encoder(tag).text
        if policy is None:
            raise CacheError(f"run {self._run.name} reads texts with {tag}, which makes vectors of pictures alone")
        made = {
            text: self._text(tag, policy.prompt(*VideoText(*text).of_kind(kind)).text) for text in dict.fromkeys(texts)
        }
        return _encoded([made[text] for text in texts], self._encoder(tag).dim[TEXT])

    def _image(self, tag: str, image: Path | Status) -> _Made:
        if isinstance(image, Status):
            return _Made(None, image)
        tower = self._tower(tag, IMAGE)
        thumbnail = read_thumbnail(image, self._encoder(tag).preprocess)
        if thumbnail.pixels is None:
            return _Made(None, thumbnail.status)
        return _Made(tower.encode_images(thumbnail.pixels[None])[0], Status.OK)

    def _text(self, tag: str, prompt: str) -> _Made:
        if not prompt:
            return _Made(None, Status.EMPTY_TEXT)
        tower = self._tower(tag, TEXT)
        (tokens,), _ = tower.tokenize([prompt])
        return _Made(tower.encode_tokens([tokens], tower.text_layout.pad_to(len(tokens)))[0], Status.OK)

    def _encoder(self, tag: str) -> EncoderConfig:
        return self._found(tag).config

    def _tower(self, tag: str, kind: str) -> Encoder:
        if self._towers:
            return self._tuned(tag, kind)
        if (tag, kind) not in self._loaded:
            encoder, precision = self._found(tag)
            self._loaded[tag, kind] = load_encoder(encoder, [kind], choose_device(self._device), precision)
        return self._loaded[tag, kind]

    def _tuned(self, tag: str, kind: str) -> Encoder:
        """In float32, in which it was tuned, whatever the precision of the frozen vectors was."""
        from pipeline.tuning.tuned_towers import ChangingEncoder  # noqa: PLC0415 - torch

        if (tag, kind) not in self._changing:
            encoder = self._encoder(tag)
            loaded = load_encoder(encoder, [kind], choose_device(self._device), "fp32")
            self._changing[tag, kind] = ChangingEncoder(loaded, encoder)
        changing = self._changing[tag, kind]
        changing.wear(self._run, self._towers)
        return changing.encoder

    def _found(self, tag: str) -> FoundEncoder:
        if tag not in self._encoders:
            self._encoders[tag] = find_encoder(self._workspace, self._run, tag, self._name_of.get(tag))
            for notice in self._encoders[tag].config.notices:
                self._progress.note(notice)
        return self._encoders[tag]


def _encoded(made: Sequence[_Made], dim: int) -> Encoded:
    """Vectors and statuses of all rows."""
    vectors = np.zeros((len(made), dim), np.float32)
    for row, (vector, _) in enumerate(made):
        if vector is not None:
            vectors[row] = vector
    status = np.array([one.status for one in made], np.uint8)
    return Encoded(rounded(vectors, status), status)


def _by_tag(models: Sequence[str], tags: Sequence[str]) -> dict[str, str]:
    """Which encoder each `--model` names: by its tag, or the only one there is."""
    if len(models) == len(tags) == 1:
        return {tags[0]: models[0]}
    named = {cache_tag(model): model for model in models}
    if unknown := [model for tag, model in named.items() if tag not in tags]:
        there = ", ".join(tags) or "none"
        raise UsageError(f"--model names {', '.join(unknown)}, but the encoders of the run are: {there}")
    return named
