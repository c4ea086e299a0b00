"""A trained member without torch: what it predicts, why, and what it is on disk."""

import json
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heads import inputs as inputs_module
from heads.fitted import Branch, FittedHeads, Head
from heads.inputs import AnyBlock, Block, Category, Inputs
from heads.readers import AsIs, CategoryMeans, Knots, Reader
from heads.targets import Standardisation, Target

drawn_worlds = settings(max_examples=15, deadline=None, derandomize=True)
seeds = st.integers(0, 10_000)
SCALE = Standardisation(mean=25 / 3, sd=7 / 3)
TRAIN_ROWS = np.arange(29, 3, -1)


def zeros(*shape: int) -> np.ndarray:
    return np.zeros(shape, dtype=np.float32)


def draw_layers(rng: np.random.Generator, *widths: int) -> dict[str, tuple[np.ndarray, ...]]:
    return {
        "weights": tuple((rng.normal(size=pair) / pair[0] ** 0.5).astype(np.float32) for pair in pairwise(widths)),
        "biases": tuple(rng.normal(size=width).astype(np.float32) for width in widths[1:]),
    }


READERS: dict[str, Reader] = {
    "image": AsIs(5),
    "text": AsIs(4),
    "age": Knots(np.array([-1.5, 0.0, 0.5, 2.0], dtype=np.float32), beside=1),
    "channel": CategoryMeans(np.array([3, 5, 8]), np.array([-1.0, 0.5, 2.0], dtype=np.float32)),
}


def draw_head(rng: np.random.Generator, modality: str) -> Head:
    """A network for embeddings, beside a linear branch for images; the others begin with an embedding layer."""
    reader = READERS[modality]
    if modality in ("age", "channel"):
        table = rng.normal(size=(reader.width, 5)).astype(np.float32)
        return Head((Branch(reader=reader, table=table, **draw_layers(rng, 5, 8, 1)),))
    network = Branch(reader=reader, **draw_layers(rng, reader.width, 16, 8, 1))
    return Head(
        (network, Branch(reader=reader, **draw_layers(rng, reader.width, 1))) if modality == "image" else (network,)
    )


def draw_inputs(rng: np.random.Generator, n_videos: int = 40, absent: float = 0.3) -> Inputs:
    """Absent rows hold numbers too, so that reading one of them shows."""
    everywhere = np.ones(n_videos, dtype=bool)
    blocks = (
        Block.embedding("image", rng.normal(size=(n_videos, 5)), everywhere),
        Block.embedding("text", rng.normal(size=(n_videos, 4)), everywhere),
        Block.scalar("age", rng.normal(size=n_videos), rng.normal(size=(n_videos, 1))),
        Category(modality="channel", codes=rng.integers(3, 10, size=n_videos), present=everywhere),
    )
    return Inputs(tuple(replace(block, present=rng.random(n_videos) >= absent) for block in blocks))


def canonical(
    heads: dict[str, Head], raw_weights: np.ndarray, intercept: float, inputs: Inputs, **changes: object
) -> FittedHeads:
    fields = {"train_rows": TRAIN_ROWS, "standardisation": SCALE, "target": Target()} | changes
    return FittedHeads.canonical(heads, raw_weights=raw_weights, intercept=intercept, inputs=inputs, **fields)


def draw_model(seed: int, absent: float = 0.3) -> tuple[Inputs, dict[str, Head], np.ndarray, float]:
    rng = np.random.default_rng(seed)
    inputs = draw_inputs(rng, absent=absent)
    heads = {modality: draw_head(rng, modality) for modality in inputs.modalities}
    return inputs, heads, rng.dirichlet(np.full(4, 3.0)), float(rng.normal())


def draw_fitted(seed: int, kind: str = "log1p") -> tuple[FittedHeads, Inputs]:
    inputs, heads, raw_weights, intercept = draw_model(seed)
    return canonical(heads, raw_weights, intercept, inputs, target=Target(kind)), inputs


def raw_prediction(inputs: Inputs, heads: dict[str, Head], weights: np.ndarray, intercept: float) -> np.ndarray:
    """What the model predicted before it was rewritten."""
    outputs = np.stack([heads[block.modality].outputs(block) * block.present for block in inputs.blocks])
    return SCALE.undo(intercept + weights @ outputs)


