"""Gradient ascent on the parameters of a relaxation's dual problem."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

_BETAS, _LATER_BETAS = (0.9, 0.999), (0.9, 0.99)  # Adam's at the start, and where it goes on
_MANY_STEPS = 1e6  # after which Adam's means are no longer those of the first few steps


@dataclass(frozen=True)
class OptimizerSettings:
    """How slopes and multipliers are optimised.

    Args:
        rounds: Steps of each round; after a round only linear forms whose bound is not above
            ``enough`` go on.
        slope_rate: Adam's step size for the slopes, at the start of a round.
        multiplier_rate: Adam's step size for the logarithms of the multipliers.
        shift_rate: Adam's step size for the multipliers of splits.
        last_rate: The factor that the step sizes have fallen by at the end of a round.
        enough: The bound above which a linear form is optimised no further.
    """

    rounds: Sequence[int] = (20, 80)
    slope_rate: float = 0.1
    multiplier_rate: float = 0.2
    shift_rate: float = 0.1
    last_rate: float = 0.1
    enough: float = 0.0


class Parameters(NamedTuple):
    """The parameters of a bound of the dual problem, R rows of each.

    Args:
        slopes: Slopes s of each ReLU layer, (R, n) each.
        multipliers: Logarithms of the balls' multipliers, (R,) each.
        shifts: Multipliers of the splits, in units of the mean ``|v|``: what a split neuron adds to
            its ``g = s v``, (R, n) each.
        means: Adam's running means of the gradients of all these, in this order; none before the
            first step.
        squares: Adam's running means of the gradients' squares.
    """

    slopes: list[Tensor]
    multipliers: list[Tensor]
    shifts: list[Tensor]
    means: Sequence[Tensor] = ()
    squares: Sequence[Tensor] = ()

    def rows(self, index: Tensor) -> Parameters:
        """Return the parameters of some rows."""
        return Parameters._make(
            [[tensor.index_select(0, index) for tensor in field] for field in self]
        )


class Ascent:
    """Adam's steps from some parameters, whose running means it goes on with if they have any.

    Args:
        start: The parameters to start from.
        with_shifts: Whether the multipliers of splits are optimised as well.
    """

    def __init__(self, start: Parameters, with_shifts: bool) -> None:
        self._means, self._squares = start.means, start.squares
        #: The parameters, with gradients.
        self.parameters = Parameters(
            *[[tensor.detach().clone().requires_grad_() for tensor in field] for field in start[:3]]
        )
        self._shifts = self.parameters.shifts if with_shifts else []
        #: The tensors that are optimised.
        self.tensors = [*self.parameters.slopes, *self.parameters.multipliers, *self._shifts]

    def prepare(self, steps: int, settings: OptimizerSettings) -> None:
        """Make the optimiser for a number of steps; there must be tensors to optimise."""
        groups: list[dict[str, Any]] = [
            {"params": self.parameters.slopes, "lr": settings.slope_rate},
            {"params": self.parameters.multipliers, "lr": settings.multiplier_rate},
        ]
        if self._shifts:
            groups.append({"params": self._shifts, "lr": settings.shift_rate})
        betas = _LATER_BETAS if self._means else _BETAS
        self._optimizer = torch.optim.Adam(groups, betas=betas)
        for tensor, mean, square in zip(self.tensors, self._means, self._squares):
            self._optimizer.state[tensor] = {
                "step": torch.tensor(_MANY_STEPS, device="cpu"),
                "exp_avg": mean.clone(),
                "exp_avg_sq": square.clone(),
            }
        self._schedule = torch.optim.lr_scheduler.ExponentialLR(
            self._optimizer, settings.last_rate ** (1 / max(1, steps))
        )

    def step(self, gradients: Sequence[Tensor | None]) -> None:
        """Take a step against some gradients of the tensors."""
        for tensor, gradient in zip(self.tensors, gradients):
            tensor.grad = gradient
        self._optimizer.step()
        self._schedule.step()
        with torch.no_grad():
            for slopes in self.parameters.slopes:
                slopes.clamp_(0, 1)

    def result(self) -> Parameters:
        """Return the parameters as they are now, with Adam's running means."""
        state = self._optimizer.state
        means, squares = (
            [state[tensor].get(name, torch.zeros_like(tensor)) for tensor in self.tensors]
            for name in ("exp_avg", "exp_avg_sq")
        )
        fields = (*self.parameters[:3], means, squares)
        return Parameters(*[[tensor.detach() for tensor in field] for field in fields])
