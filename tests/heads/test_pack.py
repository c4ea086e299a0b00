"""Members side by side: which rows they are shown, what a step does, and what it must not do."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from heads import pack as pack_module
from heads.fitted import Branch, Head
from heads.folds import FoldPlan
from heads.inputs import Block, Inputs
from heads.mlp import RawMember
from heads.pack import DeviceInputs, Entry, Pack, Start
from heads.readers import fit_readers
from heads.targets import Standardisation

STILL = 1e-30
"""A learning rate so small that no parameter moves."""


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Matrices this small gain nothing from a second thread, and lose much where others want it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def config(small_config):
    return replace(small_config, dropout=0.0, batch_size=1000, hidden_dim=8)


def plan_of(*folds: int) -> FoldPlan:
    return FoldPlan(fold_of=np.array(folds, dtype=np.int32), split="file", seed=None)


UNEVEN = plan_of(*(np.arange(240) - 40).clip(0) % 3)
"""Three folds of which the first validates most rows, hence trains on fewest."""


def make_pack(world, plan, config, *, folds=(0, 1, 2)) -> Pack:
    entries = [Entry(fold, config) for fold in folds]
    return Pack(DeviceInputs(world.inputs, torch.device("cpu")), world.log_views, plan, entries)


def first_rows(world, n_videos: int):
    return replace(world, inputs=world.inputs.take(np.arange(n_videos)), log_views=world.log_views[:n_videos])


def arrays(raw: RawMember) -> dict[str, np.ndarray]:
    named = {
        f"{index}.{name}": tensor for index, branch in enumerate(raw.branches) for name, tensor in branch.tensors()
    }
    return named | {"weights": raw.weights, "intercept": np.array(raw.intercept)}


def same_bytes(one: RawMember, other: RawMember) -> bool:
    ours, theirs = arrays(one), arrays(other)
    return all(ours[name].tobytes() == theirs[name].tobytes() for name in ours)


def predicted(raw: RawMember, inputs: Inputs) -> np.ndarray:
    pairs = zip(raw.branches, inputs.blocks, strict=True)
    outputs = np.stack([Head((branch,)).outputs(block) for branch, block in pairs])
    return raw.intercept + raw.weights @ (outputs * inputs.present)


class PlainModel(torch.nn.Module):
    """One member as anybody writes it in torch."""

    def __init__(self, branches: tuple[Branch, ...]) -> None:
        super().__init__()
        self.readers = [branch.reader for branch in branches]
        tables = {str(place): branch.table for place, branch in enumerate(branches) if branch.table is not None}
        self.tables = torch.nn.ParameterDict({place: torch.from_numpy(table.copy()) for place, table in tables.items()})
        self.networks = torch.nn.ModuleList(self._network(branch) for branch in branches)
        self.logits = torch.nn.Parameter(torch.zeros(len(branches)))
        self.intercept = torch.nn.Parameter(torch.zeros(()))

    def _network(self, branch: Branch) -> torch.nn.Sequential:
        layers: list[torch.nn.Module] = []
        for weight, bias in zip(branch.weights, branch.biases, strict=True):
            linear = torch.nn.Linear(*weight.shape)
            linear.load_state_dict({"weight": torch.from_numpy(weight.T), "bias": torch.from_numpy(bias)})
            layers += [linear, torch.nn.ReLU()]
        return torch.nn.Sequential(*layers[:-1])

    def forward(self, inputs: Inputs) -> torch.Tensor:
        z = self.intercept
        for index, (block, network) in enumerate(zip(inputs.blocks, self.networks, strict=True)):
            values = torch.from_numpy(self.readers[index].read(block))
            if str(index) in self.tables:
                values = values @ self.tables[str(index)]
            z = z + torch.softmax(self.logits, dim=0)[index] * network(values)[:, 0] * torch.from_numpy(block.present)
        return z

    def optimiser(self, lr: float, weight_decay: float) -> torch.optim.AdamW:
        matrices = [parameter for parameter in self.parameters() if parameter.ndim == 2]
        others = [parameter for parameter in self.parameters() if parameter.ndim < 2]
        groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
        return torch.optim.AdamW(groups, lr=lr, foreach=False)

    def arrays(self) -> dict[str, np.ndarray]:
        """Its parameters under the names of `arrays(raw)`."""
        named = {f"{index}.table": table for index, table in self.tables.items()}
        for index, network in enumerate(self.networks):
            for layer, linear in enumerate(network[::2]):
                named |= {f"{index}.weight_{layer}": linear.weight.T, f"{index}.bias_{layer}": linear.bias}
        named |= {"weights": torch.softmax(self.logits, dim=0), "intercept": self.intercept}
        return {name: tensor.detach().numpy() for name, tensor in named.items()}


def test_steps_are_those_of_adamw_on_a_plain_model(gappy_world, config):
    """Three members with different rows in one pack, each against its own plain model: three steps, losses and all."""
    config = replace(config, lr=1e-2, weight_decay=0.5)
    pack = make_pack(gappy_world, UNEVEN, config)
    plain = [PlainModel(pack.heads.member(index).branches) for index in range(3)]
    optimisers = [model.optimiser(config.lr, config.weight_decay) for model in plain]
    for _ in range(3):
        losses = pack.train_epoch()
        for fold, (model, optimiser) in enumerate(zip(plain, optimisers, strict=True)):
            rows = UNEVEN.train_rows(fold)
            z = Standardisation.fit(gappy_world.log_views[rows]).apply(gappy_world.log_views[rows])
            loss = (model(gappy_world.inputs.take(rows)) - torch.from_numpy(z)).square().mean()
            assert losses[fold] == pytest.approx(loss.item(), rel=1e-4)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    for fold, model in enumerate(plain):
        trained = arrays(pack.heads.member(fold))
        for name, expected in model.arrays().items():
            np.testing.assert_allclose(trained[name], expected, atol=2e-5, err_msg=f"fold {fold}: {name}")


def numbered(n_videos: int) -> Inputs:
    """Inputs that tell the row by their values."""
    values = np.stack([np.arange(n_videos), np.ones(n_videos)], axis=1).astype(np.float32)
    return Inputs((Block(modality="row", values=values, present=np.ones(n_videos, dtype=bool)),))


def shown_batches(pack: Pack) -> list[np.ndarray]:
    """The rows of every step of one epoch, for a pack of one member."""
    batches: list[np.ndarray] = []

    def see(_module: torch.nn.Module, args: tuple) -> None:
        batches.append(args[0][0][0, :, 0].numpy().astype(np.int64))

    handle = pack.heads.register_forward_pre_hook(see)
    pack.train_epoch()
    handle.remove()
    return batches


def numbered_pack(n_videos: int, config) -> Pack:
    plan = plan_of(*np.arange(n_videos) % 3)
    data = DeviceInputs(numbered(n_videos), torch.device("cpu"))
    return Pack(data, np.arange(n_videos, dtype=np.float64), plan, [Entry(1, config)])


@given(n_videos=st.integers(5, 40), batch_size=st.integers(1, 30), seed=st.integers(0, 99))
@settings(max_examples=15, deadline=None, derandomize=True)
def test_an_epoch_shows_every_training_row_once_in_batches_of_even_size(small_config, n_videos, batch_size, seed):
    pack = numbered_pack(n_videos, replace(small_config, batch_size=batch_size, seed=seed, hidden_dim=2))
    training = [row for row in range(n_videos) if row % 3 != 1]
    batches = shown_batches(pack)
    assert sorted(np.concatenate(batches).tolist()) == training
    sizes = [len(batch) for batch in batches]
    assert max(sizes) <= batch_size
    assert max(sizes) - min(sizes) <= 1
    assert len(sizes) == -(-len(training) // batch_size)


def test_each_epoch_has_an_order_of_its_own(config):
    pack = numbered_pack(40, config)
    orders = [np.concatenate(shown_batches(pack)).tolist() for _ in range(3)]
    assert len({tuple(order) for order in orders}) == 3
    assert sorted(orders[0]) not in orders


def test_rows_that_pad_a_batch_have_no_weight(world, config):
    """The first fold has the shortest batches, and they are padded with row 0, which it validates."""
    config, plan = replace(config, batch_size=4), plan_of(0, 0, 0, 0, 1, 1, 1, 2, 2, 2)
    small = first_rows(world, 10)
    image, *others = small.inputs.blocks
    strange_image = replace(image, values=np.vstack([image.values[:1] * -50, image.values[1:]]))
    strange = replace(small, inputs=Inputs((strange_image, *others)), log_views=np.append(1e6, small.log_views[1:]))
    packs = [make_pack(changed, plan, config) for changed in (small, strange)]
    losses = [pack.train_epoch() for pack in packs]
    members = [[pack.heads.member(fold) for fold in range(3)] for pack in packs]
    assert same_bytes(members[0][0], members[1][0])
    assert losses[0][0] == losses[1][0]
    assert not any(same_bytes(members[0][fold], members[1][fold]) for fold in (1, 2))


@pytest.mark.parametrize("batch_size", [1, 7, 1000])
def test_the_loss_of_an_epoch_is_the_mean_over_its_rows(gappy_world, config, batch_size):
    small, plan = first_rows(gappy_world, 24), plan_of(*np.arange(24) % 3)
    pack = make_pack(small, plan, replace(config, batch_size=batch_size, lr=STILL), folds=[1])
    rows = plan.train_rows(1)
    z = Standardisation.fit(small.log_views[rows]).apply(small.log_views[rows])
    expected = np.square(predicted(pack.heads.member(0), small.inputs.take(rows)) - z).mean()
    np.testing.assert_allclose(pack.train_epoch(), expected, rtol=1e-5)


def test_a_member_with_a_start_gives_nothing_at_first_and_learns_what_its_base_leaves_over(world, config):
    inputs, log_views, plan = world.inputs, world.log_views, plan_of(*np.arange(240) % 3)
    starts = {
        fold: Start(
            base=log_views - fold - inputs.block("age").values[:, 0],
            fitted=fit_readers(inputs, log_views, plan.train_rows(fold), np.random.default_rng(0)),
        )
        for fold in range(3)
    }
    data = DeviceInputs(inputs, torch.device("cpu"))
    still = replace(config, lr=STILL)
    pack = Pack(data, log_views, plan, [Entry(fold, still, start) for fold, start in starts.items()])
    assert not np.any(pack.outputs([np.arange(240)] * 3))
    rows_of = [plan.train_rows(fold) for fold in range(3)]
    left = [(log_views - starts[fold].base)[rows] / log_views[rows].std() for fold, rows in enumerate(rows_of)]
    np.testing.assert_allclose(pack.train_epoch(), np.square(left).mean(axis=1), rtol=1e-5)


@pytest.mark.parametrize(("rate", "equal"), [(0.0, True), (0.5, False)])
def test_dropout_acts_in_every_step(world, config, rate, equal):
    pack = make_pack(world, UNEVEN, replace(config, dropout=rate, lr=STILL))
    one, other = pack.train_epoch(), pack.train_epoch()
    assert np.isclose(one, other, rtol=1e-5).tolist() == [equal] * 3


def test_outputs_are_those_of_each_members_heads_for_its_own_rows_without_dropout(gappy_world, config):
    pack = make_pack(gappy_world, UNEVEN, replace(config, dropout=0.5))
    pack.train_epoch()
    rows_of = [np.array([5]), np.arange(200), np.array([7, 3, 7])]
    for index, (rows, outputs) in enumerate(zip(rows_of, pack.outputs(rows_of), strict=True)):
        pairs = zip(pack.heads.member(index).branches, gappy_world.inputs.take(rows).blocks, strict=True)
        expected = [Head((branch,)).outputs(block) for branch, block in pairs]
        np.testing.assert_allclose(outputs, expected, atol=1e-5)


def test_outputs_in_chunks_are_those_of_the_whole(world, config, monkeypatch):
    pack = make_pack(world, UNEVEN, config)
    rows_of = [np.arange(5), np.arange(100), np.arange(240)]
    whole = pack.outputs(rows_of)
    monkeypatch.setattr(pack_module, "EVALUATION_ROWS", 7)
    for outputs, expected in zip(pack.outputs(rows_of), whole, strict=True):
        np.testing.assert_allclose(outputs, expected, atol=1e-6)


def test_a_member_starts_the_same_whatever_its_companions(world, config):
    packed, alone = make_pack(world, UNEVEN, config), make_pack(world, UNEVEN, config, folds=[1])
    assert same_bytes(packed.heads.member(1), alone.heads.member(0))


def test_members_start_differently_by_fold_and_by_seed(world, config):
    plan = plan_of(*np.arange(240) % 3)
    pack = make_pack(world, plan, config)
    members = [pack.heads.member(fold) for fold in range(3)]
    members.append(make_pack(world, plan, replace(config, seed=config.seed + 1)).heads.member(0))
    first_layers = [member.branches[0].weights[0] for member in members]
    for index, one in enumerate(first_layers):
        assert not any(np.isclose(one, other).any() for other in first_layers[:index])


def centres(pack: Pack, world, fold: int) -> list[float]:
    blocks = world.inputs.take(UNEVEN.train_rows(fold)).blocks
    return [
        float(Head((branch,)).outputs(block)[block.present].mean())
        for branch, block in zip(pack.heads.member(fold).branches, blocks, strict=True)
    ]


def test_recentring_centres_the_heads_on_the_training_rows_where_they_are_present(gappy_world, config, monkeypatch):
    monkeypatch.setattr(pack_module, "GAUGE_ROWS", 20)  # a sample is not enough for the centres
    pack = make_pack(gappy_world, UNEVEN, config)
    pack.train_epoch()
    before = [centres(pack, gappy_world, fold) for fold in range(3)]
    pack.recentre()
    after = [centres(pack, gappy_world, fold) for fold in range(3)]
    assert np.abs(before).min() > 1e-3
    np.testing.assert_allclose(after, 0, atol=1e-6)


def test_recentring_keeps_the_predictions_for_complete_rows(gappy_world, config):
    pack = make_pack(gappy_world, UNEVEN, config)
    pack.train_epoch()
    complete = gappy_world.inputs.take(np.flatnonzero(gappy_world.inputs.present.all(axis=0)))
    before = [predicted(pack.heads.member(fold), complete) for fold in range(3)]
    pack.recentre()
    for fold, expected in enumerate(before):
        np.testing.assert_allclose(predicted(pack.heads.member(fold), complete), expected, atol=1e-5)


def test_with_every_row_complete_recentring_changes_nothing(world, config):
    pack = make_pack(world, UNEVEN, config)
    before = [pack.heads.member(fold) for fold in range(3)]
    pack.recentre()
    assert all(same_bytes(pack.heads.member(fold), member) for fold, member in enumerate(before))


def test_with_every_row_complete_weights_are_logged_from_a_sample_of_the_training_rows(world, config, monkeypatch):
    monkeypatch.setattr(pack_module, "GAUGE_ROWS", 20)
    pack = make_pack(world, UNEVEN, config)
    samples = [set(member.gauge_rows.tolist()) for member in pack.members]
    assert [len(sample) for sample in samples] == [20] * 3
    assert all(sample <= set(UNEVEN.train_rows(fold).tolist()) for fold, sample in enumerate(samples))
    outputs = pack.outputs([member.gauge_rows for member in pack.members])
    for logged, expected in zip(pack.recentre(), outputs, strict=True):
        np.testing.assert_array_equal(logged, expected)
