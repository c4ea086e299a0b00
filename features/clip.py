"""CLIP as a frozen encoder: the two towers of a checkpoint in the layout of transformers, loaded only if asked for."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int64, UInt8
from safetensors import SafetensorError
from transformers import CLIPConfig, CLIPTextModelWithProjection, CLIPTokenizer, CLIPVisionModelWithProjection
from transformers.utils import logging as transformers_logging

from features.encoders import EncoderConfig
from features.errors import CacheError, UsageError
from features.preprocess import normalise

QUICK_GELU = 1.702  # x * sigmoid(1.702 x), the sigmoid approximation of Hendrycks and Gimpel (arXiv:1606.08415)

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

_LEGACY_EOS = 2  # in configurations before transformers pull request 24773; means "the largest id ends the text"


class ClipEncoder:
    """Thumbnails and texts -> projected CLIP vectors, not normalised: their length carries information.

    Parameters
    ----------
    config
        Which checkpoint, from `resolve_encoder`.
    modalities
        The towers to load.
    device
        As torch names it: "cpu", "cuda:0".
    precision
        Of weights and activations; vectors come back as float32.

    Raises
    ------
    CacheError
        The weights are damaged or incomplete.
    UsageError
        Tokenizer and text tower do not fit together.
    """

    trims_text = True  # causal attention: what follows the end token cannot change its vector

    def __init__(self, config: EncoderConfig, modalities: Sequence[str], device: str, precision: str) -> None:
        self.config = config
        self.max_tokens = config.text.max_tokens
        self._device = torch.device(device)
        self._dtype = _DTYPES[precision]
        with _quiet_transformers():
            if "image" in modalities:
                self._image_tower = self._load_tower(CLIPVisionModelWithProjection, "vision_config")
            if "text" in modalities:
                self._text_tower = self._load_tower(CLIPTextModelWithProjection, "text_config")
                self._tokenizer = CLIPTokenizer.from_pretrained(config.folder, local_files_only=True)
                self._eos = self._checked_eos()

    def encode_images(
        self, pixels: UInt8[np.ndarray, "batch 3 height width"] | UInt8[torch.Tensor, "batch 3 height width"]
    ) -> Float32[np.ndarray, "batch dim"]:
        """Vectors of crops made by `read_thumbnail`; a pinned tensor is copied without waiting."""
        with torch.inference_mode():
            on_device = torch.as_tensor(pixels).to(self._device, non_blocking=True)
            inputs = normalise(on_device, self.config.preprocess, self._dtype)
            return _to_numpy(self._image_tower(pixel_values=inputs).image_embeds)

    def tokenize(self, texts: Sequence[str]) -> tuple[list[Int64[np.ndarray, " _"]], Bool[np.ndarray, " text"]]:
        """Token ids of each text with start and end, at most `max_tokens`; and which texts were cut."""
        encodings = self._tokenizer.backend_tokenizer.encode_batch_fast(list(texts))
        full = [np.array(encoding.ids, np.int64) for encoding in encodings]
        truncated = np.array([len(ids) > self.max_tokens for ids in full], bool)
        return [self._cut(ids) for ids in full], truncated

    def encode_tokens(self, tokens: Sequence[Int64[np.ndarray, " _"]], pad_to: int) -> Float32[np.ndarray, "batch dim"]:
        """Vectors of tokenised texts, padded to `pad_to` with the end token.

        No attention mask is needed: attention is causal and the vector is read at the first end token.
        """
        longest = max(map(len, tokens))
        if not longest <= pad_to <= self.max_tokens:
            raise ValueError(f"pad_to must lie between {longest} and {self.max_tokens}, however: {pad_to}")
        padded = np.full((len(tokens), pad_to), self._eos, np.int64)
        for row, ids in zip(padded, tokens, strict=True):
            row[: len(ids)] = ids
        with torch.inference_mode():
            return _to_numpy(self._text_tower(input_ids=torch.from_numpy(padded).to(self._device)).text_embeds)

    def _cut(self, ids: Int64[np.ndarray, " token"]) -> Int64[np.ndarray, " kept"]:
        return ids if len(ids) <= self.max_tokens else np.append(ids[: self.max_tokens - 1], self._eos)

    def _load_tower(self, tower_class: Any, section: str) -> Callable[..., Any]:
        tower_config = getattr(CLIPConfig.from_pretrained(self.config.folder, local_files_only=True), section)
        tower_config.projection_dim = self.config.dim["image"]  # some files give the towers the default instead
        try:
            tower, report = tower_class.from_pretrained(
                self.config.folder,
                config=tower_config,
                dtype=torch.float32,
                attn_implementation="sdpa",
                local_files_only=True,
                use_safetensors=not self.config.pickled_weights,
                weights_only=True,
                output_loading_info=True,
            )
        except (OSError, RuntimeError, ValueError, SafetensorError, UnpicklingError) as error:
            raise CacheError(f"the weights in {self.config.folder} cannot be loaded: {_first_line(error)}") from error
        if report["missing_keys"]:
            missing = ", ".join(sorted(report["missing_keys"])[:3])
            raise CacheError(f"the weights in {self.config.folder} are not complete: {missing}, ... are missing")
        _fold_quick_gelu(tower)
        frozen: Callable[..., Any] = tower.eval().requires_grad_(requires_grad=False).to(self._device, self._dtype)
        return frozen

    def _checked_eos(self) -> int:
        tokenizer_eos = int(self._tokenizer.eos_token_id)
        tower_config = self._text_tower.config  # type: ignore[attr-defined]
        expected = (
            tower_config.vocab_size - 1 if tower_config.eos_token_id == _LEGACY_EOS else tower_config.eos_token_id
        )
        if tokenizer_eos != expected:
            raise UsageError(
                f"{self.config.folder}: the text tower reads its vector at token {expected}, however the tokenizer "
                f"ends a text with {tokenizer_eos}; vectors would be those of another position"
            )
        self._tokenizer.backend_tokenizer.no_truncation()
        self._tokenizer.backend_tokenizer.no_padding()
        return tokenizer_eos


def _fold_quick_gelu(tower: Any) -> None:
    """Replace QuickGELU by SiLU, exactly: one kernel where QuickGELU takes three.

    With c = 1.702, QuickGELU(x) = x sigmoid(c x) = SiLU(c x) / c; the layer before takes the c, the layer behind the
    1/c. Done in float32, before any cast.
    """
    if tower.config.hidden_act != "quick_gelu":
        return
    for layer in tower.modules():
        if not hasattr(layer, "activation_fn"):
            continue
        layer.fc1.weight.data.mul_(QUICK_GELU)
        layer.fc1.bias.data.mul_(QUICK_GELU)
        layer.fc2.weight.data.div_(QUICK_GELU)
        layer.activation_fn = torch.nn.SiLU()


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def _to_numpy(vectors: torch.Tensor) -> Float32[np.ndarray, "batch dim"]:
    return vectors.float().cpu().numpy()


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Keep transformers from printing a table of the weights that the other tower owns; then leave it as it was."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity(logging.ERROR)
    hook = transformers_logging.set_tqdm_hook(lambda bar, args, options: bar(*args, **{**options, "disable": True}))
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        transformers_logging.set_tqdm_hook(hook)
