"""One member per fold, from arrays to fitted heads: what it may know, what it keeps, and what it refuses."""

from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from heads.courses import run_courses
from heads.errors import UnfitDataError
from heads.fitted import FittedHeads
from heads.folds import FoldPlan
from heads.inputs import Inputs
from heads.members import TrainedMember
from heads.metrics import mae, msle, rmse
from heads.pack import Entry, Start
from heads.readers import FoldReaders, fit_readers
from heads.targets import Target
from heads.training import train_members


def plan_of(*folds: int) -> FoldPlan:
    return FoldPlan(fold_of=np.array(folds, dtype=np.int32), split="file", seed=None)


THIRDS = plan_of(*np.arange(240) % 3)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Matrices this small gain nothing from a second thread, and lose much where others want it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def quick(small_config):
    return replace(small_config, epochs=2, batch_size=80)


@pytest.fixture(scope="module", params=["complete", "gappy"])
def any_world(request, world, gappy_world):
    return {"complete": world, "gappy": gappy_world}[request.param]


@pytest.fixture(scope="module")
def trained(any_world, small_config) -> list[TrainedMember]:
    return train_members(any_world.inputs, any_world.log_views, THIRDS, small_config)


@pytest.fixture(scope="module")
def overfitted(world, small_config) -> list[TrainedMember]:
    """Trained on noise, so that the lowest validation error comes early."""
    noise = np.random.default_rng(0).normal(8.0, 2.0, size=240)
    return train_members(world.inputs, noise, THIRDS, replace(small_config, dropout=0.0), packed=True)


def frozen(heads: FittedHeads) -> dict:
    return heads.to_metadata() | {name: tensor.tobytes() for name, tensor in heads.to_arrays().items()}


def kept(member: TrainedMember) -> dict:
    """All that a member is, but for the time it took."""
    moments = {"best": frozen(member.best), "final": frozen(member.final)}
    history = [replace(record, seconds=0.0) for record in member.history]
    return vars(member) | moments | {"history": history}


def assert_close(one: FittedHeads, other: FittedHeads, tolerance: float) -> None:
    np.testing.assert_allclose(one.weights, other.weights, atol=tolerance)
    np.testing.assert_allclose(one.baseline, other.baseline, atol=tolerance)
    others = other.to_arrays()
    for name, tensor in one.to_arrays().items():
        np.testing.assert_allclose(tensor, others[name], atol=tolerance, err_msg=name)


def out_of_fold(members: list[TrainedMember], inputs: Inputs) -> tuple[np.ndarray, np.ndarray]:
    """Final predictions and contributions, each row from the member that did not train on it."""
    predicted, contributions = np.full(240, np.nan), np.full((3, 240), np.nan)
    for member in members:
        rows = THIRDS.val_rows(member.fold)
        predicted[rows] = member.final.predict(inputs.take(rows))
        contributions[:, rows] = member.final.contributions(inputs.take(rows))
    return predicted, contributions


def test_the_heads_find_the_planted_rule(trained, any_world):
    inputs, log_views = any_world.inputs, any_world.log_views
    predicted, contributions = out_of_fold(trained, inputs)
    assert msle(log_views, predicted) < 0.25 * log_views.var()
    planted = [inputs.block("image").values[:, 0], inputs.block("text").values[:, 1], inputs.block("age").values[:, 0]]
    for contribution, cause in zip(contributions, planted, strict=True):
        assert np.corrcoef(contribution, cause)[0, 1] > 0.9
    image, text, age = np.mean([member.final.weights for member in trained], axis=0)
    assert min(image, text) > age > 0.1


@pytest.mark.parametrize("packed", [False, True])
def test_there_is_one_member_per_fold_in_order_with_the_rows_it_counted(world, quick, packed):
    """Packed, folds 0 and 2 have two steps and fold 1 has three, so fold 1 trains last."""
    plan = plan_of(*[-1] * 40, *[1] * 20, *[0] * 80, *[2] * 100)
    members = train_members(world.inputs, world.log_views, plan, replace(quick, epochs=1), packed=packed)
    counts = [(member.fold, member.train_size, member.val_size) for member in members]
    assert counts == [(0, 160, 80), (1, 220, 20), (2, 140, 100)]


