"""From inputs to trained members: of one configuration, or of the best of those that a sweep tries."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float64

from features.errors import UsageError
from features.progress import Progress
from heads.chunks import Chunks, in_memory
from heads.fit import SWEPT, fit, fit_each
from heads.folds import FoldPlan
from heads.members import EpochRecord, FittedModel, Training
from heads.sweep import Selection, configurations
from pipeline.config import TrainHeadsConfig
from pipeline.devices import choose_device
from pipeline.outcome import table

TUNES_BY_ITSELF = {
    "linear": "the linear head solves every penalty and chooses it, and how dear each modality is, by itself",
    "trees": "the trees have fixed settings that were chosen once, and none of the keys of a sweep",
}


@dataclass(frozen=True, eq=False)
class Fitted:
    """The configuration that was trained in the end, its members, and the facts of the sweep that chose it."""

    config: TrainHeadsConfig
    training: Training[FittedModel]
    sweep: Mapping[str, Any] = field(default_factory=dict)


def tried(config: TrainHeadsConfig) -> Sequence[TrainHeadsConfig]:
    """The configurations that a command asks for, without `--sweep` the one.

    Raises
    ------
    UsageError
        A sweep of a head that tunes itself, or one that makes no sense.
    """
    if config.sweep and config.head not in SWEPT:
        raise UsageError(f"--sweep is for --head {' and '.join(SWEPT)}: {TUNES_BY_ITSELF[config.head]}")
    try:
        return configurations(config, config.sweep) if config.sweep else [config]
    except ValueError as error:
        raise UsageError(str(error)) from error


def train(
    config: TrainHeadsConfig,
    inputs: Chunks,
    log_views: Float64[np.ndarray, " video"],
    plan: FoldPlan,
    *,
    told: Callable[[EpochRecord], None],
    progress: Progress,
) -> Fitted:
    """Train; `told` hears of every epoch, in a sweep of those of the configuration that was chosen."""
    configs = tried(config)

    def on_epoch(record: EpochRecord) -> None:
        progress.advance(1)
        if not config.sweep:
            told(record)

    device = choose_device(config.device) if config.head in SWEPT else "cpu"
    progress.begin(f"{config.head} heads on {device}", _n_epochs(config, plan) * len(configs), "epochs")
    if config.sweep:
        trainings = fit_each(inputs, log_views, plan, configs, device=device, on_epoch=on_epoch)
    else:
        trainings = [fit(inputs, log_views, plan, config, device=device, on_epoch=on_epoch)]
    progress.end()
    fitted = Fitted(config, trainings[0])
    if config.sweep:
        selection = Selection.of(
            configs, config.sweep, trainings, inputs=in_memory(inputs), log_views=log_views, plan=plan
        )
        fitted = Fitted(configs[selection.chosen], trainings[selection.chosen], selection.facts())
        for member in fitted.training.members:
            for record in member.history:
                told(record)
    for note in fitted.training.notes:
        progress.warn(note)
    return fitted


def _n_epochs(config: TrainHeadsConfig, plan: FoldPlan) -> int:
    """How often a member of one configuration tells of an epoch, at most."""
    if config.head not in SWEPT:
        return plan.n_folds * (1 if config.head == "linear" else config.seeds)
    return plan.n_folds * config.seeds * config.epochs * (2 if config.joint else 1)


def told_sweep(sweep: Mapping[str, Any]) -> list[str]:
    """The lines that are printed of a sweep."""
    keys = list(sweep["chosen"])
    lines = [[*keys, "MSLE best", "MSLE final", ""]]
    for row in sweep["configurations"]:
        values, is_chosen = [f"{row[key]:g}" for key in keys], all(row[key] == sweep["chosen"][key] for key in keys)
        errors = [f"{row[name]:.4f}" for name in ("oof_msle", "oof_msle_final")]
        lines.append([*values, *errors, "chosen" if is_chosen else ""])
    said = (
        f"the chosen one has seen the rows that score it: its final epoch scores {sweep['oof_msle_final']:.4f}, "
        f"{sweep['oof_msle_final_nested']:.4f} where each fold is chosen for by the other folds"
    )
    return [*table(lines), said]
