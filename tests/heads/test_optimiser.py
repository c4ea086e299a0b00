"""AdamW with a rate and a decay per member, against torch's own, member by member."""

import numpy as np
import pytest
import torch

from heads.config import HeadsConfig
from heads.optimiser import MemberAdamW, adamw


def parameters() -> list[torch.nn.Parameter]:
    rng = np.random.default_rng(0)
    shapes = ((2, 4, 3), (2, 1, 3), (2,))
    return [torch.nn.Parameter(torch.from_numpy(rng.normal(size=shape).astype(np.float32))) for shape in shapes]


def gradients(step: int) -> list[torch.Tensor]:
    rng = np.random.default_rng(100 + step)
    return [torch.from_numpy(rng.normal(size=p.shape).astype(np.float32)) for p in parameters()]


def moved(optimiser, own: list[torch.nn.Parameter], pick=slice(None)) -> list[np.ndarray]:
    for step in range(5):
        optimiser.zero_grad()
        for parameter, gradient in zip(own, gradients(step), strict=True):
            parameter.grad = gradient[pick].clone()
        optimiser.step()
    return [parameter.detach().numpy() for parameter in own]


def test_members_with_rates_of_their_own_move_as_if_they_were_alone():
    configs = [HeadsConfig(lr=1e-2, weight_decay=0.5), HeadsConfig(lr=3e-3, weight_decay=0.0)]
    together = parameters()
    optimiser = adamw(together[:1], together[1:], configs)
    assert isinstance(optimiser, MemberAdamW)
    result = moved(optimiser, together)
    for member, config in enumerate(configs):
        pick = slice(member, member + 1)
        alone = [torch.nn.Parameter(parameter.detach()[pick].clone()) for parameter in parameters()]
        expected = moved(adamw(alone[:1], alone[1:], [config]), alone, pick)
        for ours, theirs in zip(result, expected, strict=True):
            np.testing.assert_allclose(ours[pick], theirs, rtol=1e-5, atol=1e-6)


def test_where_all_agree_it_is_torchs_own():
    own = parameters()
    assert isinstance(adamw(own[:1], own[1:], [HeadsConfig()] * 2), torch.optim.AdamW)


def test_a_step_without_gradients_is_refused():
    own = parameters()
    optimiser = adamw(own[:1], own[1:], [HeadsConfig(lr=1e-2), HeadsConfig(lr=1e-3)])
    with pytest.raises(ValueError, match="gradient"):
        optimiser.step()
