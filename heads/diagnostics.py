"""How far to trust a score: the same head under harder splits, and how much the test videos differ."""

import numpy as np
from jaxtyping import Float64

from heads.chunks import Chunks
from heads.folds import FoldPlan, kfold
from heads.inputs import Inputs, stacked
from heads.linear import fit_linear, out_of_fold_msle
from heads.ridge import Problem
from heads.targets import Target

AUC_FOLDS = 3


def linear_msle(inputs: Chunks, log_views: Float64[np.ndarray, " video"], plan: FoldPlan, seed: int) -> float:
    """Out-of-fold MSLE of the linear head under a plan, all modalities on equal terms."""
    return out_of_fold_msle(Problem(inputs, log_views, plan, np.ones(len(log_views)), seed))


def adversarial_auc(train: Inputs, test: Inputs, seed: int) -> dict[str, float]:
    """How well each modality alone tells test videos from training videos, as the area under the ROC curve.

    0.5 means that they look alike. Far above it the test videos are of another kind, and random folds promise too much.
    Raises UnfitDataError where there are too few of either for every fold to learn from.
    """
    from sklearn.metrics import roc_auc_score  # noqa: PLC0415  takes a second

    is_test = np.repeat([0.0, 1.0], [train.n_videos, test.n_videos])
    plan = kfold(len(is_test), AUC_FOLDS, seed)
    found = {}
    for block in stacked(train, test).blocks:
        alone = Inputs((block,))
        members = fit_linear(alone, is_test, plan, seed=seed, target=Target("none"), search=False).members
        predicted = np.empty(len(is_test))
        for member in members:
            rows = plan.val_rows(member.fold)
            predicted[rows] = member.final.predict(alone.take(rows))
        found[block.modality] = float(roc_auc_score(is_test, predicted))
    return found
