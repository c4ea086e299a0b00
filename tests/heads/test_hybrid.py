"""The linear head and the networks that learn what it leaves over: their sum, and who decides when they stop."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from heads import hybrid
from heads.config import HeadsConfig
from heads.cross_fitting import cross_fitted
from heads.errors import UnfitDataError
from heads.fitted import FittedHeads, Head
from heads.folds import FoldPlan
from heads.hybrid import fit_hybrid
from heads.inputs import Block, Category, Inputs
from heads.linear import fit_linear
from heads.members import EpochRecord, Training
from heads.metrics import msle
from heads.ridge import Problem
from heads.targets import Target

CONFIG = HeadsConfig(head="hybrid", epochs=10, lr=1e-2, hidden_dim=64, batch_size=64, seed=3, search=False)

PLAN = FoldPlan(
    fold_of=np.random.default_rng(0).permutation(np.repeat(np.arange(3, dtype=np.int32), [40, 80, 180])),
    split="file",
    seed=None,
)
"""Folds of unequal size, so that a mean over folds is not one over rows."""


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Matrices this small gain nothing from a second thread, and lose much where others want it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@dataclass(frozen=True)
class World:
    inputs: Inputs
    log_views: np.ndarray


def draw_world(absent: float = 0.0, noise: float = 0.1) -> World:
    """Views that grow with one direction of the image, and with the distance from the middle along another."""
    rng = np.random.default_rng(1)
    image, years = rng.normal(size=(300, 4)), rng.uniform(0, 10, 300)
    here = rng.random(300) >= absent
    block = Block.embedding("image", image, here)
    codes = rng.integers(0, 5, 300)
    rule = block.values[:, 0] + 3 * np.abs(block.values[:, 1]) + 0.2 * years + 0.3 * (codes - 2)
    blocks = (
        block,
        Block.scalar("age", years),
        Category(modality="channel", codes=codes, present=np.ones(300, dtype=bool)),
    )
    return World(Inputs(blocks), 8 + rule + noise * rng.normal(size=300))


@pytest.fixture(scope="module")
def complete() -> World:
    return draw_world()


@pytest.fixture(scope="module")
def gappy() -> World:
    return draw_world(absent=0.2, noise=1.0)


@pytest.fixture(scope="module")
def bent(complete) -> Training[FittedHeads]:
    """Members on complete videos, with a bend to be found."""
    return fit_hybrid(complete.inputs, complete.log_views, PLAN, replace(CONFIG, epochs=20))


@pytest.fixture(scope="module")
def noisy(gappy) -> Training[FittedHeads]:
    """Members on videos with gaps and much noise, trained until they know it by heart."""
    return fit_hybrid(gappy.inputs, gappy.log_views, PLAN, CONFIG)


def linear_of(world: World) -> Training[FittedHeads]:
    return fit_linear(world.inputs, world.log_views, PLAN, seed=CONFIG.seed, search=False)


def test_networks_that_have_not_learned_anything_leave_the_linear_head_as_it_is(gappy):
    """Steps this small move nothing, so whichever epoch is taken is the one before the first."""
    still = fit_hybrid(gappy.inputs, gappy.log_views, PLAN, replace(CONFIG, epochs=1, lr=1e-12))
    for ours, theirs in zip(still.members, linear_of(gappy).members, strict=True):
        for heads in (ours.best, ours.final):
            np.testing.assert_allclose(heads.predict(gappy.inputs), theirs.final.predict(gappy.inputs), atol=1e-5)
            np.testing.assert_allclose(heads.weights, theirs.final.weights, atol=1e-5)
        np.testing.assert_allclose([ours.best_msle, ours.final_msle], theirs.final_msle, rtol=1e-5)


def test_networks_that_only_do_harm_are_left_out(gappy):
    """Steps this large make every epoch worse than none."""
    wild = fit_hybrid(gappy.inputs, gappy.log_views, PLAN, replace(CONFIG, epochs=3, lr=1.0))
    assert wild.facts["final_epoch"] == [0, 0, 0]
    for ours, theirs in zip(wild.members, linear_of(gappy).members, strict=True):
        assert min(record.msle for record in ours.history) > theirs.final_msle
        assert ours.best_epoch == 0
        for heads in (ours.best, ours.final):
            np.testing.assert_allclose(heads.predict(gappy.inputs), theirs.final.predict(gappy.inputs), atol=1e-5)


def test_a_bend_in_one_modality_is_found(bent):
    final_msle = [member.final_msle for member in bent.members]
    assert np.average(final_msle, weights=PLAN.sizes) < 0.6 * np.average(bent.facts["linear_msle"], weights=PLAN.sizes)


def test_a_member_is_never_worse_than_its_linear_head_at_its_best_epoch(noisy, bent):
    for training in (noisy, bent):
        for member, linear_msle in zip(training.members, training.facts["linear_msle"], strict=True):
            curve = [linear_msle, *(record.msle for record in member.history)]
            assert member.best_msle == pytest.approx(min(curve), rel=1e-5)
            assert curve[member.best_epoch] == pytest.approx(member.best_msle, rel=1e-5)


def test_when_a_member_stops_is_decided_by_the_rows_of_the_other_folds_alone(noisy):
    curves = np.array(
        [
            [linear_msle, *(record.msle for record in member.history)]
            for member, linear_msle in zip(noisy.members, noisy.facts["linear_msle"], strict=True)
        ]
    )
    stops = noisy.facts["final_epoch"]
    for fold in range(3):
        others = [other for other in range(3) if other != fold]
        pooled = [
            sum(PLAN.sizes[other] * curves[other, epoch] for other in others)
            / sum(PLAN.sizes[other] for other in others)
            for epoch in range(CONFIG.epochs + 1)
        ]
        assert pooled[stops[fold]] == min(pooled)
        assert noisy.members[fold].final_msle == pytest.approx(curves[fold, stops[fold]], rel=1e-5)
    assert stops != curves.argmin(axis=1).tolist(), "this world should tell the folds' own choices from the others'"


def test_the_errors_of_a_fold_do_not_move_its_own_stop(noisy, monkeypatch, gappy):
    """The same courses, with the validation errors of fold 1 turned round: the other folds may stop elsewhere."""
    run = hybrid.run_courses

    def turned(*given, **options):
        courses = run(*given, **options)
        moments = courses[1].moments
        errors = [moment.record.msle for moment in moments][::-1]
        moments_ = [
            replace(moment, record=replace(moment.record, msle=1000 * error))
            for moment, error in zip(moments, errors, strict=True)
        ]
        return [courses[0], replace(courses[1], moments=moments_), courses[2]]

    monkeypatch.setattr(hybrid, "run_courses", turned)
    stops = fit_hybrid(gappy.inputs, gappy.log_views, PLAN, CONFIG).facts["final_epoch"]
    assert stops[1] == noisy.facts["final_epoch"][1]
    assert stops[0] != noisy.facts["final_epoch"][0]


@pytest.mark.parametrize("moment", ["best", "final"])
def test_what_was_validated_is_what_the_member_predicts(moment, noisy, gappy):
    for member in noisy.members:
        rows = PLAN.val_rows(member.fold)
        predicted = getattr(member, moment).predict(gappy.inputs.take(rows))
        assert msle(gappy.log_views[rows], predicted) == pytest.approx(getattr(member, f"{moment}_msle"), rel=1e-5)


def test_contributions_and_baseline_add_up_to_the_prediction(noisy, gappy):
    for member in noisy.members:
        contributions = member.final.contributions(gappy.inputs)
        np.testing.assert_allclose(
            member.final.baseline + contributions.sum(axis=0), member.final.predict(gappy.inputs), atol=1e-9
        )
        for contribution, block in zip(contributions, gappy.inputs.blocks, strict=True):
            assert not contribution[~block.present].any()


def test_without_its_networks_a_member_is_the_linear_head_but_for_a_constant(bent, complete):
    for member, linear in zip(bent.members, linear_of(complete).members, strict=True):
        assert all(len(head.branches) == 2 for head in member.final.heads.values())
        bare = replace(member.final, heads={name: Head(head.branches[:1]) for name, head in member.final.heads.items()})
        left_over = bare.predict(complete.inputs) - linear.final.predict(complete.inputs)
        assert np.ptp(left_over) < 1e-4
        networks = member.final.predict(complete.inputs) - linear.final.predict(complete.inputs)
        assert np.ptp(networks) > 1


def test_a_network_reads_no_more_components_than_it_is_given(complete, monkeypatch):
    monkeypatch.setattr(hybrid, "COMPONENTS", 2)
    training = fit_hybrid(complete.inputs, complete.log_views, PLAN, replace(CONFIG, epochs=1))
    for member in training.members:
        linear, network = member.final.heads["image"].branches
        assert (linear.reader.kind, linear.reader.width) == ("as_is", 4)
        assert (network.reader.kind, network.reader.width) == ("projected_as_is", 2)


def test_a_member_survives_being_written_down(noisy, gappy):
    heads = noisy.members[2].final
    again = FittedHeads.from_arrays(heads.to_arrays(), heads.to_metadata())
    np.testing.assert_array_equal(again.predict(gappy.inputs), heads.predict(gappy.inputs))


def test_every_epoch_is_reported_once_per_fold_and_kept_in_the_history(complete):
    told: list[EpochRecord] = []
    config = replace(CONFIG, epochs=2)
    training = fit_hybrid(complete.inputs, complete.log_views, PLAN, config, on_epoch=told.append)
    assert sorted((record.fold, record.epoch) for record in told) == [(f, e) for f in range(3) for e in (1, 2)]
    kept = [record for member in training.members for record in member.history]
    assert sorted(told, key=lambda record: (record.fold, record.epoch)) == kept
    assert [(member.train_size, member.val_size) for member in training.members] == [(260, 40), (220, 80), (120, 180)]


def test_the_same_seed_gives_the_same_bytes_and_another_one_does_not(gappy):
    config = replace(CONFIG, epochs=2)
    one, same, other = (
        fit_hybrid(gappy.inputs, gappy.log_views, PLAN, replace(config, seed=seed)).members[0].best.to_arrays()
        for seed in (3, 3, 4)
    )
    assert all(one[name].tobytes() == same[name].tobytes() for name in one)
    assert any(one[name].tobytes() != other[name].tobytes() for name in one)


def test_training_that_diverges_is_refused(gappy):
    with pytest.raises(UnfitDataError, match="must stay finite"):
        fit_hybrid(gappy.inputs, gappy.log_views, PLAN, replace(CONFIG, lr=1e30))


def test_every_seed_of_a_fold_has_networks_of_its_own_on_one_linear_head(complete):
    training = fit_hybrid(complete.inputs, complete.log_views, PLAN, replace(CONFIG, epochs=2, seeds=2))
    assert [(member.fold, member.seed) for member in training.members] == [(f, s) for f in range(3) for s in (3, 4)]
    assert training.seeds == [3, 4]
    for one, other in training.of_folds:
        linear, network = one.final.heads["image"].branches
        linear_too, network_too = other.final.heads["image"].branches
        straight, straight_too = (b.weights[0][:, 0] for b in (linear, linear_too))
        np.testing.assert_allclose(straight / straight[0], straight_too / straight_too[0], rtol=1e-4)
        assert not np.allclose(network.weights[0], network_too.weights[0])


def test_logged_weights_are_those_of_the_whole_model(complete):
    """Without gaps and with fewer rows than the sample, the weights of the last epoch are those of its heads."""
    still = fit_hybrid(complete.inputs, complete.log_views, PLAN, replace(CONFIG, epochs=1, lr=1e-12))
    for member in still.members:
        logged = np.array([*member.history[-1].weights.values()])
        np.testing.assert_allclose(logged, member.final.weights, atol=1e-4)
        assert np.ptp(logged) > 0.03


def bases(inputs: Inputs, log_views: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Training rows of fold 2, and their log views as the linear head and the start of its networks have them."""
    problem = Problem(inputs, log_views, PLAN, np.ones(300), 3)
    linear = fit_linear(inputs, log_views, PLAN, seed=3, search=False)
    start = hybrid._start(problem, linear.members[2], linear.facts, CONFIG)
    np.testing.assert_allclose(
        start.base[PLAN.val_rows(2)], linear.members[2].final.predict(inputs)[PLAN.val_rows(2)], atol=1e-9
    )
    rows = PLAN.train_rows(2)
    return rows, linear.members[2].final.predict(inputs)[rows], start.base[rows]


