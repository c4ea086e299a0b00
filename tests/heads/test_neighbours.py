"""Near-duplicates across folds, against every pair looked at in turn."""

import numpy as np
import pytest

from heads import neighbours
from heads.folds import FoldPlan
from heads.inputs import Block
from heads.neighbours import near_duplicates_across_folds


def draw(seed: int = 0) -> Block:
    """Forty vectors in three dimensions, of which some are close; one is absent and one is zero."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(40, 3))
    values[7] = 0
    return Block.embedding("image", values, np.arange(40) != 3)


def plan_of(fold_of, *, expanding: bool = False) -> FoldPlan:
    return FoldPlan(fold_of=np.array(fold_of, dtype=np.int32), split="file", seed=None, expanding=expanding)


PLANS = [plan_of(np.arange(40) % 3), plan_of(np.arange(40) // 10 - 1, expanding=True)]


@pytest.mark.parametrize("plan", PLANS, ids=["random", "expanding"])
@pytest.mark.parametrize("rows_at_a_time", [3, 4096])
def test_every_pair_of_a_validated_row_and_one_that_trains_its_member_is_compared(plan, rows_at_a_time, monkeypatch):
    monkeypatch.setattr(neighbours, "BLOCK_ROWS", rows_at_a_time)
    block = draw()
    closest = {}
    for fold in range(plan.n_folds):
        for row in plan.val_rows(fold):
            for other in plan.train_rows(fold):
                if not {row, other} & {3, 7}:
                    cosine = float(block.values[row] @ block.values[other])
                    closest[row] = max(closest.get(row, (-2.0, -1)), (cosine, -other))
    near = {row: pair for row, pair in closest.items() if pair[0] > 0.95}
    found = near_duplicates_across_folds(block, plan, near=0.95)
    assert 0 < found.n_rows == len(near) < len(closest) == found.n_compared
    expected = sorted(((row, -other, cosine) for row, (cosine, other) in near.items()), key=lambda pair: -pair[2])[:5]
    assert [cosine for *_, cosine in found.first] == pytest.approx([cosine for *_, cosine in expected])
    for row, other, cosine in found.first:
        assert cosine == pytest.approx(near[row][0], abs=1e-6)
        assert float(block.values[row] @ block.values[other]) == pytest.approx(cosine, abs=1e-6)


def test_rows_of_one_fold_may_be_as_close_as_they_like():
    values = np.repeat(np.eye(3), 4, axis=0)
    block = Block.embedding("text", values, np.ones(12, dtype=bool))
    assert near_duplicates_across_folds(block, plan_of(np.arange(12) // 4)).n_rows == 0
    assert near_duplicates_across_folds(block, plan_of(np.arange(12) % 2)).n_rows == 12


def test_a_plan_of_other_videos_is_refused():
    with pytest.raises(ValueError, match="as many vectors, given 40"):
        near_duplicates_across_folds(draw(), plan_of([0, 1]))
