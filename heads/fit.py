"""Every kind of head behind one call: inputs, target and fold plan in, one member per fold out."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Float64

from heads.chunks import Chunks, in_memory
from heads.config import HeadsConfig
from heads.folds import FoldPlan
from heads.linear import fit_linear
from heads.members import EpochRecord, FittedModel, Training
from heads.targets import Target

OnEpoch = Callable[[EpochRecord], None]

SWEPT = ("mlp", "hybrid")
"""Heads that are trained, hence have learning rates and the like to try; the others tune themselves."""

NOT_RANDOM = "nothing about the linear head is random: it was fitted once instead of once per seed"


def fit(
    inputs: Chunks,
    log_views: Float64[np.ndarray, " video"],
    plan: FoldPlan,
    config: HeadsConfig,
    *,
    device: str = "cpu",
    on_epoch: OnEpoch | None = None,
) -> Training[FittedModel]:
    """Fit the heads that `config.head` names; torch is imported only for those that are trained by it.

    The linear head alone takes inputs that are not in memory, unless they have words: TypeError otherwise.

    `on_epoch` is told of every member after every epoch; a head that is solved has one record per member, at the end.

    Raises ValueError for arrays of different length, and UnfitDataError for rows that cannot teach what is asked.
    """
    if config.head in SWEPT:
        (trained,) = fit_each(inputs, log_views, plan, [config], device=device, on_epoch=on_epoch)
        return trained
    training: Training[FittedModel]
    if config.head == "linear":
        training = fit_linear(
            inputs, log_views, plan, seed=config.seed, target=Target(config.target), search=config.search
        )
        if config.seeds > 1:
            training = replace(training, notes=[*training.notes, NOT_RANDOM])
    else:
        from heads.tree_head import fit_trees  # noqa: PLC0415  scikit-learn's trees take a second to import

        training = fit_trees(in_memory(inputs), log_views, plan, config)
    for record in (record for member in training.members for record in member.history):
        if on_epoch is not None:
            on_epoch(record)
    return training


def fit_each(
    inputs: Chunks,
    log_views: Float64[np.ndarray, " video"],
    plan: FoldPlan,
    configs: Sequence[HeadsConfig],
    *,
    device: str = "cpu",
    on_epoch: OnEpoch | None = None,
) -> Sequence[Training[FittedModel]]:
    """`fit` of configurations of one kind of `SWEPT` head, as one program where their shapes allow it."""
    seen = in_memory(inputs)
    if configs[0].head == "hybrid":
        from heads.hybrid import fit_hybrids  # noqa: PLC0415  torch takes seconds to import

        return fit_hybrids(seen, log_views, plan, configs, device=device, on_epoch=on_epoch)
    from heads.training import train_each  # noqa: PLC0415  as above

    each = train_each(seen, log_views, plan, configs, device=device, on_epoch=on_epoch)
    return [Training(members) for members in each]
