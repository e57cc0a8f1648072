"""AdamW (arXiv 1711.05101) over many small tensors, with a rate of their own for some of them.

The idea: torch's optimiser does the same, but its constructor loads the compiler of torch, which takes 1.7 seconds, as
long as torch itself: a tenth of what the whole fast path may take. The invariant: the numbers are those of
torch.optim.AdamW (tested).
What this does not do: schedules (see hyperparameters.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

BETA1, BETA2 = 0.9, 0.999
EPSILON = 1e-8


@dataclass
class AdamW:
    """The optimiser; `faster` has for each parameter the factor by which its learning rate is higher."""

    parameters: Sequence[Tensor]
    faster: Sequence[float]
    weight_decay: float
    steps: int = 0
    exp_avg: list[Tensor] = field(init=False)
    exp_avg_sq: list[Tensor] = field(init=False)

    def __post_init__(self) -> None:
        """Begin with moments of zero."""
        self.exp_avg = [torch.zeros_like(parameter) for parameter in self.parameters]
        self.exp_avg_sq = [torch.zeros_like(parameter) for parameter in self.parameters]

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """Move every parameter that has a gradient at this learning rate, and drop the gradients."""
        self.steps += 1
        first, second = 1 - BETA1**self.steps, (1 - BETA2**self.steps) ** 0.5
        for parameter, mean, square, faster in zip(
            self.parameters, self.exp_avg, self.exp_avg_sq, self.faster, strict=True
        ):
            if parameter.grad is None:
                continue
            own = rate * faster
            mean.lerp_(parameter.grad, 1 - BETA1)
            square.mul_(BETA2).addcmul_(parameter.grad, parameter.grad, value=1 - BETA2)
            parameter.mul_(1 - own * self.weight_decay)
            parameter.addcdiv_(mean, square.sqrt().div_(second).add_(EPSILON), value=-own / first)
            parameter.grad = None