def test_the_history_has_one_record_per_epoch(trained, small_config):
    for fold, member in enumerate(trained):
        assert [(record.fold, record.epoch) for record in member.history] == [(fold, epoch) for epoch in range(1, 13)]
        assert {record.learning_rate for record in member.history} == {small_config.lr}
        for record in member.history:
            assert list(record.weights) == list(record.raw_weights) == ["image", "text", "age"]
            numbers = [value for value in asdict(record).values() if isinstance(value, float)]
            assert np.isfinite(numbers).all()


def test_weights_lie_on_the_simplex_in_every_epoch(trained):
    records = [record for member in trained for record in member.history]
    weights = np.array([[*record.weights.values()] for record in records])
    raw_weights = np.array([[*record.raw_weights.values()] for record in records])
    for rows in (weights, raw_weights):
        assert (rows >= 0).all()
        np.testing.assert_allclose(rows.sum(axis=1), 1, atol=1e-12)
        assert len({tuple(row) for row in rows.tolist()}) == len(records)


def test_the_last_record_scores_the_final_heads(trained, any_world):
    for member in trained:
        rows, last = THIRDS.val_rows(member.fold), member.history[-1]
        truth, predicted = any_world.log_views[rows], member.final.predict(any_world.inputs.take(rows))
        sd = any_world.log_views[THIRDS.train_rows(member.fold)].std()
        assert member.final_msle == msle(truth, predicted)
        assert last.msle == pytest.approx(member.final_msle, rel=1e-5)
        assert last.mae == pytest.approx(mae(truth, predicted), rel=1e-5)
        assert last.rmse == pytest.approx(rmse(truth, predicted), rel=1e-5)
        assert last.val_loss == pytest.approx(np.square((truth - predicted) / sd).mean(), rel=1e-5)
        np.testing.assert_allclose([*last.weights.values()], member.final.weights, atol=1e-5)
        np.testing.assert_allclose([*last.raw_weights.values()], member.final.raw_weights)


def test_the_training_loss_is_that_of_centred_heads_on_the_training_rows(any_world, quick):
    """Nothing moves at this rate, so the heads of the first step are those of the end."""
    config = replace(quick, lr=1e-30, dropout=0.0, epochs=1)
    for member in train_members(any_world.inputs, any_world.log_views, THIRDS, config):
        rows = THIRDS.train_rows(member.fold)
        truth, predicted = any_world.log_views[rows], member.final.predict(any_world.inputs.take(rows))
        assert member.history[0].train_loss == pytest.approx(msle(truth, predicted) / truth.var(), rel=1e-5)


def test_the_training_loss_falls(trained):
    for member in trained:
        assert member.history[-1].train_loss < 0.5 * member.history[0].train_loss


def test_best_is_the_epoch_of_the_lowest_validation_error(overfitted, world):
    noise = np.random.default_rng(0).normal(8.0, 2.0, size=240)
    assert any(member.best_epoch < 12 for member in overfitted)
    for member in overfitted:
        errors = [record.msle for record in member.history]
        assert member.best_epoch == int(np.argmin(errors)) + 1
        assert member.best_msle == pytest.approx(min(errors), rel=1e-5)
        rows = THIRDS.val_rows(member.fold)
        best = member.best.predict(world.inputs.take(rows))
        assert msle(noise[rows], best) == pytest.approx(member.best_msle, rel=1e-5)
        best_record = member.history[member.best_epoch - 1]
        np.testing.assert_allclose([*best_record.weights.values()], member.best.weights, atol=1e-5)


def test_of_equal_epochs_the_first_is_best(world, quick):
    members = train_members(world.inputs, world.log_views, THIRDS, replace(quick, lr=1e-30))
    for member in members:
        assert len({record.msle for record in member.history}) == 1
        assert member.best_epoch == 1


def test_contributions_are_centred_on_the_rows_that_trained_and_zero_where_absent(trained, any_world):
    for member in trained:
        train_inputs = any_world.inputs.take(THIRDS.train_rows(member.fold))
        for heads in (member.best, member.final):
            contributions = heads.contributions(train_inputs)
            np.testing.assert_allclose(contributions.mean(axis=1), 0, atol=1e-5)
            assert not contributions[~train_inputs.present].any()
            assert (contributions.std(axis=1) > 0.1).all()