def slow_columns(reader: Reader, block: AnyBlock, row: int) -> list[float]:
    """What a reader reads of one row, number by number."""
    if isinstance(reader, CategoryMeans):
        means = dict(zip(reader.codes.tolist(), reader.means.tolist(), strict=True))
        known = block.present[row] and block.codes[row] in means
        return [means[block.codes[row]], 1.0] if known else [0.0, 0.0]
    numbers = block.values[row].tolist()
    if isinstance(reader, AsIs):
        return numbers
    knots, (amount, *beside) = reader.knots.tolist(), numbers
    amount = min(max(amount, knots[0]), knots[-1])
    left = max(place for place, knot in enumerate(knots) if knot <= amount)
    right = min(left + 1, len(knots) - 1)
    share = (amount - knots[left]) / (knots[right] - knots[left]) if right > left else 0.0
    between = [0.0] * len(knots)
    between[right] = share
    between[left] = 1.0 - share
    return between + beside


def slow_output(head: Head, block: AnyBlock, row: int) -> float:
    """A head, number by number."""
    total = 0.0
    for branch in head.branches:
        numbers = slow_columns(branch.reader, block, row)
        if branch.table is not None:
            numbers = [dot(numbers, column) for column in branch.table.T.tolist()]
        for layer, (weight, bias) in enumerate(zip(branch.weights, branch.biases, strict=True)):
            columns = zip(weight.T.tolist(), bias.tolist(), strict=True)
            numbers = [start + dot(numbers, column) for column, start in columns]
            if layer < len(branch.weights) - 1:
                numbers = [max(number, 0.0) for number in numbers]
        total += numbers[0]
    return total


def dot(one: list[float], other: list[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))


def slow_prediction(fitted: FittedHeads, inputs: Inputs, row: int) -> float:
    z = fitted.intercept
    for weight, (modality, head) in zip(fitted.weights.tolist(), fitted.heads.items(), strict=True):
        block = inputs.block(modality)
        if block.present[row]:
            z += weight * slow_output(head, block, row)
    return fitted.standardisation.mean + fitted.standardisation.sd * z


def without(inputs: Inputs, *modalities: str) -> Inputs:
    nowhere = np.zeros(inputs.n_videos, dtype=bool)
    return Inputs(tuple(replace(b, present=nowhere) if b.modality in modalities else b for b in inputs.blocks))


def same_bytes(one: FittedHeads, other: FittedHeads) -> bool:
    arrays, others = one.to_arrays(), other.to_arrays()
    return (
        one.to_metadata() == other.to_metadata()
        and list(arrays) == list(others)
        and all(arrays[name].tobytes() == others[name].tobytes() for name in arrays)
    )


def assert_same_model(one: FittedHeads, other: FittedHeads) -> None:
    np.testing.assert_allclose(one.weights, other.weights, atol=1e-5)
    np.testing.assert_allclose(one.intercept, other.intercept, atol=1e-5)
    others = other.to_arrays()
    for name, tensor in one.to_arrays().items():
        np.testing.assert_allclose(tensor, others[name], rtol=1e-4, atol=1e-4, err_msg=name)


def test_reading_and_using_a_trained_member_needs_no_torch():
    code = "import sys, heads.fitted, heads.ensemble, heads.metrics; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("modality", READERS)
@given(seed=seeds)
@drawn_worlds
def test_a_head_gives_what_its_layers_give_number_by_number(modality, seed):
    rng = np.random.default_rng(seed)
    block, head = draw_inputs(rng).block(modality), draw_head(rng, modality)
    expected = [slow_output(head, block, row) for row in range(40)]
    np.testing.assert_allclose(head.outputs(block), expected, atol=1e-5)


def test_a_number_is_read_between_its_knots_and_as_the_nearest_one_beyond_them():
    knots = Knots(np.array([0.0, 10.0], dtype=np.float32))
    branch = Branch(
        reader=knots,
        table=np.array([[0.0], [4.0]], dtype=np.float32),
        weights=(np.array([[2.0]], dtype=np.float32),),
        biases=(np.array([1.0], dtype=np.float32),),
    )
    ages = Block.scalar("age", np.array([-5.0, 0.0, 2.5, 10.0, 999.0]))
    assert Head((branch,)).outputs(ages).tolist() == [1.0, 1.0, 3.0, 9.0, 9.0]


def test_outputs_come_in_the_order_of_the_rows_that_were_asked():
    rng = np.random.default_rng(0)
    block, head, rows = draw_inputs(rng).block("image"), draw_head(rng, "image"), np.array([7, 3, 7, 39])
    np.testing.assert_allclose(head.outputs(block, rows), head.outputs(block)[rows], atol=1e-6)


@pytest.mark.parametrize("rows", [None, np.arange(39, 9, -1)])
def test_outputs_in_chunks_are_those_of_the_whole(monkeypatch, rows):
    rng = np.random.default_rng(0)
    block, head = draw_inputs(rng).block("image"), draw_head(rng, "image")
    whole = head.outputs(block, rows)
    monkeypatch.setattr(inputs_module, "CHUNK_ROWS", 7)
    np.testing.assert_allclose(head.outputs(block, rows), whole, atol=1e-6)


