"""Every kind of head behind one call, on modalities of every form."""

import subprocess
import sys
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from heads import tree_head
from heads.config import HeadsConfig
from heads.errors import UnfitDataError
from heads.fit import fit
from heads.folds import kfold
from heads.inputs import Block, Category, Inputs, Words
from heads.members import EpochRecord, FittedModel, Training
from heads.metrics import mae, msle, rmse
from heads.trees import TreeSettings

KINDS = ("linear", "hybrid", "mlp", "trees")
EPOCHS = {"linear": [0], "hybrid": [1, 2], "mlp": [1, 2], "trees": [0]}
N_VIDEOS = 120
PLAN = kfold(N_VIDEOS, 3, 42)
CONFIG = HeadsConfig(epochs=2, lr=1e-2, hidden_dim=8, batch_size=64, seed=3, search=False)


@pytest.fixture(autouse=True, scope="module")
def _small_and_alone():
    """Few trees, and one thread for matrices this small."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tree_head, "TreeSettings", partial(TreeSettings, max_iter=15, learning_rate=0.2))
        yield
    torch.set_num_threads(before)


def draw_inputs(only: np.ndarray | None = None, modality: str = "") -> Inputs:
    """A block of every form with gaps; `modality` is present on the rows of `only` alone."""
    rng = np.random.default_rng(0)
    names = ("image", "age", "channel", "words")
    here = {name: rng.random(N_VIDEOS) > 0.2 for name in names}
    if only is not None:
        here[modality] = only
    counts = rng.poisson(0.4, size=(N_VIDEOS, 12)).astype(np.float32) * here["words"][:, None]
    return Inputs(
        (
            Block.embedding("image", rng.normal(size=(N_VIDEOS, 5)), here["image"]),
            Block.scalar("age", np.where(here["age"], rng.uniform(0, 9, N_VIDEOS), np.nan)),
            Category(modality="channel", codes=rng.integers(0, 6, N_VIDEOS), present=here["channel"]),
            Words(modality="words", counts=csr_matrix(counts), present=here["words"]),
        )
    )


def views_of(inputs: Inputs) -> np.ndarray:
    image, age, channel, _ = inputs.blocks
    noise = np.random.default_rng(1).normal(size=N_VIDEOS)
    return 8 + 2 * image.values[:, 0] + 0.2 * age.values[:, 0] + 0.3 * channel.codes * channel.present + 0.2 * noise


@pytest.fixture(scope="module")
def inputs() -> Inputs:
    return draw_inputs()


@pytest.fixture(scope="module")
def log_views(inputs) -> np.ndarray:
    return views_of(inputs)


@pytest.fixture(scope="module", params=KINDS)
def kind(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def training(kind, inputs, log_views) -> tuple[Training[FittedModel], list[EpochRecord]]:
    records: list[EpochRecord] = []
    config = replace(CONFIG, head=kind)
    return fit(inputs, log_views, PLAN, config, on_epoch=records.append), records


def test_there_is_one_member_per_fold_in_order_with_the_rows_it_counted(training):
    members = training[0].members
    assert [member.fold for member in members] == [0, 1, 2]
    assert [(member.train_size, member.val_size) for member in members] == [(80, 40)] * 3


def test_every_record_is_told_and_kept(training, kind):
    result, records = training
    assert sorted((record.fold, record.epoch) for record in records) == [
        (fold, epoch) for fold in range(3) for epoch in EPOCHS[kind]
    ]
    kept = [record for member in result.members for record in member.history]
    assert sorted(records, key=lambda record: (record.fold, record.epoch)) == kept
    for record in records:
        assert set(record.weights) == set(record.raw_weights) == {"image", "age", "channel", "words"}
        assert sum(record.weights.values()) == pytest.approx(1)
        solved = kind in ("linear", "trees")
        assert (record.train_loss is None) == (record.learning_rate is None) == solved


def test_contributions_and_baseline_add_up_to_the_prediction(training, inputs):
    for member in training[0].members:
        contributions = member.final.contributions(inputs)
        total = member.final.baseline + contributions.sum(axis=0)
        np.testing.assert_allclose(total, member.final.predict(inputs), atol=1e-6)
        for contribution, block in zip(contributions, inputs.blocks, strict=True):
            np.testing.assert_allclose(contribution[~block.present], 0, atol=1e-12)


def test_the_score_of_a_member_is_that_of_its_predictions(training, inputs, log_views):
    for member in training[0].members:
        rows = PLAN.val_rows(member.fold)
        scored = {"final": member.final_msle, "best": member.best_msle}
        for moment, expected in scored.items():
            predicted = getattr(member, moment).predict(inputs.take(rows))
            assert msle(log_views[rows], predicted) == pytest.approx(expected, rel=1e-5), (member.fold, moment)


@pytest.mark.parametrize("kind", ["linear", "trees"], indirect=True)
def test_the_record_of_a_solved_member_holds_all_errors_of_its_predictions(training, inputs, log_views):
    for member in training[0].members:
        rows, (record,) = PLAN.val_rows(member.fold), member.history
        predicted = member.final.predict(inputs.take(rows))
        errors = [metric(log_views[rows], predicted) for metric in (msle, mae, rmse)]
        np.testing.assert_allclose([record.msle, record.mae, record.rmse], errors, rtol=1e-5)
        assert record.val_loss == pytest.approx(record.msle / member.final.standardisation.sd**2)


def test_metadata_say_which_class_reads_a_member_back(training, kind):
    found = {member.final.to_metadata()["kind"] for member in training[0].members}
    assert found == {"trees" if kind == "trees" else "heads"}


@pytest.mark.parametrize("kind_", KINDS)
def test_targets_other_than_views_are_learned_as_they_are(kind_, inputs, log_views):
    negative = log_views - 50
    training = fit(inputs, negative, PLAN, replace(CONFIG, head=kind_, target="none"))
    for member in training.members:
        assert member.final.target.kind == "none"
        assert abs(member.final.predict(inputs).mean() - negative.mean()) < 1


@pytest.mark.parametrize("kind_", KINDS)
@pytest.mark.parametrize("modality", ["image", "age", "channel", "words"])
def test_a_modality_that_no_training_row_of_a_fold_has_is_refused_or_counts_for_nothing(kind_, modality):
    absent = draw_inputs(PLAN.fold_of == 1, modality)
    try:
        training = fit(absent, views_of(absent), PLAN, replace(CONFIG, head=kind_))
    except UnfitDataError as error:
        assert f"fold 1 has {modality}" in str(error)  # noqa: PT017 - either outcome is right, no other one is
        return
    contributions = training.members[1].final.contributions(absent)
    np.testing.assert_allclose(contributions[absent.modalities.index(modality)], 0, atol=1e-6)


@pytest.mark.parametrize("kind_", KINDS)
def test_texts_without_a_word_that_three_training_rows_share_are_refused_or_count_for_nothing(kind_, inputs, log_views):
    counts = csr_matrix(np.eye(N_VIDEOS, dtype=np.float32))
    rare = Words(modality="words", counts=counts, present=np.ones(N_VIDEOS, dtype=bool))
    with_rare = Inputs((*inputs.blocks[:3], rare))
    try:
        training = fit(with_rare, log_views, PLAN, replace(CONFIG, head=kind_))
    except UnfitDataError as error:
        assert "words" in str(error)  # noqa: PT017 - as above
        return
    for member in training.members:
        np.testing.assert_allclose(member.final.contributions(with_rare)[3], 0, atol=1e-6)


@pytest.mark.parametrize("kind_", KINDS)
def test_rows_that_teach_nothing_are_refused(kind_, inputs, log_views):
    config = replace(CONFIG, head=kind_)
    with pytest.raises(UnfitDataError, match="constant"):
        fit(inputs, np.full(N_VIDEOS, 3.0), PLAN, config)
    with pytest.raises(UnfitDataError, match="finite"):
        fit(inputs, np.where(np.arange(N_VIDEOS) == 7, np.nan, log_views), PLAN, config)
    with pytest.raises(ValueError, match="same videos"):
        fit(inputs, log_views[1:], PLAN, config)


TORCH_FREE = """
import sys
import numpy as np
from heads.config import HeadsConfig
from heads.fit import fit
from heads.folds import kfold
from heads.inputs import Block, Inputs

def imported(kind):
    rng = np.random.default_rng(0)
    blocks = (Block.embedding("image", rng.normal(size=(30, 3)), np.ones(30, dtype=bool)),)
    fit(Inputs(blocks), rng.normal(size=30), kfold(30, 2, 0), HeadsConfig(head=kind, folds=2, epochs=1, hidden_dim=2))
    return "torch" in sys.modules

print([imported(kind) for kind in ("linear", "trees", "mlp")])
"""


def test_torch_is_imported_for_the_heads_that_it_trains_and_for_no_other():
    done = subprocess.run([sys.executable, "-c", TORCH_FREE], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[False, False, True]"