def test_where_there_are_more_columns_than_rows_networks_learn_from_rows_that_the_linear_head_has_not_seen(complete):
    """400 columns on 120 rows, of which one matters much: the head knows its own rows far better than others."""
    rng = np.random.default_rng(0)
    wide = Block.embedding("image", rng.normal(size=(300, 400)), np.ones(300, dtype=bool))
    inputs = Inputs((wide, complete.inputs.blocks[1]))
    log_views = 8 + 30 * wide.values[:, 0] + 0.3 * rng.normal(size=300)
    rows, seen, unseen = bases(inputs, log_views)
    problem = Problem(inputs, log_views, PLAN, np.ones(300), 3)
    facts = fit_linear(inputs, log_views, PLAN, seed=3, search=False).facts
    np.testing.assert_array_equal(
        unseen, cross_fitted(problem, 2, facts["penalty"][2], facts["scales"][2], Target("log1p"))
    )
    assert msle(log_views[rows], seen) < 0.7 * msle(log_views[rows], unseen)


def test_where_there_are_fewer_columns_than_rows_they_learn_from_what_it_leaves_over_of_its_own(complete):
    _, seen, base = bases(complete.inputs, complete.log_views)
    np.testing.assert_allclose(base, seen, atol=1e-9)


def test_a_joint_network_finds_what_no_modality_has_alone(crossed):
    _, without, joint = crossed
    msle_of = [np.average([m.final_msle for m in t.members], weights=PLAN.sizes) for t in (without, joint)]
    assert msle_of[1] < 0.7 * msle_of[0]
    assert [member.final_msle for member in without.members] == joint.facts["additive_msle"]
    for member in joint.members:
        assert member.final.modalities == ("image", "age", "joint")
        assert not member.final.additive
        assert member.final.weights[2] > 0.2
        assert member.final.weights.sum() == pytest.approx(1)
        assert len(member.history[-1].weights) == 3
    assert all(member.final.additive for member in without.members)


