"""The stacked networks against plain ones, and the randomness they begin and train with."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from heads.config import HeadsConfig
from heads.fitted import Branch, Head
from heads.inputs import Block
from heads.mlp import Dropout, StackedHead, StackedHeads, draw_branch
from heads.optimiser import adamw
from heads.readers import AsIs, CategoryMeans, Knots

drawn_worlds = settings(max_examples=10, deadline=None, derandomize=True)
seeds = st.integers(0, 10_000)
CPU = torch.device("cpu")


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Matrices this small gain nothing from a second thread, and lose much where others want it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def no_drop(hidden: torch.Tensor) -> torch.Tensor:
    return hidden


def draw_blocks(rng: np.random.Generator, n_videos: int = 30) -> list[Block]:
    everywhere = np.ones(n_videos, dtype=bool)
    blocks = (
        Block.embedding("image", rng.normal(size=(n_videos, 5)), everywhere),
        Block.embedding("text", rng.normal(size=(n_videos, 4)), everywhere),
        Block.scalar("age", rng.normal(size=n_videos), rng.normal(size=(n_videos, 1))),
    )
    return [replace(block, present=np.append(True, rng.random(n_videos - 1) < 0.8)) for block in blocks]


def draw_members(rng: np.random.Generator, blocks: list[Block], hidden_dim: int = 12) -> list[list[Branch]]:
    """Three members that have seen all rows, nine, and one, so that the last has a single knot; no embedding is 0."""
    members = []
    for rows in (np.arange(blocks[0].n_videos), np.arange(9), np.arange(1)):
        *networks, ages = (draw_branch(reader_of(block, rows), hidden_dim, rng) for block in blocks)
        members.append([*networks, replace(ages, table=rng.normal(size=ages.table.shape).astype(np.float32))])
    return members


def reader_of(block: Block, rows: np.ndarray) -> AsIs | Knots:
    return Knots.fit(block, rows) if block.knotted else AsIs(block.values.shape[1])


def scramble(stack: StackedHeads, rng: np.random.Generator) -> None:
    """Logits and intercepts that are not those of a fresh model."""
    with torch.no_grad():
        stack.logits.copy_(torch.from_numpy(rng.normal(size=stack.logits.shape) * 2))
        stack.intercept.copy_(torch.from_numpy(rng.normal(size=stack.intercept.shape)))


def stacked_values(members: list[list[Branch]], blocks: list[Block], rows_of: np.ndarray) -> list[torch.Tensor]:
    """What the stack reads: the columns of each member's reader, padded with zeros to the most columns."""
    values = []
    for block, branches in zip(blocks, zip(*members, strict=True), strict=True):
        own = [branch.reader.read(block.take(rows)) for branch, rows in zip(branches, rows_of, strict=True)]
        most = max(columns.shape[1] for columns in own)
        padded = [np.pad(columns, ((0, 0), (0, most - columns.shape[1]))) for columns in own]
        values.append(torch.from_numpy(np.stack(padded)))
    return values


def stacked_presence(blocks: list[Block], rows_of: np.ndarray) -> torch.Tensor:
    present = np.stack([block.present for block in blocks])
    return torch.from_numpy(np.stack([present[:, rows] for rows in rows_of]).astype(np.float32))


def plain_output(branch: Branch, block: Block) -> torch.Tensor:
    """The network of one member as anybody writes it in torch."""
    values = block.values
    if isinstance(branch.reader, Knots):  # an embedding between knots, and one per unit of the column beside them
        amounts, knots = values[:, 0], branch.reader.knots
        between = [np.interp(amounts, knots, column) for column in branch.table[: len(knots)].T]
        values = np.stack(between, axis=1) + values[:, 1:] @ branch.table[len(knots) :]
    layers: list[torch.nn.Module] = []
    for weight, bias in zip(branch.weights, branch.biases, strict=True):
        linear = torch.nn.Linear(*weight.shape)
        linear.load_state_dict({"weight": torch.from_numpy(weight.T), "bias": torch.from_numpy(bias)})
        layers += [linear, torch.nn.ReLU()]
    with torch.no_grad():
        return torch.nn.Sequential(*layers[:-1])(torch.from_numpy(values.astype(np.float32)))[:, 0]


