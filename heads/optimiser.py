"""AdamW for members side by side, each with its own learning rate and weight decay.

torch's takes one rate for all that a tensor holds, hence for all members. It is taken where they agree, as it is fused;
the other one does the same steps, operation by operation.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float

from heads.config import HeadsConfig

BETAS = (0.9, 0.999)
EPSILON = 1e-8


class MemberAdamW:
    """Decoupled weight decay (Loshchilov and Hutter, 2019) with a rate and a decay per member."""

    def __init__(
        self,
        decaying: Sequence[torch.nn.Parameter],
        others: Sequence[torch.nn.Parameter],
        rates: Sequence[float],
        decays: Sequence[float],
    ) -> None:
        self._parameters = [*decaying, *others]
        self._means = [torch.zeros_like(parameter) for parameter in self._parameters]
        self._squares = [torch.zeros_like(parameter) for parameter in self._parameters]
        device = self._parameters[0].device
        self._rates = torch.tensor(rates, dtype=torch.float32, device=device)
        # In float64 first: 1 - rate * decay has few digits left to lose.
        kept = torch.from_numpy((1 - np.array(rates) * np.array(decays)).astype(np.float32)).to(device)
        self._kept = [kept] * len(decaying) + [torch.ones_like(kept)] * len(others)
        self._steps = 0

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for parameter in self._parameters:
            parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Move every member by its own rate."""
        self._steps += 1
        mean_bias, square_bias = (1 - beta**self._steps for beta in BETAS)
        for parameter, mean, square, kept in zip(self._parameters, self._means, self._squares, self._kept, strict=True):
            gradient = parameter.grad
            if gradient is None:
                raise ValueError("every parameter must have a gradient before a step")
            mean.lerp_(gradient, 1 - BETAS[0])
            square.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
            spread = (square / square_bias).sqrt_().add_(EPSILON)
            parameter.mul_(_of_members(kept, parameter))
            parameter.sub_(_of_members(self._rates, parameter) / mean_bias * mean / spread)


def adamw(
    decaying: Sequence[torch.nn.Parameter], others: Sequence[torch.nn.Parameter], configs: Sequence[HeadsConfig]
) -> torch.optim.AdamW | MemberAdamW:
    """AdamW over parameters whose first axis is the member; only the `decaying` ones decay."""
    rates, decays = [config.lr for config in configs], [config.weight_decay for config in configs]
    if len(set(rates)) == len(set(decays)) == 1:
        groups = [{"params": decaying, "weight_decay": decays[0]}, {"params": others, "weight_decay": 0.0}]
        return torch.optim.AdamW(groups, lr=rates[0], betas=BETAS, eps=EPSILON, fused=True)
    return MemberAdamW(decaying, others, rates, decays)


def _of_members(
    numbers: Float[torch.Tensor, " member"], like: Float[torch.Tensor, "member ..."]
) -> Float[torch.Tensor, "member ..."]:
    return numbers.view(-1, *[1] * (like.ndim - 1))
