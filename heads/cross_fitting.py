"""What the linear head of a fold leaves over on training rows that it has not seen.

A ridge with more columns than rows knows its training rows nearly by heart, so what it leaves over of them says nothing
of what it leaves over of others (with `words`, on 1,800 rows: an error of 0.2 to 0.4 where it has seen them, 1.6 where
it has not). Networks that are to mend its errors have to learn from the latter.
"""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float64

from heads.errors import UnfitDataError
from heads.fold_ridge import FoldRidge
from heads.folds import kfold
from heads.linear import fitted_heads
from heads.ridge import Problem
from heads.targets import Target

PARTS = 3
"""Parts of the training rows; each is predicted by a ridge on the others."""


def cross_fitted(
    problem: Problem, fold: int, penalty: float, scales: Mapping[str, float], target: Target
) -> Float64[np.ndarray, " row"] | None:
    """Log views of the fold's training rows, each from a ridge of this penalty and these scales without its part.

    None where the other parts cannot teach that, as a modality or any spread of the target is in one part alone.
    """
    rows = problem.plan.train_rows(fold)
    log_pred = np.empty(len(rows))
    try:
        plan = kfold(len(rows), PARTS, problem.seed)
        inner = Problem(problem.inputs.take(rows), problem.log_views[rows], plan, problem.weights[rows], problem.seed)
        for part in range(PARTS):
            ridge, own = FoldRidge.build(inner, part), plan.val_rows(part)
            solution = ridge.solve(np.array([penalty]), scales).at(0)
            log_pred[own] = fitted_heads(ridge, solution, target).predict(inner.inputs.take(own))
    except UnfitDataError:
        return None
    return log_pred