@given(seeds)
@drawn_worlds
def test_stacked_members_predict_what_each_plain_model_predicts_alone(seed):
    rng = np.random.default_rng(seed)
    blocks = draw_blocks(rng)
    members = draw_members(rng, blocks)
    stack = StackedHeads(members)
    scramble(stack, rng)
    rows_of = rng.integers(0, 30, size=(3, 11))
    predicted = stack(stacked_values(members, blocks, rows_of), stacked_presence(blocks, rows_of), no_drop)
    for member, (branches, rows) in enumerate(zip(members, rows_of, strict=True)):
        shares = torch.softmax(stack.logits[member], dim=0)
        expected = stack.intercept[member].repeat(len(rows))
        for share, branch, block in zip(shares, branches, blocks, strict=True):
            own = block.take(rows)
            expected = expected + share * plain_output(branch, own) * torch.from_numpy(own.present)
        np.testing.assert_allclose(predicted[member].detach(), expected.detach(), atol=1e-5)


@given(seeds)
@drawn_worlds
def test_a_head_without_torch_gives_what_the_stacked_head_gives(seed):
    rng = np.random.default_rng(seed)
    blocks = draw_blocks(rng)
    members = draw_members(rng, blocks)
    every_row = np.tile(np.arange(30), (3, 1))
    outputs = StackedHeads(members).outputs(stacked_values(members, blocks, every_row), no_drop).detach().numpy()
    for member, branches in enumerate(members):
        for modality, (branch, block) in enumerate(zip(branches, blocks, strict=True)):
            np.testing.assert_allclose(Head((branch,)).outputs(block), outputs[member, modality], atol=1e-5)


def test_members_come_out_of_the_stack_as_they_went_in():
    rng = np.random.default_rng(0)
    members = draw_members(rng, draw_blocks(rng))
    assert [len(branches[2].reader.knots) for branches in members] == [16, 16, 1]
    stack = StackedHeads(members)
    for index, branches in enumerate(members):
        for branch, taken in zip(branches, stack.member(index).branches, strict=True):
            names, tensors = zip(*branch.tensors(), strict=True)
            assert [name for name, _ in taken.tensors()] == list(names)
            for tensor, (name, other) in zip(tensors, taken.tensors(), strict=True):
                np.testing.assert_array_equal(other, tensor, err_msg=name)


def test_a_member_that_was_taken_out_does_not_learn_on():
    rng = np.random.default_rng(0)
    stack = StackedHeads(draw_members(rng, draw_blocks(rng)))
    taken = stack.member(1)
    before = [tensor.copy() for branch in taken.branches for _, tensor in branch.tensors()]
    with torch.no_grad():
        for parameter in stack.parameters():
            parameter.fill_(7.0)
    after = [tensor for branch in taken.branches for _, tensor in branch.tensors()]
    assert all(np.array_equal(old, new) for old, new in zip(before, after, strict=True))
    assert (taken.weights.tolist(), taken.intercept) == ([pytest.approx(1 / 3)] * 3, 0.0)


def test_an_untrained_model_weighs_all_modalities_alike_around_zero():
    rng = np.random.default_rng(0)
    raw = StackedHeads(draw_members(rng, draw_blocks(rng))).member(2)
    assert raw.weights.tolist() == [1 / 3] * 3
    assert raw.intercept == 0.0


@given(st.lists(st.floats(-200, 200, width=32), min_size=3, max_size=3))
@drawn_worlds
def test_weights_lie_on_the_simplex_whatever_the_logits(logits):
    rng = np.random.default_rng(0)
    stack = StackedHeads(draw_members(rng, draw_blocks(rng)))
    with torch.no_grad():
        stack.logits[1] = torch.tensor(logits)
    weights = stack.member(1).weights
    assert (weights >= 0).all()
    assert abs(weights.sum() - 1) < 1e-12


def test_the_loss_of_one_member_moves_no_other():
    rng = np.random.default_rng(0)
    blocks = draw_blocks(rng)
    members = draw_members(rng, blocks)
    stack, rows_of = StackedHeads(members), rng.integers(0, 30, size=(3, 8))
    predicted = stack(stacked_values(members, blocks, rows_of), stacked_presence(blocks, rows_of), no_drop)
    torch.autograd.backward(predicted[1].square().sum())
    for parameter in stack.parameters():
        assert parameter.grad[1].any()
        assert not parameter.grad[[0, 2]].any()


def test_dropout_follows_each_hidden_layer_and_nothing_else():
    rng = np.random.default_rng(0)
    blocks = draw_blocks(rng)
    members = draw_members(rng, blocks)
    seen = []

    def spy(hidden: torch.Tensor) -> torch.Tensor:
        assert (hidden >= 0).all()  # it comes after the ReLU
        seen.append(tuple(hidden.shape))
        return torch.zeros_like(hidden)

    outputs = StackedHeads(members).outputs(stacked_values(members, blocks, np.zeros((3, 2), int)), spy)
    assert seen == [(3, 2, 12), (3, 2, 6), (3, 2, 12), (3, 2, 6), (3, 2, 64)]
    last_biases = [[[branch.biases[-1].item()] * 2 for branch in branches] for branches in members]
    np.testing.assert_array_equal(outputs.detach(), last_biases)  # hidden units that are all dropped leave the bias