@pytest.mark.parametrize("packed", [False, True])
def test_the_same_seed_gives_the_same_bytes(gappy_world, quick, packed):
    runs = [train_members(gappy_world.inputs, gappy_world.log_views, THIRDS, quick, packed=packed) for _ in range(2)]
    assert [kept(member) for member in runs[0]] == [kept(member) for member in runs[1]]


def test_another_seed_gives_other_members(world, quick):
    config = replace(quick, epochs=1)
    runs = [
        train_members(world.inputs, world.log_views, THIRDS, replace(config, seed=seed))[0].final for seed in (1, 2)
    ]
    assert abs(runs[0].predict(world.inputs) - runs[1].predict(world.inputs)).max() > 0.01


@pytest.mark.parametrize("batch_size", [32, 48])
def test_folds_in_a_pack_and_one_by_one_agree_after_an_epoch(any_world, small_config, batch_size):
    """With 48 rows a step the folds have 3, 4 and 4 steps, which makes two packs."""
    config = replace(small_config, epochs=1, batch_size=batch_size)
    plan = plan_of(*(np.arange(240) - 40).clip(0) % 3) if batch_size == 48 else THIRDS
    packed, alone = (
        train_members(any_world.inputs, any_world.log_views, plan, config, packed=packed) for packed in (True, False)
    )
    for one, other in zip(packed, alone, strict=True):
        assert_close(one.final, other.final, tolerance=1e-5)
        assert one.history[0].train_loss == pytest.approx(other.history[0].train_loss, rel=1e-4)
        assert one.final_msle == pytest.approx(other.final_msle, rel=1e-4)


def test_one_by_one_a_member_is_the_same_to_the_bit_whatever_the_other_folds(gappy_world, quick):
    halves = plan_of(*np.where(THIRDS.fold_of == 0, 0, 1))
    inputs, log_views = gappy_world.inputs, gappy_world.log_views
    among_three, among_two = (train_members(inputs, log_views, plan, quick, packed=False) for plan in (THIRDS, halves))
    assert kept(among_three[0]) == kept(among_two[0])


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("changed", ["targets", "inputs"])
def test_rows_that_a_fold_validates_never_reach_its_final_member(gappy_world, quick, packed, changed):
    inputs, log_views, rows = gappy_world.inputs, gappy_world.log_views.copy(), THIRDS.val_rows(1)
    before = train_members(inputs, log_views, THIRDS, quick, packed=packed)
    if changed == "targets":
        log_views[rows] = 20 - log_views[rows]
    else:
        inputs = Inputs(tuple(replace(block, values=block.values.copy()) for block in inputs.blocks))
        for block in inputs.blocks:
            block.values[rows] *= -3
    after = train_members(inputs, log_views, THIRDS, quick, packed=packed)
    same = [frozen(one.final) == frozen(other.final) for one, other in zip(before, after, strict=True)]
    assert same == [False, True, False]
    losses = [[record.train_loss for record in members[1].history] for members in (before, after)]
    assert losses[0] == losses[1]
    assert before[1].final_msle != after[1].final_msle


def test_rows_that_are_never_validated_train_every_member(world, quick):
    plan = plan_of(*[-1] * 30, *np.arange(210) % 3)
    changed = world.log_views + np.where(plan.fold_of == -1, 3.0, 0.0)
    runs = [
        train_members(world.inputs, log_views, plan, replace(quick, epochs=1))
        for log_views in (world.log_views, changed)
    ]
    assert not any(frozen(one.final) == frozen(other.final) for one, other in zip(*runs, strict=True))


@pytest.mark.parametrize("packed", [False, True])
def test_epochs_are_reported_as_they_end(world, quick, packed):
    seen = []
    members = train_members(world.inputs, world.log_views, THIRDS, quick, on_epoch=seen.append, packed=packed)
    fold_by_fold = [record for member in members for record in member.history]
    side_by_side = sorted(fold_by_fold, key=lambda record: record.epoch)
    assert seen == (side_by_side if packed else fold_by_fold)