def test_with_a_joint_term_contributions_still_add_up_and_what_was_validated_is_what_is_predicted(crossed):
    world, _, joint = crossed
    for member in joint.members:
        rows = PLAN.val_rows(member.fold)
        for heads, expected in ((member.best, member.best_msle), (member.final, member.final_msle)):
            contributions = heads.contributions(world.inputs)
            np.testing.assert_allclose(
                heads.baseline + contributions.sum(axis=0), heads.predict(world.inputs), atol=1e-9
            )
            predicted = heads.predict(world.inputs.take(rows))
            assert msle(world.log_views[rows], predicted) == pytest.approx(expected, rel=1e-5)
        joint_epochs = [record for record in member.history if "joint" in record.weights]
        assert [record.epoch for record in joint_epochs] == list(range(16, 16 + len(joint_epochs)))
        assert member.best_msle <= min(record.msle for record in member.history) * (1 + 1e-5)
        stop = joint.facts["joint_final_epoch"][member.fold]
        assert stop > 0
        assert joint_epochs[stop - 1].msle == pytest.approx(member.final_msle, rel=1e-5)


def test_a_member_with_a_joint_term_survives_being_written_down(crossed):
    world, _, joint = crossed
    heads = joint.members[1].final
    again = FittedHeads.from_arrays(heads.to_arrays(), heads.to_metadata())
    np.testing.assert_array_equal(again.predict(world.inputs), heads.predict(world.inputs))
    assert not again.additive


def test_a_joint_network_of_one_modality_is_refused(complete):
    alone = Inputs(complete.inputs.blocks[:1])
    with pytest.raises(UnfitDataError, match="there is only image"):
        fit_hybrid(alone, complete.log_views, PLAN, replace(CONFIG, joint=True))


@pytest.fixture(scope="module")
def crossed() -> tuple[World, Training[FittedHeads], Training[FittedHeads]]:
    """Views that grow with the product of image and age, which is nothing to either alone; without and with joint."""
    rng = np.random.default_rng(2)
    block = Block.embedding("image", rng.normal(size=(300, 3)), np.ones(300, dtype=bool))
    years = rng.uniform(-1, 1, 300)
    world = World(
        Inputs((block, Block.scalar("age", years))), 8 + 6 * block.values[:, 0] * years + 0.1 * rng.normal(size=300)
    )
    config = replace(CONFIG, epochs=15)
    fits = [fit_hybrid(world.inputs, world.log_views, PLAN, replace(config, joint=joint)) for joint in (False, True)]
    return (world, *fits)
