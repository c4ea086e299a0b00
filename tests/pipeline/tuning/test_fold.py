"""One fold of a fine-tuning, trained in this process on a drawn dataset with the untrained tiny encoder."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from features.errors import CacheError, UsageError
from pipeline.inputs import Source, gather
from pipeline.runs import open_run
from pipeline.tuning import model
from pipeline.tuning.fold import MakeMember, TrainFold
from pipeline.tuning.loop import FACTORS
from pipeline.tuning.state import FoldState
from pipeline.tuning.tuned_towers import towers_name
from pipeline.workspace import Workspace
from tests.command_line import copy_to_work_in
from tests.pipeline.tuning.world import fold_of, make_frozen, prepared, worker_of

NAME = "clip_multimodal_finetuned"


@pytest.fixture(scope="module")
def frozen(tmp_path_factory):
    return make_frozen(tmp_path_factory.mktemp("frozen"))


@pytest.fixture
def job(frozen, tmp_path, monkeypatch):
    return copy_to_work_in(frozen, tmp_path, monkeypatch)


def predicted_by_run(stage, fold, rows):
    """What a fold of the run predicts for rows, in z."""
    run = open_run(Path("work/runs/clip_multimodal"))
    sources = [Source(**source) for source in run.part("sources")]
    gathered = gather(Workspace(Path("work")), sources, stage.context.train, np.datetime64(run.part("reference_date")))
    heads = run.checkpoint(fold, "final").heads
    return heads.standardisation.apply(heads.predict(gathered.inputs.take(rows)))


@pytest.mark.parametrize(
    ("precision", "within", "options"), [("fp32", 0.01, {}), ("bf16", 0.1, {}), ("fp32", 0.01, {"lora": 2})]
)
def test_before_training_the_model_predicts_what_its_run_predicts(job, precision, within, options):
    stage = prepared(**options)
    inside, _ = fold_of(stage, precision=precision)
    rows = stage.start.plan.val_rows(0)
    embedded = inside.model.embed(inside.feed(stage.context.train), rows, lambda _rows: None)
    z = inside.model.predict(embedded, inside.known.take(torch.from_numpy(rows)))
    expected = predicted_by_run(stage, 0, rows)
    assert np.abs(z - expected).max() <= within
    assert expected.std() > 0.2


def test_training_lowers_the_loss_and_keeps_a_state(job):
    stage = prepared(epochs=3)
    result = worker_of(stage)(TrainFold(0))
    losses = [record.train_loss for record in result.records]
    assert [record.epoch for record in result.records] == [0, 1, 2, 3]
    assert losses[0] is None
    assert losses[3] < losses[1]
    assert {moment: len(errors) for moment, errors in result.errors.items()} == {"best": 6, "final": 6}
    assert FoldState.read(stage.tuning / "fold0").epoch == 3
    assert sum(result.records[3].weights.values()) == pytest.approx(1)


def test_training_pictures_alone_are_cropped(job, monkeypatch):
    """As often as there are training batches: 32 rows of 48 in batches of 8, for two epochs."""
    sizes = []

    def counted(pixels, generator):
        sizes.append(len(pixels))
        return pixels.float()

    monkeypatch.setattr(model, "random_crops", counted)
    worker_of(prepared())(TrainFold(0))
    assert sizes == [8] * 8


def test_every_row_trains_once_per_epoch_and_no_validation_row_does(job, monkeypatch):
    stage = prepared(epochs=1)
    inside, _ = fold_of(stage)
    trained_on, plain = [], inside.model.vectors

    def noted(batch, augment=None):
        trained_on.extend(batch.rows.tolist() if augment is not None else [])
        return plain(batch, augment)

    monkeypatch.setattr(inside.model, "vectors", noted)
    inside.trained()
    assert sorted(trained_on) == stage.start.plan.train_rows(0).tolist()
    assert trained_on != sorted(trained_on)


def test_the_first_factor_is_the_frozen_model_and_the_last_the_tuned_one(job):
    stage = prepared()
    inside, _ = fold_of(stage)
    result = inside.trained()
    n_rows = len(stage.start.plan.val_rows(0))
    assert (FACTORS[0], FACTORS[-1]) == (0, 1)
    assert result.errors["final"][0] / n_rows == result.records[0].val_loss
    assert result.errors["final"][-1] / n_rows == result.records[-1].val_loss
    between = result.errors["final"][1:-1]
    assert min(between) < result.errors["final"][0]
    assert len(set(between)) == len(between)


@pytest.mark.parametrize("options", [{}, {"lora": 2, "lr": 1e-2}])
def test_a_member_at_factor_0_is_the_frozen_one(job, options):
    stage = prepared(**options)
    work = worker_of(stage)
    work(TrainFold(0))
    made = work(MakeMember(0, {"best": 0.0, "final": 1.0}, job))
    rows = stage.start.plan.val_rows(0)
    assert made["best"].validation.log_views == pytest.approx(stage.start.expected[rows], abs=0.02)
    assert np.abs(made["final"].validation.log_views - stage.start.expected[rows]).max() > 0.02
    assert made["best"].towers != made["final"].towers


def test_moments_that_are_the_same_are_made_once(job):
    stage = prepared()
    work = worker_of(stage)
    best_epoch = work(TrainFold(0)).best_epoch
    made = work(MakeMember(0, {"best": 1.0, "final": 1.0}, job))
    assert (made["best"] is made["final"]) is (best_epoch == 2)
    assert Path(towers_name(NAME, 0, "final")).is_file()
    assert Path(towers_name(NAME, 0, "best")).is_file() is (best_epoch != 2)


def frozen_part(towers):
    """Copies of all parameters that are not trained."""
    ours = {parameter.data_ptr() for parameter in towers.parameters.values()}
    return {
        f"{kind}.{name}": (parameter, parameter.detach().clone())
        for kind, tower in towers.encoder.towers.items()
        for name, parameter in tower.named_parameters()
        if parameter.data_ptr() not in ours
    }


@pytest.mark.parametrize(
    "options", [{"freeze_clip": True}, {"unfreeze": "last:1"}, {"lora": 2}, {"lora": 2, "unfreeze": "last:1"}]
)
def test_what_is_frozen_stays_as_it_is_to_the_last_bit_and_the_rest_moves(job, options):
    inside, towers = fold_of(prepared(lr=1e-3, **options))
    before, start = frozen_part(towers), inside.model.values()
    result = inside.trained()
    assert before
    for parameter, value in before.values():
        assert torch.equal(parameter, value)
        assert parameter.grad is None
    kept = FoldState.read(Path("work/runs") / f".{NAME}.tuning" / "fold0").average
    resting = [name for name, value in kept.items() if torch.equal(value, start[name])]
    assert [name for name in resting if not name.startswith("heads.heads.")] == []  # a head may have dead units
    assert len(resting) < len(kept) / 2
    assert result.records[-1].train_loss < result.records[1].train_loss


def test_checkpointing_and_accumulation_give_the_same_training(job):
    """Rows per step are the same, so only rounding differs."""
    plain = worker_of(prepared(epochs=1, name="plain"))(TrainFold(0))
    options = {"batch_size": 4, "accumulate": 2, "gradient_checkpointing": True}
    parts = worker_of(prepared(epochs=1, name="parts", **options))(TrainFold(0))
    assert parts.records[-1].val_loss == pytest.approx(plain.records[-1].val_loss, rel=1e-2)


class StoppedError(Exception):
    """The training was stopped."""


@pytest.mark.parametrize("options", [{}, {"lora": 2, "lr": 1e-3}])
def test_a_stopped_training_ends_where_an_undisturbed_one_does(job, options):
    undisturbed, stage = prepared(name="undisturbed", **options), prepared(name="stopped", **options)
    worker_of(undisturbed)(TrainFold(0))
    told = []

    def tell(units):
        told.append(units)
        if sum(told) > 40:  # in the second epoch, of 32 rows each
            raise StoppedError

    with pytest.raises(StoppedError):
        worker_of(stage, tell)(TrainFold(0))
    assert FoldState.read(stage.tuning / "fold0").epoch == 1
    result = worker_of(stage)(TrainFold(0))
    states = [FoldState.read(which.tuning / "fold0") for which in (undisturbed, stage)]
    for part in ("values", "average", "first", "second", "best"):
        first, second = (getattr(state, part) for state in states)
        assert all(torch.equal(first[name], second[name]) for name in first)
    assert states[0].errors == states[1].errors == result.errors


def test_one_worker_trains_each_fold_as_if_it_were_the_first(job):
    """The encoder is loaded once, so a fold must not begin where the one before it ended."""
    (Path("work/runs") / f".{NAME}.tuning" / "fold1").mkdir(parents=True)
    alone = worker_of(prepared())(TrainFold(1))
    shutil.rmtree(Path("work/runs") / f".{NAME}.tuning" / "fold1")
    (Path("work/runs") / f".{NAME}.tuning" / "fold1").mkdir(parents=True)
    work = worker_of(prepared())
    work(TrainFold(0))
    after = work(TrainFold(1))
    assert [record.val_loss for record in after.records] == [record.val_loss for record in alone.records]
    assert after.errors == alone.errors


def test_a_training_that_diverges_is_stopped_with_advice(job):
    with pytest.raises(UsageError, match=r"fold 0 in epoch 1: lower --lr \(now 1e\+30\)"):
        worker_of(prepared(lr=1e30, head_lr=1e30))(TrainFold(0))


def test_a_training_whose_only_step_leads_nowhere_is_stopped_as_well(job):
    """The loss before it is finite; what the weights predict afterwards is not."""
    with pytest.raises(UsageError, match="must stay finite"):
        worker_of(prepared(epochs=1, batch_size=64, lr=3e37, head_lr=3e37))(TrainFold(0))
    assert FoldState.read(Path("work/runs") / f".{NAME}.tuning" / "fold0") is None


def test_a_fold_stops_early_if_asked_to(job):
    result = worker_of(prepared(epochs=9, lr=1e-2, head_lr=0.1, patience=1))(TrainFold(0))
    assert len(result.records) < 10
    assert result.records[-1].epoch == result.best_epoch + 1


def test_the_best_epoch_is_the_one_that_validates_best(job):
    stage = prepared(epochs=4, lr=1e-2, head_lr=0.1)
    result = worker_of(stage)(TrainFold(0))
    errors = [record.msle for record in result.records]
    assert errors.index(min(errors)) == result.best_epoch
    state = FoldState.read(stage.tuning / "fold0")
    assert all(torch.equal(state.best[name], state.average[name]) for name in state.best) is (result.best_epoch == 4)


def test_thumbnails_that_have_changed_are_noticed(job):
    for path in Path("dataset/train_val").iterdir():
        shutil.copy("dataset/train_val.csv", path)
    with pytest.raises(CacheError, match="must predict what its run predicted"):
        worker_of(prepared())(TrainFold(0))


def test_thumbnails_that_changed_while_a_training_was_stopped_are_noticed_too(job):
    stage = prepared()

    def stop(_units):
        if (stage.tuning / "fold0" / "state.json").exists():
            raise StoppedError

    with pytest.raises(StoppedError):
        worker_of(stage, stop)(TrainFold(0))
    for path in Path("dataset/train_val").iterdir():
        shutil.copy("dataset/train_val.csv", path)
    with pytest.raises(CacheError, match="must predict what its run predicted"):
        worker_of(stage)(TrainFold(0))


def test_rows_to_learn_from_are_read_as_the_run_read_them(job):
    """The channel's mean of a training row is that of other rows; validation rows see all training rows."""
    stage = prepared()
    inside, _ = fold_of(stage)
    plain = inside.model.heads.known(stage.context.from_table["train_val"], 48).offset.numpy()
    offset, plan = inside.known.offset.numpy(), stage.start.plan
    assert np.flatnonzero(offset != plain).tolist() == plan.train_rows(0).tolist()
