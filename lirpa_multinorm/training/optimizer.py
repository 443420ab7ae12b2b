"""Adam's settings, and the learning rates of its groups of weights."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

from ..errors import InvalidArgumentError
from ..models import DistanceLogits
from .numbers import checked_number


@dataclass(frozen=True)
class AdamSettings:
    """Settings of the optimiser; the defaults are torch's.

    Args:
        beta_1: Decay of the gradients' running mean.
        beta_2: Decay of the running mean of their squares.
        eps: Added to the root of that mean.
        cosine: Whether the learning rate falls to 0 along half a cosine, step by step, instead of
            at milestones.
        scale_rate: Learning rate of the scalar that a distance network's loss multiplies its logits
            by; None: that of all weights.

    Source: the last two as in the code of Zhang et al. 2022, "Boosting the Certified Robustness of
        L-infinity Distance Nets".
    """

    beta_1: float = 0.9
    beta_2: float = 0.999
    eps: float = 1e-8
    cosine: bool = False
    scale_rate: float | None = None

    def __post_init__(self) -> None:
        for name in ("beta_1", "beta_2"):
            value = checked_number(f"adam.{name}", getattr(self, name), 0, 1)
            if value == 1:
                raise InvalidArgumentError(f"adam.{name}=1 must be less than 1")
            object.__setattr__(self, name, value)
        object.__setattr__(self, "eps", checked_number("adam.eps", self.eps, above=True))
        if not isinstance(self.cosine, bool):
            raise InvalidArgumentError(f"adam.cosine={self.cosine!r} must be True or False")
        if self.scale_rate is not None:
            rate = checked_number("adam.scale_rate", self.scale_rate, above=True)
            object.__setattr__(self, "scale_rate", rate)

    def optimizer(self, model: nn.Module, learning_rate: float) -> torch.optim.Adam:
        """Return an optimiser of a network's weights, with a group of its own for scalars."""
        weights = list(model.parameters())
        groups: list = weights
        scales = {id(layer.scale) for layer in model.modules() if isinstance(layer, DistanceLogits)}
        if self.scale_rate is not None and scales:
            groups = [
                {"params": [weight for weight in weights if id(weight) not in scales]},
                {
                    "params": [weight for weight in weights if id(weight) in scales],
                    "share": self.scale_rate / learning_rate,
                },
            ]
        betas = (self.beta_1, self.beta_2)
        return torch.optim.Adam(groups, lr=learning_rate, betas=betas, eps=self.eps)


def cosine_factor(time: float, length: float) -> float:
    """Return the factor on a learning rate that falls to 0 along half a cosine.

    Example:
        >>> [round(cosine_factor(time, 2), 2) for time in (0, 1, 2)]
        [1.0, 0.5, 0.0]
    """
    return (1 + math.cos(math.pi * min(time / length, 1.0))) / 2


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of all weights; a group's ``share`` multiplies it."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("share", 1.0)
