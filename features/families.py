"""From a resolved encoder to a loaded one, whatever its family."""

import gc
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from features.embed import Encoder
from features.encoders import EncoderConfig
from features.errors import UsageError


class TowerEncoder(Encoder, Protocol):
    """An encoder whose networks can be looked into: kind of vector -> torch module."""

    towers: dict[str, Any]

    def image_vectors(self, pixels: Any) -> Any:
        """Tensor of vectors of a tensor of grey levels, both on the device; gradients flow through."""

    def text_vectors(self, tokens: Sequence[Any], pad_to: int | None) -> Any:
        """Tensor of vectors of tokenised texts, on the device; gradients flow through."""


Family = Callable[[EncoderConfig, Sequence[str], str, str], TowerEncoder]


def load_encoder(
    config: EncoderConfig, kinds: Sequence[str], device: str, precision: str, *, compiled: bool = False
) -> TowerEncoder:
    """Load these towers ("image", "text"), and nothing else.

    Parameters
    ----------
    config
        Which checkpoint, from `resolve_encoder`.
    kinds
        What will be encoded; some of `config.dim`.
    device
        As torch names it: "cpu", "cuda:0".
    precision
        Of weights and activations: "fp32", "bf16", "fp16", or "int8" for linear layers of 8 bits (CPUs only; whether
        that is good enough is for `features.quantised.require_agreement` to say). Vectors come back as float32.
    compiled
        Have torch compile the tower of images, whose batches all have one shape; texts come in too many lengths.

    Raises
    ------
    UsageError
        The encoder does not make one of the kinds, its files do not fit together, or 8 bits were asked of a GPU.
    CacheError
        The weights are damaged or incomplete.
    """
    missing = [kind for kind in kinds if kind not in config.dim]
    if missing:
        raise UsageError(f"{config.tag} makes vectors of {', '.join(config.dim)}, not of {', '.join(missing)}")
    if precision != "int8":
        encoder = _load(config, kinds, device, precision)
        if compiled and "image" in encoder.towers:
            encoder.towers["image"].compile(dynamic=False)
        return encoder
    if device != "cpu":
        raise UsageError(f"--precision int8 is for CPUs, however the device is {device}: use bf16, or --device cpu")
    from features.quantised import quantise  # noqa: PLC0415 - imports torch

    return quantise(_load(config, kinds, device, "fp32"))


def _load(config: EncoderConfig, kinds: Sequence[str], device: str, precision: str) -> TowerEncoder:
    """Importing torch and transformers makes objects that all stay; looking for garbage among them takes 0.7 s of 4."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        return _family(config.family)(config, kinds, device, precision)
    finally:
        if was_enabled:
            gc.enable()


def _family(name: str) -> Family:
    """Find the family that reads a `model_type`; only that one is imported, with what it needs of transformers."""
    if name == "clip":
        from features.clip import ClipEncoder  # noqa: PLC0415 - as the docstring says

        return ClipEncoder
    if name == "siglip":
        from features.siglip import SiglipEncoder  # noqa: PLC0415 - as above

        return SiglipEncoder
    if name.startswith("dino"):
        from features.dino import DinoEncoder  # noqa: PLC0415 - as above

        return DinoEncoder
    from features.sentences import SentenceEncoder  # noqa: PLC0415 - as above

    return SentenceEncoder