def test_vectors_of_another_encoder_are_refused_with_both_widths():
    rng = np.random.default_rng(0)
    head, text = draw_head(rng, "image"), draw_inputs(rng).block("text")
    with pytest.raises(ValueError, match="the text head reads vectors of 5 numbers, given 4: use the encoder"):
        head.outputs(text)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": (), "biases": ()}, "bias for each layer, given 0 and 0"),
        ({"biases": (zeros(8),)}, "bias for each layer, given 2 and 1"),
        ({"biases": (zeros(7), zeros(1))}, "fit together"),
        ({"weights": (zeros(5, 8), zeros(7, 1))}, "fit together"),
        ({"weights": (zeros(5, 8), zeros(8, 2)), "biases": (zeros(8), zeros(2))}, "end in one number"),
        ({"table": None, "reader": AsIs(6)}, "fit together"),
        ({"table": zeros(5, 6)}, "fit together"),
        ({"table": zeros(4, 5)}, "needs 5 embeddings, given 4"),
    ],
)
def test_layers_that_do_not_fit_together_are_refused(change, message):
    (branch,) = draw_head(np.random.default_rng(0), "age").branches
    with pytest.raises(ValueError, match=message):
        replace(branch, **change)


@pytest.mark.parametrize("modality", READERS)
def test_a_recentred_head_gives_its_output_minus_the_centre_times_the_scale(modality):
    rng = np.random.default_rng(0)
    block, head = draw_inputs(rng).block(modality), draw_head(rng, modality)
    np.testing.assert_allclose(head.recentred(0.5, -3.0).outputs(block), (head.outputs(block) - 0.5) * -3.0, atol=1e-5)


def linear(*weight: float, bias: float = 0.0) -> Head:
    weights, biases = (np.array(weight, np.float32)[:, None],), (np.array([bias], np.float32),)
    return Head((Branch(reader=AsIs(len(weight)), weights=weights, biases=biases),))


def test_predictions_worked_out_by_hand():
    fitted = FittedHeads(
        heads={"image": linear(1.0, 3.0), "text": linear(0.0, 2.0, bias=1.0)},
        weights=np.array([0.25, 0.75]),
        raw_weights=np.array([0.5, 0.5]),
        intercept=0.5,
        standardisation=Standardisation(mean=10.0, sd=2.0),
        target=Target(),
    )
    values = np.array([[1, 0], [0, 1]], dtype=np.float32)
    text_present = np.array([True, False])
    inputs = Inputs(
        (
            Block(modality="image", values=values, present=np.ones(2, dtype=bool)),
            Block(modality="text", values=values, present=text_present),
        )
    )
    assert fitted.baseline == 11.0  # 10 + 2 * 0.5
    assert fitted.contributions(inputs).tolist() == [[0.5, 1.5], [1.5, 0.0]]  # 2 * 0.25 * (1, 3) and 2 * 0.75 * (1, -)
    assert fitted.predict(inputs).tolist() == [13.0, 12.5]


@given(seeds)
@drawn_worlds
def test_predictions_are_those_of_each_row_alone(seed):
    fitted, inputs = draw_fitted(seed)
    expected = [slow_prediction(fitted, inputs, row) for row in range(inputs.n_videos)]
    np.testing.assert_allclose(fitted.predict(inputs), expected, atol=1e-5)


@given(seeds)
@drawn_worlds
def test_leaving_a_modality_out_takes_exactly_its_contribution_away(seed):
    fitted, inputs = draw_fitted(seed)
    predicted = fitted.predict(inputs)
    for modality, contribution in zip(fitted.modalities, fitted.contributions(inputs), strict=True):
        np.testing.assert_allclose(fitted.predict(without(inputs, modality)), predicted - contribution, atol=1e-12)


def test_a_video_of_which_nothing_is_known_gets_the_baseline():
    fitted, inputs = draw_fitted(0)
    predicted = fitted.predict(without(inputs, *inputs.modalities))
    assert predicted.tolist() == [fitted.baseline] * inputs.n_videos


def test_blocks_are_found_by_name_whatever_their_order_and_their_companions():
    fitted, inputs = draw_fitted(0)
    more = Block.scalar("length", np.arange(40.0))
    np.testing.assert_array_equal(fitted.predict(Inputs((*inputs.blocks[::-1], more))), fitted.predict(inputs))


