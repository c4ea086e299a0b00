"""Every kind of head behind one call: inputs, target and fold plan in, one member per fold out."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float64

from heads.chunks import Chunks, in_memory
from heads.config import HeadsConfig
from heads.folds import FoldPlan
from heads.linear import fit_linear
from heads.members import EpochRecord, FittedModel, Training
from heads.targets import Target


def fit(
    inputs: Chunks,
    log_views: Float64[np.ndarray, " video"],
    plan: FoldPlan,
    config: HeadsConfig,
    *,
    device: str = "cpu",
    on_epoch: Callable[[EpochRecord], None] | None = None,
) -> Training[FittedModel]:
    """Fit the heads that `config.head` names; torch is imported only for those that are trained by it.

    The linear head alone takes inputs that are not in memory, unless they have words: TypeError otherwise.

    `on_epoch` is told of every member after every epoch; a head that is solved has one record per member, at the end.

    Raises ValueError for arrays of different length, and UnfitDataError for rows that cannot teach what is asked.
    """
    training: Training[FittedModel]
    if config.head == "linear":
        training = fit_linear(
            inputs, log_views, plan, seed=config.seed, target=Target(config.target), search=config.search
        )
    elif config.head == "trees":
        from heads.tree_head import fit_trees  # noqa: PLC0415  scikit-learn's trees take a second to import

        training = fit_trees(in_memory(inputs), log_views, plan, config)
    elif config.head == "hybrid":
        from heads.hybrid import fit_hybrid  # noqa: PLC0415  torch takes seconds to import

        return fit_hybrid(in_memory(inputs), log_views, plan, config, device=device, on_epoch=on_epoch)
    else:
        from heads.training import train_members  # noqa: PLC0415  as above

        return Training(train_members(in_memory(inputs), log_views, plan, config, device=device, on_epoch=on_epoch))
    for record in (record for member in training.members for record in member.history):
        if on_epoch is not None:
            on_epoch(record)
    return training
