"""Options of the heads; each default is written here and nowhere else.

The text in `Annotated` is what `vp train-heads --help` shows.
"""

from dataclasses import dataclass, replace
from typing import Annotated, Literal, TypeVar

Config = TypeVar("Config", bound="HeadsConfig")

MAX_SEED = 2**32 - 1
"""The largest seed that numpy and scikit-learn take."""


@dataclass(frozen=True, kw_only=True)
class HeadsConfig:
    """What is trained on the cached embeddings, and how."""

    head: Annotated[
        Literal["linear", "hybrid", "mlp", "trees"],
        "linear: ridge in closed form; mlp: a network per modality; hybrid: both in turn; trees: boosted trees",
    ] = "hybrid"
    folds: Annotated[int, "number of folds; each row is validated once, by the member that did not train on it"] = 3
    seed: Annotated[int, "seed of the folds, the initial weights, the batches and the dropout"] = 42
    search: Annotated[bool, "linear, hybrid: also fit how dear each modality is in comparison with the others"] = True
    target: Annotated[Literal["log1p", "none"], "log1p: counts such as views; none: any real number"] = "log1p"
    epochs: Annotated[int, "passes over the training rows of each fold"] = 30
    lr: Annotated[float, "learning rate of AdamW"] = 1e-3
    weight_decay: Annotated[float, "decoupled weight decay of AdamW"] = 1e-2
    hidden_dim: Annotated[int, "width H of the image and text heads: dim -> H -> H/2 -> 1"] = 512
    dropout: Annotated[float, "share of hidden units dropped while training"] = 0.1
    batch_size: Annotated[int, "rows per training step"] = 512
    seeds: Annotated[int, "members per fold, of seed, seed + 1, ...; a fold predicts their mean of log views"] = 1
    patience: Annotated[int, "epochs without improvement after which a member stops; 0: it never does"] = 0
    joint: Annotated[bool, "hybrid: also a network across the modalities; the head is then not additive"] = False

    def __post_init__(self) -> None:
        last = self.seed + self.seeds - 1
        rules = {
            f"--folds must be at least 2, not {self.folds}": self.folds >= 2,
            f"--epochs must be at least 1, not {self.epochs}": self.epochs >= 1,
            f"--lr must be above 0, not {self.lr}": self.lr > 0,
            f"--hidden-dim must be at least 2, not {self.hidden_dim}": self.hidden_dim >= 2,
            f"--dropout must be at least 0 and at most 0.99, not {self.dropout}": 0 <= self.dropout <= 0.99,
            f"--batch-size must be at least 1, not {self.batch_size}": self.batch_size >= 1,
            f"--seed must lie between 0 and {MAX_SEED}, not at {self.seed}": 0 <= self.seed <= MAX_SEED,
            f"--weight-decay must not be negative, as {self.weight_decay} is": self.weight_decay >= 0,
            f"--seeds must be at least 1, not {self.seeds}": self.seeds >= 1,
            f"--seed {self.seed} and --seeds {self.seeds} must end at {MAX_SEED} at most, not at {last}": (
                self.seed > MAX_SEED or last <= MAX_SEED
            ),
            f"--patience must not be negative, as {self.patience} is": self.patience >= 0,
            f"--joint belongs to --head hybrid, not to {self.head}": not self.joint or self.head == "hybrid",
        }
        if broken := [rule for rule, holds in rules.items() if not holds]:
            raise ValueError("; ".join(broken))

    def of_each_seed(self: Config) -> list[Config]:
        """The same configuration with one seed, for each of the `seeds`.

        >>> [config.seed for config in HeadsConfig(seed=7, seeds=2).of_each_seed()]
        [7, 8]
        """
        return [replace(self, seed=self.seed + place, seeds=1) for place in range(self.seeds)]