@given(seeds)
@drawn_worlds
def test_contributions_have_mean_zero_over_the_training_rows(seed):
    fitted, inputs = draw_fitted(seed)
    contributions = fitted.contributions(inputs)[:, TRAIN_ROWS]
    assert (contributions.std(axis=1) > 1e-3).all()
    np.testing.assert_allclose(contributions.mean(axis=1), 0, atol=1e-5)


@given(seeds)
@drawn_worlds
def test_a_weight_is_the_share_of_its_modality_in_the_spread_of_all_contributions(seed):
    fitted, inputs = draw_fitted(seed)
    spreads = fitted.contributions(inputs)[:, TRAIN_ROWS].std(axis=1)
    np.testing.assert_allclose(fitted.weights, spreads / spreads.sum(), atol=1e-5)


@given(seeds)
@drawn_worlds
def test_rewriting_a_model_leaves_its_predictions_for_complete_videos(seed):
    inputs, *model = draw_model(seed)
    unseen = draw_inputs(np.random.default_rng(seed + 1), absent=0.0)
    fitted = canonical(*model, inputs)
    np.testing.assert_allclose(fitted.predict(unseen), raw_prediction(unseen, *model), atol=1e-5)


@given(seeds)
@drawn_worlds
def test_rewriting_a_model_whose_heads_are_centred_leaves_every_prediction(seed):
    inputs, heads, weights, intercept = draw_model(seed)
    centred = {}
    for modality, head in heads.items():
        block = inputs.block(modality).take(TRAIN_ROWS)
        centred[modality] = head.recentred(float(head.outputs(block)[block.present].mean()), 1.0)
    assert not inputs.present.all()
    fitted = canonical(centred, weights, intercept, inputs)
    np.testing.assert_allclose(fitted.predict(inputs), raw_prediction(inputs, centred, weights, intercept), atol=1e-5)


@given(seeds, st.floats(0.1, 10), st.floats(0.1, 10))
@drawn_worlds
def test_how_a_head_and_its_weight_share_a_factor_makes_no_difference(seed, factor, other_factor):
    inputs, heads, weights, intercept = draw_model(seed)
    shared = weights * np.array([factor, other_factor, 1.0, 1.0])
    shared /= shared.sum()
    scaled = {
        modality: head.recentred(0.0, float(ratio))
        for (modality, head), ratio in zip(heads.items(), weights / shared, strict=True)
    }
    assert_same_model(canonical(scaled, shared, intercept, inputs), canonical(heads, weights, intercept, inputs))


@given(seeds, st.floats(-3, 3))
@drawn_worlds
def test_how_a_head_and_the_intercept_share_a_constant_makes_no_difference(seed, constant):
    inputs, heads, weights, intercept = draw_model(seed)
    moved = heads | {"text": heads["text"].recentred(constant, 1.0)}
    moved_intercept = intercept + float(weights[1]) * constant
    assert_same_model(canonical(moved, weights, moved_intercept, inputs), canonical(heads, weights, intercept, inputs))


@given(seeds)
@drawn_worlds
def test_a_training_row_of_weight_two_counts_as_two_rows(seed):
    inputs, *model = draw_model(seed)
    counts = np.random.default_rng(seed).integers(0, 3, size=len(TRAIN_ROWS))
    weighted = canonical(*model, inputs, row_weights=counts.astype(np.float64))
    assert_same_model(weighted, canonical(*model, inputs, train_rows=np.repeat(TRAIN_ROWS, counts)))


@given(seeds)
@drawn_worlds
def test_rewriting_a_rewritten_model_changes_nothing(seed):
    fitted, inputs = draw_fitted(seed)
    assert_same_model(canonical(dict(fitted.heads), fitted.weights, fitted.intercept, inputs), fitted)


def test_a_head_that_always_says_the_same_gets_no_weight_and_moves_into_the_baseline():
    inputs, heads, weights, intercept = draw_model(0, absent=0.0)
    heads["text"] = linear(0.0, 0.0, 0.0, 0.0, bias=1.5)
    fitted = canonical(heads, weights, intercept, inputs)
    assert fitted.weights[1] == 0
    assert not fitted.contributions(inputs)[1].any()
    np.testing.assert_allclose(fitted.predict(inputs), raw_prediction(inputs, heads, weights, intercept), atol=1e-5)


def test_heads_that_all_say_the_same_share_the_weight_and_predict_the_baseline():
    inputs, drawn, weights, _ = draw_model(0, absent=0.0)
    heads = {
        modality: Head(
            tuple(replace(branch, weights=(*branch.weights[:-1], branch.weights[-1] * 0)) for branch in head.branches)
        )
        for modality, head in drawn.items()
    }
    fitted = canonical(heads, weights, 0.0, inputs)
    np.testing.assert_allclose(fitted.weights, 1 / 4)
    assert fitted.predict(inputs).tolist() == [fitted.baseline] * inputs.n_videos


