"""What people write instead of `vp`: a library's ridge in a loop, boosted trees on components, a plain torch loop.

Each takes what the heads take and gives the out-of-fold MSLE of members that no validation row has influenced, but for
the ridge's penalty, which is the best one over all folds.
"""

import os
import warnings

import numpy as np
from numpy.typing import NDArray

from heads.folds import FoldPlan
from heads.inputs import Block, Inputs
from heads.linear import PENALTIES
from heads.metrics import msle

COMPONENTS, ROUNDS = 64, 300
EPOCHS, BATCH_SIZE, WIDTH, DROPOUT = 30, 512, 512, 0.1
AGE_STEPS_PER_YEAR, AGES = 4, 200


def ridge_loop(inputs: Inputs, log_views: NDArray[np.float64], plan: FoldPlan) -> float:
    """scikit-learn's Ridge, once per fold and penalty."""
    from scipy.linalg import LinAlgWarning
    from sklearn.linear_model import Ridge

    warnings.simplefilter("ignore", LinAlgWarning)  # the smallest penalties are far too small
    x = np.hstack([block.values for block in _blocks(inputs)])
    errors = np.zeros(len(PENALTIES))
    for place, penalty in enumerate(PENALTIES):
        predicted = np.empty_like(log_views)
        for fold in range(plan.n_folds):
            train, val = plan.train_rows(fold), plan.val_rows(fold)
            predicted[val] = Ridge(alpha=penalty).fit(x[train], log_views[train]).predict(x[val])
        errors[place] = msle(log_views, predicted)
    return float(errors.min())


def boosted_components(inputs: Inputs, log_views: NDArray[np.float64], plan: FoldPlan) -> float:
    """LightGBM on the first principal components of each embedding, fitted in each fold, and the other columns."""
    from lightgbm import LGBMRegressor
    from sklearn.decomposition import PCA

    predicted = np.empty_like(log_views)
    for fold in range(plan.n_folds):
        train, val = plan.train_rows(fold), plan.val_rows(fold)
        columns = [block.values for block in _blocks(inputs) if block.knotted]
        for block in _blocks(inputs):
            if not block.knotted:
                pca = PCA(min(COMPONENTS, block.values.shape[1]), random_state=0).fit(block.values[train])
                columns.append(pca.transform(block.values))
        x = np.hstack(columns)
        model = LGBMRegressor(n_estimators=ROUNDS, learning_rate=0.05, random_state=0, verbose=-1, n_jobs=threads())
        predicted[val] = model.fit(x[train], log_views[train]).predict(x[val])
    return msle(log_views, predicted)


def threads() -> int:
    """As many as the other libraries use."""
    return int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1)


def torch_loop(inputs: Inputs, log_views: NDArray[np.float64], plan: FoldPlan) -> float:
    """The networks of `--head mlp` as a tutorial writes them: a Dataset of rows, a DataLoader, one fold at a time."""
    import torch

    torch.manual_seed(0)
    predicted = np.empty_like(log_views)
    for fold in range(plan.n_folds):
        train, val = plan.train_rows(fold), plan.val_rows(fold)
        mean, sd = log_views[train].mean(), log_views[train].std()
        model = _network(inputs)
        _train(model, _rows(inputs, (log_views - mean) / sd, train))
        model.eval()
        with torch.no_grad():
            batches = torch.utils.data.DataLoader(_rows(inputs, log_views, val), BATCH_SIZE)
            z = torch.cat([model(features) for features, _ in batches]).numpy()
        predicted[val] = mean + sd * z.astype(np.float64)
    return msle(log_views, predicted)


def _train(model, rows) -> None:
    import torch

    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1e-2)
    batches = torch.utils.data.DataLoader(rows, BATCH_SIZE, shuffle=True)
    for _ in range(EPOCHS):
        for features, target in batches:
            optimiser.zero_grad()
            torch.nn.functional.mse_loss(model(features), target).backward()
            optimiser.step()


def _rows(inputs: Inputs, target: NDArray[np.float64], chosen: NDArray[np.int64]):
    """A map-style dataset: one row's tensors at a time."""
    import torch

    class Rows(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(chosen)

        def __getitem__(self, place: int):
            row = chosen[place]
            features = [torch.from_numpy(block.values[row]) for block in _blocks(inputs)]
            return features, torch.tensor(target[row], dtype=torch.float32)

    return Rows()


def _network(inputs: Inputs):
    """One head per modality, dim -> 512 -> 256 -> 1, ages through an embedding; weights on the simplex by softmax."""
    import torch
    from torch import nn

    def dense(dim: int) -> nn.Module:
        drop, half = nn.Dropout(DROPOUT), WIDTH // 2
        return nn.Sequential(
            nn.Linear(dim, WIDTH), nn.ReLU(), drop, nn.Linear(WIDTH, half), nn.ReLU(), drop, nn.Linear(half, 1)
        )

    class Age(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(AGES, 32)
            self.head = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 1))

        def forward(self, columns: torch.Tensor) -> torch.Tensor:
            steps = (columns[:, 0] * AGE_STEPS_PER_YEAR).long().clamp(0, AGES - 1)
            return self.head(self.table(steps))

    class Weighted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            heads = [Age() if block.knotted else dense(block.values.shape[1]) for block in _blocks(inputs)]
            self.heads, self.logits = nn.ModuleList(heads), nn.Parameter(torch.zeros(len(heads)))

        def forward(self, features: list[torch.Tensor]) -> torch.Tensor:
            outputs = torch.stack([head(own)[:, 0] for head, own in zip(self.heads, features, strict=True)])
            return self.logits.softmax(0) @ outputs

    return Weighted()


def _blocks(inputs: Inputs) -> list[Block]:
    return [block for block in inputs.blocks if isinstance(block, Block)]
