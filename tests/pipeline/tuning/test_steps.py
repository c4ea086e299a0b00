"""Steps of a training: rates by hand, the moving average by hand, gradients that are clipped."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from features.errors import UsageError
from heads.targets import Standardisation
from pipeline.config import FinetuneConfig
from pipeline.tuning.steps import CLIP_NORM, MEMORY, FoldTask, Seen, _clip, _follow, schedule


@given(st.integers(1, 500))
def test_rates_rise_to_the_full_one_and_fall_to_nearly_none(total):
    factors = [schedule(step, total) for step in range(total)]
    top = factors.index(max(factors))
    assert max(factors) == 1
    assert all(0 < factor <= 1 for factor in factors)
    assert factors[: top + 1] == sorted(factors[: top + 1])
    assert factors[top:] == sorted(factors[top:], reverse=True)
    assert top <= math.ceil(0.1 * total)


def test_the_average_forgets_fast_at_first_and_then_remembers_a_tenth_of_the_steps():
    """Of 100 steps: 1/10 of the old average after step 1, 0.5 after step 9, e^-0.1 from then on if that is less."""
    average, parameters = {"a": torch.tensor([0.0])}, {"a": torch.tensor([1.0])}
    kept = []
    for step in range(1, 101):
        average["a"].zero_()
        _follow(average, parameters, step, 100)
        kept.append(1 - float(average["a"]))
    assert kept[0] == pytest.approx(1 / 10)
    assert kept[8] == pytest.approx(9 / 18)
    assert kept[-1] == pytest.approx(math.exp(-1 / (MEMORY * 100)))
    assert kept == sorted(kept)


def test_the_average_follows_without_touching_what_it_follows():
    average = {"a": torch.tensor([0.0])}
    parameters = {"a": torch.nn.Parameter(torch.tensor([1.0]))}
    _follow(average, parameters, 5, 10)
    assert 0 < float(average["a"]) < 1
    assert parameters["a"].item() == 1.0
    assert not average["a"].requires_grad


def drawn_parameters(**gradients):
    """One tower with two parameters and one head, all of norm 1 or so."""
    parameters = {name: torch.nn.Parameter(torch.ones(2)) for name in ("image.a", "image.b", "heads.c")}
    for name, gradient in gradients.items():
        parameters[name.replace("_", ".")].grad = torch.tensor(gradient)
    return parameters


def test_gradients_of_towers_and_heads_are_clipped_each_by_themselves():
    parameters = drawn_parameters(image_a=[30.0, 40.0], heads_c=[0.03, 0.04])
    assert _clip(parameters) == pytest.approx(50.05)
    assert parameters["image.a"].grad.norm().item() == pytest.approx(CLIP_NORM, rel=1e-4)
    assert parameters["heads.c"].grad.tolist() == pytest.approx([0.03, 0.04])


def test_a_parameter_that_no_row_reached_has_a_gradient_of_zero():
    parameters = drawn_parameters()
    assert _clip(parameters) == 0
    assert all(parameter.grad.tolist() == [0.0, 0.0] for parameter in parameters.values())


def test_a_gradient_that_is_not_finite_is_noticed():
    assert math.isnan(_clip(drawn_parameters(heads_c=[math.nan, 0.0])))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_is_refused_with_the_rates_that_led_there(tmp_path, value):
    nothing = {"train_rows": np.arange(0), "val_rows": np.arange(0), "log_views": np.zeros(0), "expected": np.zeros(0)}
    scale, folder = Standardisation(0.0, 1.0), tmp_path / "fold1"
    task = FoldTask(fold=1, **nothing, standardisation=scale, config=FinetuneConfig(), start_within=1.0, folder=folder)
    with pytest.raises(UsageError, match=r"for fold 1 in epoch 3: lower --lr \(now 1e-05\) or --head-lr"):
        task.require_finite(value, 3)


@pytest.mark.parametrize(("loss", "norm"), [(math.nan, 1.0), (1.0, math.inf)])
def test_a_look_at_the_latest_steps_finds_what_is_not_finite(loss: float, norm: float):
    seen = Seen()
    seen.add_step([torch.tensor(loss), torch.tensor(1.0)], torch.tensor(norm), 4)
    assert not math.isfinite(seen.latest(3))
    for _ in range(3):
        seen.add_step([torch.tensor(2.0)], torch.tensor(5.0), 2)
    assert seen.latest(3) == 21.0


def test_an_epoch_weighs_its_steps_by_their_rows():
    seen = Seen()
    norm = torch.tensor(1.0)
    seen.add_step([torch.tensor(0.25), torch.tensor(0.75)], norm, 30)
    seen.add_step([torch.tensor(4.0)], norm, 10)
    assert seen.loss == pytest.approx((30 * 1.0 + 10 * 4.0) / 40)


def test_weights_are_shares_of_the_spread_and_frozen_heads_keep_theirs():
    """Two trained heads share 0.8: outputs spread 1 and 2 at raw weights 0.4 each, so 0.8 / 3 and 1.6 / 3."""
    seen = Seen()
    seen.add_outputs(torch.tensor([[-1.0, 1.0], [2.0, -2.0]]), torch.ones(2, 2))
    names = ("image", "channel", "text")
    weights = seen.canonical(np.array([0.4, 0.2, 0.4]), np.array([0.4, 0.4]), names, ("image", "text"))
    assert weights.tolist() == pytest.approx([0.8 / 3, 0.2, 1.6 / 3])