@given(seeds, st.sampled_from(["log1p", "none"]))
@drawn_worlds
def test_what_is_written_down_as_arrays_and_json_is_read_back_to_the_bit(seed, kind):
    fitted, inputs = draw_fitted(seed, kind)
    read = FittedHeads.from_arrays(fitted.to_arrays(), json.loads(json.dumps(fitted.to_metadata())))
    assert same_bytes(read, fitted)
    assert read.target == Target(kind)
    np.testing.assert_array_equal(read.raw_weights, fitted.raw_weights)
    np.testing.assert_array_equal(read.predict(inputs), fitted.predict(inputs))


def test_tensors_may_come_in_any_order():
    fitted, inputs = draw_fitted(0)
    backwards = dict(reversed(fitted.to_arrays().items()))
    read = FittedHeads.from_arrays(backwards, fitted.to_metadata())
    np.testing.assert_array_equal(read.predict(inputs), fitted.predict(inputs))


@pytest.mark.parametrize(
    "key",
    ["modalities", "weights", "raw_weights", "intercept", "target", "target_mean", "target_sd", "readers", "tensors"],
)
def test_metadata_without_one_of_its_keys_are_refused_by_its_name(key):
    fitted, _ = draw_fitted(0)
    metadata = fitted.to_metadata()
    del metadata[key]
    with pytest.raises(ValueError, match=f"missing: {key}$"):
        FittedHeads.from_arrays(fitted.to_arrays(), metadata)


@pytest.mark.parametrize("key", ["modalities", "weights", "raw_weights"])
def test_metadata_without_a_weight_for_each_modality_are_refused(key):
    fitted, _ = draw_fitted(0)
    metadata = fitted.to_metadata()
    metadata[key] = metadata[key][:-1]
    with pytest.raises(ValueError, match=f"one weight per modality, given .*'{key}': 3"):
        FittedHeads.from_arrays(fitted.to_arrays(), metadata)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda tensor: None, "is missing"),
        (lambda tensor: tensor[:-1], r"is \['.*', .*\], not \["),
        (lambda tensor: tensor[None], r"is \['.*', 1, .*\], not \["),
        (lambda tensor: tensor.astype(np.float16), r"is \['float16', .*\], not \['(float32|int64)', "),
    ],
    ids=["lost", "cut", "wrapped", "rounded"],
)
def test_each_tensor_that_is_not_as_the_metadata_say_is_refused_by_its_name(damage, message):
    fitted, _ = draw_fitted(0)
    for damaged in fitted.to_arrays():
        arrays = {name: damage(tensor) if name == damaged else tensor for name, tensor in fitted.to_arrays().items()}
        kept = {name: tensor for name, tensor in arrays.items() if tensor is not None}
        with pytest.raises(ValueError, match=f": {damaged} {message}"):
            FittedHeads.from_arrays(kept, fitted.to_metadata())


def test_all_that_is_wrong_with_the_tensors_is_named_at_once():
    fitted, _ = draw_fitted(0)
    arrays = fitted.to_arrays()
    arrays["sound.0.weight_0"] = arrays.pop("image.0.weight_0")
    arrays["age.0.table"] = arrays["age.0.table"][:2]
    message = (
        r"image.0.weight_0 is missing; sound.0.weight_0 is unknown; "
        r"age.0.table is \['float32', 2, 5\], not \['float32', 5, 5\]"
    )
    with pytest.raises(ValueError, match=message):
        FittedHeads.from_arrays(arrays, fitted.to_metadata())


def test_shapes_that_agree_with_the_tensors_but_not_with_each_other_are_refused():
    fitted, _ = draw_fitted(0)
    arrays, metadata = fitted.to_arrays(), fitted.to_metadata()
    arrays["image.0.weight_1"] = arrays["image.0.weight_1"][:-1]
    metadata["tensors"]["image.0.weight_1"] = ["float32", 15, 8]
    with pytest.raises(ValueError, match="fit together"):
        FittedHeads.from_arrays(arrays, metadata)


def test_a_way_of_reading_that_does_not_exist_is_refused():
    fitted, _ = draw_fitted(0)
    metadata = fitted.to_metadata()
    metadata["readers"]["text"] = ["by_heart"]
    with pytest.raises(ValueError, match="given by_heart"):
        FittedHeads.from_arrays(fitted.to_arrays(), metadata)
