"""How much memory and arithmetic a fine-tuning takes, from the encoder's configuration alone."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from features.encoders import EncoderConfig
from features.errors import UsageError
from features.hub import read_json
from features.kinds import IMAGE, TEXT, tower_of
from features.layers import last_blocks
from pipeline.config import FinetuneConfig
from pipeline.outcome import size_told

LARGE_ON_A_CPU = 20_000_000
"""Parameters above which a CPU needs days; `tiny` has under a million."""

BYTES_KEPT = {"bf16": 40, "fp32": 64}
"""What a block keeps for the backward pass per token and unit of its width, with fused attention: counted from the
tensors that autograd saves of a block of CLIP. More than the 34 of Korthikanti et al. (arXiv:2205.05198, without the
scores of attention), because under autocast what is added up block by block stays in float32, and each of query, key
and value casts its input anew."""
BYTES_KEPT_OF_CHECKPOINT = 4
"""The same of a block whose activations are computed again: its input, in float32."""
BYTES_TRAINED, BYTES_FROZEN = 20, 4
"""Weight, gradient, two moments and moving average of a parameter in float32; or the weight alone."""
BYTES_ON_HOST = 36
"""Of a trained parameter in main memory: the start twice, four tensors of the state, the best average, the values that
are put aside while another model validates, and the bytes that are written; each in float32."""
BYTES_ON_DISK, BYTES_REPLACED = 20, 16
"""Of a trained parameter in a state: four tensors and the best average; and the four of the epoch before it, which go
when it is whole."""
BYTES_CAST = 2
"""Of a weight in bf16, as the products read it."""
CPU_FLOPS = 1e11
"""What a few cores reach in float32, within a factor of a few."""

_DEFAULTS = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "intermediate_size": 3072,
    "vocab_size": 49_408,
    "patch_size": 16,
}


@dataclass(frozen=True)
class TowerSize:
    """One tower: how many blocks of which width, how many tokens go through, and the parameters outside of blocks."""

    blocks: int
    width: int
    inner: int
    tokens: int
    outside: int

    @property
    def block_parameters(self) -> int:
        """Of one block: attention and the two layers behind it."""
        return 4 * self.width**2 + 2 * self.width * self.inner

    @property
    def parameters(self) -> int:
        """Of the tower, without biases and norms."""
        return self.blocks * self.block_parameters + self.outside

    def block_additions(self, rank: int) -> int:
        """Of what `--lora` adds to one block: to four square layers and to the two behind them."""
        return rank * (8 * self.width + 2 * (self.width + self.inner))


@dataclass(frozen=True)
class Estimate:
    """What one fold takes on its device."""

    parameters: int
    trained: int
    state_bytes: int
    activation_bytes: int
    flops: float

    def disk_bytes(self, folds: int) -> int:
        """What all states take at most, until the run is made."""
        return folds * self.trained * (BYTES_ON_DISK + BYTES_REPLACED)

    def told_beside(self, folds: int) -> str:
        """What it takes beside the device, as one line."""
        return (
            f"about {size_told(self.trained * BYTES_ON_HOST)} of main memory for each device, and up to "
            f"{size_told(self.disk_bytes(folds))} on disk until the run is made"
        )

    @property
    def told(self) -> str:
        """What it takes on the device, as one line."""
        return (
            f"{self.parameters / 1e6:.1f} M parameters, {self.trained / 1e6:.1f} M of them trained; about "
            f"{size_told(self.state_bytes + self.activation_bytes)} of memory for each fold ("
            f"{size_told(self.state_bytes)} weights and optimiser, {size_told(self.activation_bytes)} activations)"
        )


def estimate(
    config: FinetuneConfig, encoder: EncoderConfig, kinds: Sequence[str], rows: int, precision: str = "bf16"
) -> Estimate:
    """Estimate a fold with `rows` training rows, of which some kinds of vector are made, in "bf16" or "fp32".

    Raises
    ------
    UsageError
        --unfreeze is not understood.
    """
    uses = Counter(map(tower_of, kinds))  # titles and descriptions apart go through one tower
    towers = {name: tower_size(encoder, name) for name in uses}
    state, activations, trained, flops = 0, 0, 0, 0.0
    bf16 = precision == "bf16"
    for name, tower in towers.items():
        blocks, ours = _trained(config, tower)
        trained += ours
        frozen = tower.parameters - (0 if config.lora else ours)
        state += ours * BYTES_TRAINED + frozen * BYTES_FROZEN + bf16 * tower.parameters * BYTES_CAST
        per_block = tower.tokens * tower.width
        kept = BYTES_KEPT_OF_CHECKPOINT * blocks + BYTES_KEPT[precision]  # all inputs, and one block at a time
        full = BYTES_KEPT[precision] * blocks
        activations += config.batch_size * (kept if config.gradient_checkpointing else full) * per_block * uses[name]
        # Forward through all blocks; back through those that train, and once more for weights that are trained whole.
        passes = 2 * tower.blocks + (2 if config.lora else 4) * blocks
        flops += passes * tower.block_parameters * tower.tokens * rows * config.epochs * uses[name]
    return Estimate(sum(tower.parameters for tower in towers.values()), trained, state, activations, flops)


def _trained(config: FinetuneConfig, tower: TowerSize) -> tuple[int, int]:
    """How many blocks gradients flow through, and how many parameters they train."""
    if config.freeze_clip:
        return 0, 0
    blocks = tower.blocks if config.unfreeze == "all" else min(last_blocks(config.unfreeze), tower.blocks)
    if config.lora:
        return blocks, blocks * tower.block_additions(config.lora)
    return blocks, tower.parameters if config.unfreeze == "all" else blocks * tower.block_parameters


def refuse_on_cpu(config: FinetuneConfig, estimated: Estimate, folds: int) -> None:
    """Raise UsageError where a CPU would train for days, unless that was asked for."""
    if config.force or estimated.parameters <= LARGE_ON_A_CPU:
        return
    hours = estimated.flops * folds / CPU_FLOPS / 3600
    raise UsageError(
        f"this encoder is too large to be fine-tuned on a CPU ({estimated.told}; roughly {hours:,.0f} hours): use a "
        "GPU (--gpus 0), --freeze-clip with a smaller encoder, or --force"
    )


def tower_size(encoder: EncoderConfig, name: str) -> TowerSize:
    """The tower "image" or "text" in config.json; what that leaves out has the defaults of transformers' base sizes."""
    whole = read_json(encoder.folder / "config.json")
    section = whole.get("vision_config" if name == IMAGE else "text_config", whole)
    numbers = {**_DEFAULTS, **({"hidden_size": 512, "intermediate_size": 2048} if _is_clip_text(whole, name) else {})}
    numbers |= {key: value for key, value in section.items() if key in numbers and isinstance(value, int)}
    width, patch = numbers["hidden_size"], numbers["patch_size"]
    if name == IMAGE:
        height, across = encoder.preprocess.output if encoder.preprocess else (224, 224)
        tokens = (height // patch) * (across // patch) + 1
        outside = width * (3 * patch**2 + tokens)
    else:
        tokens = encoder.max_tokens
        outside = width * (numbers["vocab_size"] + tokens)
    return TowerSize(numbers["num_hidden_layers"], width, numbers["intermediate_size"], tokens, outside)


def _is_clip_text(whole: dict[str, object], name: str) -> bool:
    return name == TEXT and whole.get("model_type") == "clip"
