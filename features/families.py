"""From a resolved encoder to a loaded one, whatever its family."""

from collections.abc import Callable, Sequence

from features.embed import Encoder
from features.encoders import EncoderConfig
from features.errors import UsageError

Family = Callable[[EncoderConfig, Sequence[str], str, str], Encoder]


def load_encoder(config: EncoderConfig, kinds: Sequence[str], device: str, precision: str) -> Encoder:
    """Load the towers for these kinds of vector ("image", "text"), and nothing else.

    Parameters
    ----------
    config
        Which checkpoint, from `resolve_encoder`.
    kinds
        What will be encoded; some of `config.dim`.
    device
        As torch names it: "cpu", "cuda:0".
    precision
        Of weights and activations: "fp32", "bf16", "fp16"; vectors come back as float32.

    Raises
    ------
    UsageError
        The encoder does not make one of the kinds, or its files do not fit together.
    CacheError
        The weights are damaged or incomplete.
    """
    missing = [kind for kind in kinds if kind not in config.dim]
    if missing:
        raise UsageError(f"{config.tag} makes vectors of {', '.join(config.dim)}, not of {', '.join(missing)}")
    return _family(config.family)(config, kinds, device, precision)


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
