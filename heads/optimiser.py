"""AdamW for members side by side, each with its own learning rate and weight decay.

torch's takes one rate for all that a tensor holds, hence for all members. It is taken where they agree, as it is fused;
the other one does the same steps, operation by operation. Its function is taken, not its class: making an object of
`torch.optim.AdamW` imports torch's compiler, which takes longer than many a training.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch.optim.adamw import adamw as fused_adamw

from heads.config import HeadsConfig

BETAS = (0.9, 0.999)
EPSILON = 1e-8


class _AdamW(ABC):
    """Decoupled weight decay (Loshchilov and Hutter, 2019)."""

    def __init__(self, decaying: Sequence[torch.nn.Parameter], others: Sequence[torch.nn.Parameter]) -> None:
        self._parameters: list[torch.Tensor] = [*decaying, *others]
        self._means = [torch.zeros_like(parameter) for parameter in self._parameters]
        self._squares = [torch.zeros_like(parameter) for parameter in self._parameters]

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for parameter in self._parameters:
            parameter.grad = None

    def step(self) -> None:
        """Move every member by its own rate."""
        gradients = [parameter.grad for parameter in self._parameters if parameter.grad is not None]
        if len(gradients) < len(self._parameters):
            raise ValueError("every parameter must have a gradient before a step")
        with torch.no_grad():
            self._move(gradients)

    @abstractmethod
    def _move(self, gradients: list[torch.Tensor]) -> None: ...


class SharedAdamW(_AdamW):
    """All members have the same rate and decay: torch's own steps, in one kernel."""

    def __init__(
        self,
        decaying: Sequence[torch.nn.Parameter],
        others: Sequence[torch.nn.Parameter],
        rate: float,
        decay: float,
    ) -> None:
        super().__init__(decaying, others)
        self._rate = rate
        self._groups = (slice(len(decaying)), decay), (slice(len(decaying), None), 0.0)
        device = self._parameters[0].device
        self._steps = [torch.zeros((), dtype=torch.float32, device=device) for _ in self._parameters]

    def _move(self, gradients: list[torch.Tensor]) -> None:
        for group, decay in self._groups:
            if self._parameters[group]:
                fused_adamw(
                    self._parameters[group],
                    gradients[group],
                    self._means[group],
                    self._squares[group],
                    [],
                    self._steps[group],
                    fused=True,
                    amsgrad=False,
                    beta1=BETAS[0],
                    beta2=BETAS[1],
                    lr=self._rate,
                    weight_decay=decay,
                    eps=EPSILON,
                    maximize=False,
                )


class MemberAdamW(_AdamW):
    """A rate and a decay per member."""

    def __init__(
        self,
        decaying: Sequence[torch.nn.Parameter],
        others: Sequence[torch.nn.Parameter],
        rates: Sequence[float],
        decays: Sequence[float],
    ) -> None:
        super().__init__(decaying, others)
        device = self._parameters[0].device
        self._rates = torch.tensor(rates, dtype=torch.float32, device=device)
        # In float64 first: 1 - rate * decay has few digits left to lose.
        kept = torch.from_numpy((1 - np.array(rates) * np.array(decays)).astype(np.float32)).to(device)
        self._kept = [kept] * len(decaying) + [torch.ones_like(kept)] * len(others)
        self._steps = 0

    def _move(self, gradients: list[torch.Tensor]) -> None:
        self._steps += 1
        mean_bias, square_bias = (1 - beta**self._steps for beta in BETAS)
        for parameter, gradient, mean, square, kept in zip(
            self._parameters, gradients, self._means, self._squares, self._kept, strict=True
        ):
            mean.lerp_(gradient, 1 - BETAS[0])
            square.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
            spread = (square / square_bias).sqrt_().add_(EPSILON)
            parameter.mul_(_of_members(kept, parameter))
            parameter.sub_(_of_members(self._rates, parameter) / mean_bias * mean / spread)


def adamw(
    decaying: Sequence[torch.nn.Parameter], others: Sequence[torch.nn.Parameter], configs: Sequence[HeadsConfig]
) -> SharedAdamW | MemberAdamW:
    """AdamW over parameters whose first axis is the member; only the `decaying` ones decay."""
    rates, decays = [config.lr for config in configs], [config.weight_decay for config in configs]
    if len(set(rates)) == len(set(decays)) == 1:
        return SharedAdamW(decaying, others, rates[0], decays[0])
    return MemberAdamW(decaying, others, rates, decays)


def _of_members(
    numbers: Float[torch.Tensor, " member"], like: Float[torch.Tensor, "member ..."]
) -> Float[torch.Tensor, "member ..."]:
    return numbers.view(-1, *[1] * (like.ndim - 1))
