"""Fitted heads as a torch module: the same model before training, and the same model when written back."""

import numpy as np
import pytest
import torch

from heads.differentiable import DifferentiableHeads, Learning
from heads.inputs import Category, Inputs
from tests.heads.test_fitted import TRAIN_ROWS, canonical, draw_fitted, draw_model


def predicted(module, inputs):
    known = module.known(inputs, inputs.n_videos)
    vectors = {name: torch.from_numpy(inputs.block(name).values) for name in module.embedded}
    here = {name: torch.from_numpy(inputs.block(name).present.astype(np.float32)) for name in module.embedded}
    with torch.no_grad():
        outputs = module.outputs(vectors, known)
        return module.combined(outputs, module.present(here, known), known).double().numpy()


@pytest.fixture(params=range(3))
def world(request):
    return draw_fitted(request.param)


def test_the_module_predicts_what_the_heads_predict(world):
    fitted, inputs = world
    expected = fitted.standardisation.apply(fitted.predict(inputs))
    assert predicted(DifferentiableHeads(fitted), inputs) == pytest.approx(expected, abs=1e-5)


def test_written_back_it_predicts_the_same(world):
    fitted, inputs = world
    back = DifferentiableHeads(fitted).fitted(inputs, TRAIN_ROWS)
    assert back.predict(inputs) == pytest.approx(fitted.predict(inputs), abs=1e-4)
    assert back.modalities == fitted.modalities
    assert back.raw_weights.sum() == pytest.approx(1)


def test_a_changed_module_is_written_back_as_it_is_now():
    inputs, heads, raw_weights, intercept = draw_model(0, absent=0.0)
    fitted = canonical(heads, raw_weights, intercept, inputs)
    module = DifferentiableHeads(fitted)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    now = fitted.standardisation.undo(predicted(module, inputs))
    assert module.fitted(inputs, TRAIN_ROWS).predict(inputs) == pytest.approx(now, abs=1e-4)
    assert np.abs(now - fitted.predict(inputs)).max() > 0.01


def test_a_modality_without_weight_can_gain_some():
    inputs, heads, raw_weights, intercept = draw_model(1)
    fitted = canonical({**heads, "text": heads["text"].recentred(0.0, 0.0)}, raw_weights, intercept, inputs)
    assert fitted.weights[1] == 0
    module = DifferentiableHeads(fitted)
    assert module.weights()[1] == pytest.approx(1e-3, rel=0.01)
    assert predicted(module, inputs) == pytest.approx(fitted.standardisation.apply(fitted.predict(inputs)), abs=1e-5)


def test_a_channel_is_a_constant_of_its_row_and_keeps_its_weight(world):
    fitted, _ = world
    module = DifferentiableHeads(fitted)
    assert "channel" not in module.trained
    assert set(module.embedded) == {"image", "text"}
    with torch.no_grad():
        module.logits.add_(torch.tensor([1.0, -1.0, 0.5]))
    index = fitted.modalities.index("channel")
    assert module.weights()[index] == pytest.approx(DifferentiableHeads(fitted).weights()[index], rel=1e-6)


def test_gradients_reach_embeddings_of_any_length(world):
    fitted, inputs = world
    module = DifferentiableHeads(fitted)
    vectors = {name: 7 * torch.from_numpy(inputs.block(name).values) for name in module.embedded}
    for vector in vectors.values():
        vector.requires_grad_()
    module.outputs(vectors, module.known(inputs, inputs.n_videos)).square().sum().backward()
    assert all(float(vector.grad.abs().sum()) > 0 for vector in vectors.values())


def test_a_row_to_learn_from_does_not_know_its_own_target(world):
    """Its channel's mean comes from other rows: changing its target moves the terms of others, never its own."""
    fitted, inputs = world
    alone = Inputs(tuple(block for block in inputs.blocks if block.modality not in ("image", "text")))
    (channel,) = (block for block in inputs.blocks if isinstance(block, Category))
    z = np.random.default_rng(5).normal(size=inputs.n_videos)
    row = next(row for row in TRAIN_ROWS if channel.present[row] and (channel.codes == channel.codes[row]).sum() > 2)

    def offsets(targets):
        learning = Learning(TRAIN_ROWS, targets, np.random.default_rng(0))
        return DifferentiableHeads(fitted).known(alone, inputs.n_videos, learning).offset.numpy()

    moved = z.copy()
    moved[row] += 100.0
    before, after = offsets(z), offsets(moved)
    assert before[row] == after[row]
    others = np.setdiff1d(TRAIN_ROWS, [row])
    assert (before[others] != after[others]).any()
    unseen = np.setdiff1d(np.arange(inputs.n_videos), TRAIN_ROWS)
    plain = DifferentiableHeads(fitted).known(alone, inputs.n_videos).offset.numpy()
    np.testing.assert_array_equal(before[unseen], plain[unseen])