def test_members_with_a_start_begin_at_exactly_its_base_and_keep_every_moment(gappy_world, small_config):
    inputs, log_views = gappy_world.inputs, gappy_world.log_views
    starts = {}
    for fold in range(3):
        readers = fit_readers(inputs, log_views, THIRDS.train_rows(fold), np.random.default_rng(0)).readers
        columns = {block.modality: readers[block.modality].read(block) for block in inputs.blocks}
        base = log_views + fold + 2 * inputs.block("image").values[:, 0]
        starts[fold] = Start(base=base, fitted=FoldReaders(readers, columns))
    entries = [Entry(fold, small_config, start) for fold, start in starts.items()]
    courses = run_courses(inputs, log_views, THIRDS, entries, packed=True)
    for fold, course in enumerate(courses):
        rows, first = THIRDS.val_rows(fold), course.moments[0]
        assert [moment.record.epoch for moment in course.moments] == list(range(13))
        assert [moment.record for moment in course.moments[1:]] == course.records
        assert first.record.msle == msle(log_views[rows], starts[fold].base[rows])
        assert first.raw.intercept == 0
        assert course.best.record.msle < 0.5 * first.record.msle


def test_heads_know_the_target_they_were_trained_on(world, quick):
    config = replace(quick, target="none", epochs=1)
    members = train_members(world.inputs, world.log_views - 100, THIRDS, config)
    assert {member.final.target for member in members} == {Target("none")}
    assert all(member.final.predict(world.inputs).mean() < -80 for member in members)


def test_a_single_modality_has_all_the_weight(world, quick):
    age = Inputs((world.inputs.block("age"),))
    for member in train_members(age, world.log_views, THIRDS, quick):
        assert [record.weights for record in member.history] == [{"age": 1.0}] * 2


def test_a_modality_that_no_training_row_of_a_fold_has_is_refused_by_its_name(world, quick):
    text = world.inputs.block("text")
    only_in_fold_1 = replace(text, present=THIRDS.fold_of == 1)
    inputs = Inputs((world.inputs.blocks[0], only_in_fold_1, world.inputs.blocks[2]))
    with pytest.raises(UnfitDataError, match="no training row of fold 1 has text: leave it out of --modalities"):
        train_members(inputs, world.log_views, THIRDS, replace(quick, epochs=1))


def test_a_target_that_is_constant_in_the_training_rows_of_a_fold_is_refused(world, quick):
    log_views = np.where(THIRDS.fold_of == 0, world.log_views, 7.5)
    with pytest.raises(UnfitDataError, match=r"constant target: all 160 training rows have 7\.5"):
        train_members(world.inputs, log_views, THIRDS, quick)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_target_that_is_not_finite_is_refused(world, quick, bad):
    log_views = world.log_views.copy()
    log_views[1] = bad  # fold 0 trains on it
    with pytest.raises(UnfitDataError, match="finite targets"):
        train_members(world.inputs, log_views, THIRDS, quick)


@pytest.mark.parametrize("packed", [False, True])
def test_training_that_diverges_says_where_and_what_to_lower_after_reporting_what_went_well(world, quick, packed):
    config, seen = replace(quick, lr=1e10, batch_size=240, epochs=9), []
    with pytest.raises(
        UnfitDataError, match=r"loss must stay finite.*lower --lr, or leave it out of --sweep \(now 1e\+10\)"
    ) as refusal:
        train_members(world.inputs, world.log_views, THIRDS, config, on_epoch=seen.append, packed=packed)
    done = [record.epoch for record in seen if record.fold == 0]
    assert f"for fold 0 in epoch {len(done) + 1}: " in str(refusal.value)
    assert done == list(range(1, len(done) + 1))
    assert done


@pytest.mark.parametrize(("n_targets", "n_planned"), [(239, 240), (240, 239)])
def test_arrays_of_different_videos_are_refused(world, quick, n_targets, n_planned):
    plan = plan_of(*np.arange(n_planned) % 3)
    with pytest.raises(ValueError, match=f"given 240, {n_targets} and {n_planned} rows"):
        train_members(world.inputs, world.log_views[:n_targets], plan, quick)


