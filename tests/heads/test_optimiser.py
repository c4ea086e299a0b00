"""AdamW with a rate and a decay per member, against torch's own, member by member."""

import numpy as np
import pytest
import torch

from heads.config import HeadsConfig
from heads.optimiser import BETAS, EPSILON, MemberAdamW, SharedAdamW, adamw


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


def test_where_all_agree_they_move_as_with_torchs_own_to_the_last_bit():
    own, same = parameters(), parameters()
    optimiser = adamw(own[:1], own[1:], [HeadsConfig(lr=1e-2, weight_decay=0.5)] * 2)
    assert isinstance(optimiser, SharedAdamW)
    groups = [{"params": same[:1], "weight_decay": 0.5}, {"params": same[1:], "weight_decay": 0.0}]
    torchs = torch.optim.AdamW(groups, lr=1e-2, betas=BETAS, eps=EPSILON, fused=True)
    for ours, theirs in zip(moved(optimiser, own), moved(torchs, same), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_what_never_decays_may_be_all_there_is():
    own = parameters()
    for ours, before in zip(moved(adamw([], own, [HeadsConfig()]), own), parameters(), strict=True):
        assert (ours != before.detach().numpy()).all()


@pytest.mark.parametrize("rates", [(1e-2, 1e-3), (1e-2, 1e-2)])
def test_a_step_without_gradients_is_refused(rates):
    own = parameters()
    optimiser = adamw(own[:1], own[1:], [HeadsConfig(lr=rate) for rate in rates])
    with pytest.raises(ValueError, match="gradient"):
        optimiser.step()