def test_recentring_moves_one_members_heads_and_keeps_its_predictions():
    rng = np.random.default_rng(0)
    blocks = draw_blocks(rng)
    members = draw_members(rng, blocks)
    stack = StackedHeads(members)
    scramble(stack, rng)
    values, everywhere = stacked_values(members, blocks, rng.integers(0, 30, size=(3, 8))), torch.ones(3, 3, 8)
    outputs, predicted = stack.outputs(values, no_drop), stack(values, everywhere, no_drop)
    centre = np.array([0.5, -2.0, 3.0])
    stack.recentre(1, centre)
    moved = stack.outputs(values, no_drop)
    np.testing.assert_allclose((outputs - moved)[1].detach(), np.tile(centre[:, None], 8), atol=1e-5)
    np.testing.assert_array_equal(moved[[0, 2]].detach(), outputs[[0, 2]].detach())
    np.testing.assert_allclose(stack(values, everywhere, no_drop).detach(), predicted.detach(), atol=1e-5)


def test_only_matrices_and_embeddings_decay():
    """With gradients of zero an AdamW step is decay alone."""
    rng = np.random.default_rng(0)
    stack = StackedHeads(draw_members(rng, draw_blocks(rng)))
    scramble(stack, rng)
    before = {name: parameter.detach().clone() for name, parameter in stack.named_parameters()}
    for parameter in stack.parameters():
        parameter.grad = torch.zeros_like(parameter)
    adamw(stack.decaying, stack.others, [HeadsConfig(lr=0.1, weight_decay=0.5)]).step()
    kept = {name for name, parameter in stack.named_parameters() if torch.equal(parameter, before[name])}
    shrunk = {
        name
        for name, parameter in stack.named_parameters()
        if torch.allclose(parameter, before[name] * (1 - 0.1 * 0.5), rtol=1e-6)
    }
    biases = {f"heads.{head}.biases.{layer}" for head, layers in enumerate((3, 3, 2)) for layer in range(layers)}
    weights = {name.replace("biases", "weights") for name in biases}
    assert kept == biases | {"logits", "intercept"}
    assert shrunk == weights | {"heads.2.table"}


def test_every_parameter_is_trained():
    rng = np.random.default_rng(0)
    stack = StackedHeads(draw_members(rng, draw_blocks(rng)))
    trained = [id(parameter) for parameter in [*stack.decaying, *stack.others]]
    assert sorted(trained) == sorted(id(parameter) for parameter in stack.parameters())


def test_embeddings_that_pad_those_of_a_member_stay_zero_while_it_trains():
    rng = np.random.default_rng(0)
    blocks = draw_blocks(rng)
    members = [branches[2:] for branches in draw_members(rng, blocks)]
    stack = StackedHead([branch for (branch,) in members])
    optimiser = torch.optim.AdamW(stack.parameters(), lr=0.1)
    (values,) = stacked_values(members, blocks[2:], rng.integers(0, 30, size=(3, 20)))
    for _ in range(3):
        optimiser.zero_grad()
        torch.autograd.backward(stack(values, no_drop).square().sum())
        optimiser.step()
    for member, (branch,) in enumerate(members):
        assert not np.allclose(stack.member(member).table, branch.table)
        assert not stack.table[member, branch.reader.width :].any()


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_dropout_zeroes_its_share_of_the_units_and_scales_the_others_up(rate):
    hidden = torch.full((1, 400, 250), 3.0)
    dropped = Dropout([rate], [5], CPU)(hidden, [400]).numpy()
    share = (dropped == 0).mean()
    assert abs(share - rate) < 5 * np.sqrt(rate * (1 - rate) / dropped.size)
    np.testing.assert_allclose(dropped[dropped != 0], 3.0 / (1 - rate), rtol=1e-6)


def test_each_unit_is_dropped_whatever_happens_to_the_others():
    keep = Dropout([0.3], [5], CPU)(torch.ones(1, 4000, 10), [4000])[0].numpy() > 0
    assert np.abs(keep.mean(axis=0) - 0.7).max() < 5 * np.sqrt(0.21 / 4000)
    together = np.corrcoef(np.concatenate([keep[:-1].T, keep[1:].T]))  # units of one row, and of the row after it
    assert np.abs(together - np.eye(20)).max() < 5 / np.sqrt(4000)


def test_a_rate_of_zero_drops_nothing():
    hidden = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(Dropout([0.0] * 2, [1, 2], CPU)(hidden, [5, 4]), hidden)


