"""How far to trust a score: the same head under another plan, and whether test videos look like training videos."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from heads.diagnostics import adversarial_auc, linear_msle
from heads.folds import FoldPlan, group, kfold
from heads.inputs import Block, Category, Inputs, Words
from heads.linear import fit_linear


def draw_videos(n_videos: int, seed: int, *, image_moves: float = 0.0, years_later: float = 0.0) -> Inputs:
    rng = np.random.default_rng(seed)
    image = rng.normal(size=(n_videos, 8)) + image_moves * np.eye(8)[0]
    return Inputs(
        (
            Block.embedding("image", image, rng.random(n_videos) > 0.1),
            Block.scalar("age", rng.uniform(0, 5, n_videos) + years_later),
        )
    )


def test_the_error_under_a_plan_is_that_of_all_rows_together_each_predicted_by_its_own_fold(gappy_world):
    inputs, log_views = gappy_world.inputs, gappy_world.log_views
    sizes = np.repeat(np.arange(3, dtype=np.int32), [30, 60, len(log_views) - 90])
    plan = FoldPlan(fold_of=np.random.default_rng(0).permutation(sizes), split="file", seed=None)
    out_of_fold = np.empty(len(log_views))
    for member in fit_linear(inputs, log_views, plan, seed=1, search=False).members:
        rows = plan.val_rows(member.fold)
        out_of_fold[rows] = member.final.predict(inputs.take(rows))
    expected = np.mean((out_of_fold - log_views) ** 2)
    assert linear_msle(inputs, log_views, plan, seed=1) == pytest.approx(expected, rel=1e-4)


def test_folds_by_group_show_that_a_score_rests_on_knowing_the_group():
    rng = np.random.default_rng(0)
    channels = rng.integers(0, 20, 300)
    fingerprints = rng.normal(size=(20, 40))[channels] + 0.1 * rng.normal(size=(300, 40))
    inputs = Inputs((Block.embedding("image", fingerprints, np.ones(300, dtype=bool)),))
    log_views = rng.normal(size=20)[channels] + 0.1 * rng.normal(size=300)
    ids = [str(row) for row in range(300)]
    by_channel = group([f"channel {channel}" for channel in channels], ids, 3, 42)
    random, honest = (linear_msle(inputs, log_views, plan, seed=0) for plan in (kfold(300, 3, 42), by_channel))
    assert honest > 5 * random


def test_test_videos_of_the_same_kind_are_not_told_from_training_videos():
    auc = adversarial_auc(draw_videos(300, 1), draw_videos(150, 2), seed=0)
    # The standard deviation of a blind guess is about sqrt(451 / (12 * 300 * 150)) = 0.029.
    assert auc == {"image": pytest.approx(0.5, abs=0.1), "age": pytest.approx(0.5, abs=0.1)}


def test_only_the_modality_that_shifted_gives_the_test_videos_away():
    for shift, moved, still in (({"years_later": 6.0}, "age", "image"), ({"image_moves": 4.0}, "image", "age")):
        auc = adversarial_auc(draw_videos(200, 1), draw_videos(100, 2, **shift), seed=0)
        assert auc[moved] > 0.9
        assert auc[still] == pytest.approx(0.5, abs=0.12)


def test_a_shift_to_the_middle_counts_although_it_is_not_along_a_line():
    """Knots see a test set that holds only the middle ages."""
    rng = np.random.default_rng(0)
    train = Inputs((Block.scalar("age", rng.uniform(0, 9, 300)),))
    test = Inputs((Block.scalar("age", rng.uniform(4, 5, 150)),))
    assert adversarial_auc(train, test, seed=0)["age"] > 0.85


def test_unseen_channels_and_new_words_give_the_test_videos_away():
    from scipy.sparse import csr_matrix

    rng = np.random.default_rng(0)

    def videos(channels: np.ndarray, word: int) -> Inputs:
        here = np.ones(len(channels), dtype=bool)
        counts = rng.poisson(0.3, size=(len(channels), 10)).astype(np.float32)
        counts[:, word] += 1
        return Inputs(
            (
                Category(modality="channel", codes=channels, present=here),
                Words(modality="words", counts=csr_matrix(counts), present=here),
            )
        )

    auc = adversarial_auc(videos(rng.integers(0, 5, 120), 0), videos(rng.integers(5, 10, 60), 1), seed=0)
    assert auc["channel"] > 0.95
    assert auc["words"] > 0.95


def test_each_video_is_judged_by_a_member_that_has_not_seen_it():
    """Noise with more columns than rows is told apart perfectly where it was seen, and not at all elsewhere."""
    rng = np.random.default_rng(0)
    train, test = (
        Inputs((Block.embedding("image", rng.normal(size=(count, 200)), np.ones(count, dtype=bool)),))
        for count in (90, 60)
    )
    seen = np.concatenate([train.blocks[0].values, test.blocks[0].values])
    is_test = np.repeat([0.0, 1.0], [90, 60])
    in_sample = seen @ np.linalg.lstsq(seen, is_test, rcond=None)[0]
    assert roc_auc_score(is_test, in_sample) == 1
    assert adversarial_auc(train, test, seed=0)["image"] == pytest.approx(0.5, abs=0.15)


def test_the_modalities_of_both_tables_must_be_the_same():
    with pytest.raises(ValueError, match="no age"):
        adversarial_auc(draw_videos(30, 1), Inputs(draw_videos(20, 2).blocks[:1]), seed=0)