@pytest.mark.parametrize("packed", [False, True])
def test_a_member_of_another_seed_is_the_one_that_this_seed_trains_alone(gappy_world, quick, packed):
    inputs, log_views = gappy_world.inputs, gappy_world.log_views
    both = train_members(inputs, log_views, THIRDS, replace(quick, seeds=2), packed=packed)
    assert [(member.fold, member.seed) for member in both] == [(fold, seed) for fold in range(3) for seed in (3, 4)]
    alone = train_members(inputs, log_views, THIRDS, replace(quick, seed=4), packed=False)
    for ours, theirs in zip(both[1::2], alone, strict=True):
        if packed:
            assert_close(ours.final, theirs.final, tolerance=1e-4)
        else:
            assert kept(ours) == kept(theirs)


@pytest.mark.parametrize("packed", [False, True])
def test_a_member_stops_when_it_has_not_improved_for_as_long_as_its_patience(world, small_config, packed):
    """Trained on noise, so that the lowest validation error comes early, and at another epoch in each fold."""
    noise = np.random.default_rng(0).normal(8.0, 2.0, size=240)
    config = replace(small_config, dropout=0.0)
    seen = []
    whole = train_members(world.inputs, noise, THIRDS, config, packed=packed)
    stopped = train_members(
        world.inputs, noise, THIRDS, replace(config, patience=2), packed=packed, on_epoch=seen.append
    )
    lengths = [len(member.history) for member in stopped]
    assert min(lengths) < 12
    for ours, theirs in zip(stopped, whole, strict=True):
        errors = [record.msle for record in theirs.history]
        since = [epoch - int(np.argmin(errors[: epoch + 1])) for epoch in range(12)]
        assert len(ours.history) == next((epoch + 1 for epoch in range(12) if since[epoch] == 2), 12)
        assert [replace(r, seconds=0.0) for r in ours.history] == [
            replace(r, seconds=0.0) for r in theirs.history[: len(ours.history)]
        ]
        assert ours.final_msle == pytest.approx(ours.history[-1].msle, rel=1e-5)
        assert ours.best_msle == pytest.approx(min(record.msle for record in ours.history), rel=1e-5)
    assert len(seen) == sum(lengths)


def test_a_fold_that_stops_alone_is_the_fold_that_stops_in_a_pack(world, small_config):
    noise = np.random.default_rng(0).normal(8.0, 2.0, size=240)
    config = replace(small_config, dropout=0.0, patience=1, epochs=4)
    packed, alone = (train_members(world.inputs, noise, THIRDS, config, packed=packed) for packed in (True, False))
    for one, other in zip(packed, alone, strict=True):
        assert len(one.history) == len(other.history)
        assert_close(one.final, other.final, tolerance=1e-3)
        assert_close(one.best, other.best, tolerance=1e-3)


def test_the_mean_of_members_predicts_their_mean(gappy_world, quick):
    members = train_members(gappy_world.inputs, gappy_world.log_views, THIRDS, replace(quick, seeds=3))[:3]
    first, *others = (member.final for member in members)
    mean = first.averaged_with(others)
    inputs = gappy_world.inputs
    expected = np.mean([heads.predict(inputs) for heads in (first, *others)], axis=0)
    np.testing.assert_allclose(mean.predict(inputs), expected, atol=1e-5)
    contributions = np.mean([heads.contributions(inputs) for heads in (first, *others)], axis=0)
    np.testing.assert_allclose(mean.contributions(inputs), contributions, atol=1e-5)
    np.testing.assert_allclose(mean.weights, np.mean([heads.weights for heads in (first, *others)], axis=0))
    again = FittedHeads.from_arrays(mean.to_arrays(), mean.to_metadata())
    np.testing.assert_array_equal(again.predict(inputs), mean.predict(inputs))


def test_members_of_different_folds_have_no_mean(world, quick):
    one, other, _ = train_members(world.inputs, world.log_views, THIRDS, replace(quick, epochs=1))
    with pytest.raises(ValueError, match="same fold"):
        one.final.averaged_with([other.final])