def test_masks_follow_from_the_seed_and_differ_from_call_to_call():
    hidden = torch.ones(1, 20, 16)
    one, same, other = (Dropout([0.5], [seed], CPU) for seed in (1, 1, 2))
    first, second = one(hidden, [20]), one(hidden, [20])
    assert torch.equal(same(hidden, [20]), first)
    assert torch.equal(same(hidden, [20]), second)
    assert not torch.equal(first, second)
    assert not torch.equal(other(hidden, [20]), first)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 7)), min_size=1, max_size=4), st.integers(1, 9))
@drawn_worlds
def test_a_members_masks_do_not_depend_on_its_companions(companions, n_units):
    seeds_and_counts = [*companions, (77, 5)]
    n_rows = max(count for _, count in seeds_and_counts)
    pack = Dropout([0.5] * len(seeds_and_counts), [seed for seed, _ in seeds_and_counts], CPU)
    alone = Dropout([0.5], [77], CPU)
    for _ in range(3):
        packed = pack(torch.ones(len(seeds_and_counts), n_rows, n_units), [count for _, count in seeds_and_counts])
        assert torch.equal(packed[-1, :5], alone(torch.ones(1, 5, n_units), [5])[0])


@pytest.mark.parametrize(("hidden_dim", "widths"), [(512, (40, 512, 256, 1)), (7, (40, 7, 3, 1)), (2, (40, 2, 1, 1))])
def test_a_network_for_embeddings_halves_its_width_once(hidden_dim, widths):
    branch = draw_branch(AsIs(40), hidden_dim, np.random.default_rng(0))
    assert [weight.shape for weight in branch.weights] == list(pairwise(widths))
    assert [bias.shape for bias in branch.biases] == [(width,) for width in widths[1:]]
    assert branch.table is None


KNOTS = Knots(np.arange(16, dtype=np.float32) ** 2, beside=2)
CHANNELS = CategoryMeans(np.array([3, 5]), np.array([0.5, -0.5], dtype=np.float32))


@pytest.mark.parametrize(("reader", "width"), [(KNOTS, 18), (CHANNELS, 2)])
def test_numbers_and_categories_go_through_an_embedding_layer(reader, width):
    branch = draw_branch(reader, 512, np.random.default_rng(0))
    assert branch.table.shape == (width, 16)
    assert [weight.shape for weight in branch.weights] == [(16, 64), (64, 1)]
    assert [bias.shape for bias in branch.biases] == [(64,), (1,)]


def test_the_embeddings_of_knots_start_on_a_straight_line_and_those_beside_them_at_zero():
    table = draw_branch(KNOTS, 512, np.random.default_rng(0)).table
    np.testing.assert_allclose(np.diff(table[:16], n=2, axis=0), 0, atol=1e-5)
    assert (np.abs(table[15] - table[0]) > 1e-3).all()
    assert not table[16:].any()


@pytest.mark.parametrize("reader", [AsIs(100), KNOTS])
def test_layers_start_uniform_within_the_bounds_of_torch(reader):
    branch = draw_branch(reader, 64, np.random.default_rng(0))
    for weight, bias in zip(branch.weights, branch.biases, strict=True):
        bound = 1 / np.sqrt(weight.shape[0])
        for array in (weight, bias):
            assert np.abs(array).max() <= bound
            if array.size > 30:  # of a uniform distribution the deviation is the bound over the root of 3
                assert abs(array.mean()) < 5 * bound / np.sqrt(3 * array.size)
                np.testing.assert_allclose(array.std(), bound / np.sqrt(3), rtol=0.25)
            if array.size > 1000:
                np.testing.assert_allclose([array.min(), array.max()], [-bound, bound], rtol=0.05)


def test_a_number_that_is_the_same_everywhere_has_one_knot_and_a_network():
    block = Block.scalar("age", np.full(5, 4.0))
    head = Head((draw_branch(Knots.fit(block, np.arange(5)), 8, np.random.default_rng(0)),))
    np.testing.assert_allclose(head.outputs(block), head.outputs(block)[0], rtol=1e-6)


@pytest.mark.parametrize("reader", [AsIs(100), KNOTS, CHANNELS])
def test_an_untrained_network_follows_from_its_random_stream(reader):
    one, same, other = (draw_branch(reader, 8, np.random.default_rng(seed)) for seed in (1, 1, 2))
    for tensor, equal, different in zip(one.weights, same.weights, other.weights, strict=True):
        np.testing.assert_array_equal(tensor, equal)
        assert not np.array_equal(tensor, different)
    np.testing.assert_array_equal(one.table, same.table)
