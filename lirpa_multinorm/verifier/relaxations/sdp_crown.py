"""SDP-CROWN and beyond: optimised bounds of ReLU networks.

The bounds are over an interval and an l_2 ball in every layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ...perturbations import PerturbationStack
from ..problem import Problem
from ..relu_network import Relax, propagated_backward
from .relu import box_heights, crown_slopes, relu_heights, relu_intercept

_PATIENCE = 3.0  # times the gain of a round, within which what comes after it is expected
_BETAS, _LATER_BETAS = (0.9, 0.999), (0.9, 0.99)  # Adam's, and where it goes on
_MANY_STEPS = 1e6  # after which Adam's means are no longer those of the first few steps
_FIRST_MULTIPLIERS = (1e-6, 1e-4, 1e-3, 1e-2, 0.03, 0.1, 0.3, 1.0)  # times |v| / r


@dataclass(frozen=True)
class OptimizerSettings:
    """How slopes and multipliers are optimised.

    Args:
        rounds: Steps of each round; after a round only linear forms whose bound is not above
            ``enough`` go on.
        slope_rate: Adam's step size for the slopes, at the start of a round.
        multiplier_rate: Adam's step size for the logarithms of the multipliers.
        shift_rate: Adam's step size for the multipliers of splits.
        last_rate: Share of these step sizes that is left at the end of a round.
        enough: Bound at which a linear form is done.
    """

    rounds: Sequence[int] = (20, 80)
    slope_rate: float = 0.1
    multiplier_rate: float = 0.2
    shift_rate: float = 0.1
    last_rate: float = 0.1
    enough: float = 0.0


def optimized_bounds(
    problem: Problem,
    v: Tensor,
    settings: OptimizerSettings = OptimizerSettings(),
    groups: Tensor | None = None,
) -> Tensor:
    """Return lower bounds of linear forms of a network's layer, one linear form per example.

    The backward pass of CROWN, in which each ReLU layer is relaxed by :func:`relu_intercept`; every
    slope and every multiplier gives a bound of its own right, and Adam looks for the best.

    Args:
        problem: Of R examples.
        v: Linear forms of the layer behind the last of the hidden ones, (R, n); of the output, if
            they are all.
        settings: See :class:`OptimizerSettings`.
        groups: Numbers of groups, (R,), of which only a whole one that gets above ``enough`` is of
            use: the lowest of each is optimised first, given up where a round's gain says that it
            stays far below, and where it does not get there the others are left as they are.

    Returns:
        The best lower bound met for each linear form, (R,).

    Source: Chiu et al. 2025 (SDP-CROWN), Xu et al. 2021 (alpha-CROWN).
    """
    relaxation = Relaxation(problem, v)
    parameters = relaxation.first()
    best = relaxation.value(parameters)

    def search(rows: Tensor) -> None:
        """Optimise some rows, round by round, into ``best``."""
        own = parameters.rows(rows)
        for steps in settings.rounds:
            left = (best[rows] <= settings.enough).nonzero().squeeze(1)
            if not len(left):
                return
            rows, own = rows[left], own.rows(left)
            part = Relaxation(problem.rows(rows), v[rows])
            found, own = part.improved(own._replace(means=(), squares=()), steps, settings)
            gain = (found - best[rows]).clamp(min=0)
            best[rows] = torch.maximum(best[rows], found)
            if groups is not None:  # what is far from enough does not get there
                near = (best[rows] + _PATIENCE * gain > settings.enough).nonzero().squeeze(1)
                rows, own = rows[near], own.rows(near)

    rows = torch.arange(len(v), device=v.device)
    if groups is not None:
        worst = best.new_full((int(groups.max()) + 1,), torch.inf).scatter_reduce(
            0, groups, best, "amin"
        )
        leads = best <= worst[groups]
        search(rows[leads])
        lost = (
            torch.zeros_like(worst).index_add(
                0, groups[leads], (best[leads] <= settings.enough).to(worst)
            )
            > 0
        )
        rows = rows[~leads & ~lost[groups]]
    search(rows)
    return best


class Parameters(NamedTuple):
    """What makes a bound of the dual problem, all of R rows.

    Args:
        slopes: Slopes s of each ReLU layer, (R, n) each.
        multipliers: Logarithms of the balls' multipliers, (R,) each.
        shifts: Multipliers of the splits, in units of the mean ``|v|``: what a split neuron adds to
            its ``g = s v``, (R, n) each.
        means: Adam's running means of the gradients of all these, in this order; none before the
            first step.
        squares: Of the gradients' squares.
    """

    slopes: list[Tensor]
    multipliers: list[Tensor]
    shifts: list[Tensor]
    means: Sequence[Tensor] = ()
    squares: Sequence[Tensor] = ()

    def rows(self, index: Tensor) -> Parameters:
        """Return the parameters of some rows."""
        return Parameters(*[[one.index_select(0, index) for one in field] for field in self])


class Relaxation:
    """The dual problem of a batch of linear forms.

    Products with masks stand where a choice between two values is meant: they are many times as
        fast.

    Args:
        problem: Of R examples, or of one on which all linear forms are to be bounded.
        v: Linear forms of the layer behind the last of the hidden ones, (R, n); of the output, if
            they are all.
        splits: Per layer which neurons are known to be positive (1) or negative (-1), (R, n) each;
            None: none is.
    """

    def __init__(self, problem: Problem, v: Tensor, splits: list[Tensor] | None = None) -> None:
        network, regions, hidden = problem
        depth = len(hidden.lower)
        self._shapes, self._v = network.shapes[: depth + 1], v
        self._hidden = hidden if splits is None else hidden.split(splits)
        self._stack = PerturbationStack(regions)
        self._boxes = (
            self._stack.is_box()
        )  # the balls around intervals say nothing that the intervals do not
        self._centers = self._stack.centers()
        self._maps = network.maps(len(v), v, depth)
        ends = list(zip(self._hidden.lower, self._hidden.upper))
        self._free = [((low < 0) & (high > 0)).to(v) for low, high in ends]
        self._active = [(low >= 0).to(v) for low, _ in ends]
        self._split = None if splits is None else [(one != 0).to(v) for one in splits]

    @torch.no_grad()
    def first(self) -> Parameters:
        """Return CROWN's slopes and the best of a few multipliers."""
        rest, rows = self._zeros(), len(self._v)
        found = Parameters(list(rest), [one.new_zeros(rows) for one in self._hidden.radius], rest)

        def choose(layer: int, v: Tensor) -> tuple[Tensor, Tensor]:
            """Fill in a layer's slopes and multipliers, and relax it with them."""
            lower, upper, center, radius = (field[layer] for field in self._hidden)
            slopes = found.slopes[layer] = crown_slopes(v, lower, upper)
            if self._boxes:
                return v * slopes, box_heights(v, v * slopes, lower, upper).sum(1)
            scale = torch.linalg.vector_norm(v, dim=1).clamp(min=1e-12) / radius.clamp(min=1e-12)
            heights = torch.stack(
                [
                    relu_intercept(v, v * slopes, center, radius, lower, upper, scale * share)
                    for share in _FIRST_MULTIPLIERS
                ]
            )
            height, place = heights.max(0)
            found.multipliers[layer] = (scale * scale.new_tensor(_FIRST_MULTIPLIERS)[place]).log()
            return v * slopes, height

        self._lower(choose)
        return found

    @torch.no_grad()
    def value(self, parameters: Parameters) -> Tensor:
        """Return the bounds that parameters give, (R,)."""
        return self._lower(lambda layer, v: self._relaxed(layer, v, parameters))

    @torch.no_grad()
    def losses(self, parameters: Parameters) -> list[Tensor]:
        """Return what the relaxation of each unstable neuron costs, (R, n) per layer.

        Zero for the others.
        """
        found = self._zeros()

        def measure(layer: int, v: Tensor) -> tuple[Tensor, Tensor]:
            """Relax a layer, and write down what that costs."""
            lower, upper, center, _ = (field[layer] for field in self._hidden)
            g, height = self._relaxed(layer, v, parameters)
            heights = (
                box_heights(v, g, lower, upper)
                if self._boxes
                else relu_heights(v, g, center, lower, upper, parameters.multipliers[layer].exp())
            )
            found[layer] = ((-heights).clamp(min=0) + 1e-12) * self._free[layer]
            return g, height

        self._lower(measure)
        return found

    def improved(
        self, parameters: Parameters, steps: int, settings: OptimizerSettings
    ) -> tuple[Tensor, Parameters]:
        """Return the best bounds met on the way, and the parameters at its end.

        Adam goes on with the running means of the parameters, if they have any: it starts with a
            full step otherwise.
        """
        before = parameters
        parameters = Parameters(
            *[[one.detach().clone().requires_grad_() for one in field] for field in before[:3]]
        )
        shifts = parameters.shifts if self._split is not None else []
        every = [*parameters.slopes, *parameters.multipliers, *shifts]
        if not every:  # a network without ReLUs is bounded exactly
            return self.value(parameters), parameters
        groups = [
            {"params": parameters.slopes, "lr": settings.slope_rate},
            {"params": parameters.multipliers, "lr": settings.multiplier_rate},
            *([{"params": shifts, "lr": settings.shift_rate}] if shifts else []),
        ]
        optimizer = torch.optim.Adam(groups, betas=_LATER_BETAS if before.means else _BETAS)
        for one, mean, square in zip(every, before.means, before.squares):
            optimizer.state[one] = {
                "step": torch.tensor(_MANY_STEPS),
                "exp_avg": mean.clone(),
                "exp_avg_sq": square.clone(),
            }
        schedule = torch.optim.lr_scheduler.ExponentialLR(
            optimizer, settings.last_rate ** (1 / max(1, steps))
        )
        best = self._v.new_full((len(self._v),), -torch.inf)
        for _ in range(steps):
            with torch.enable_grad():
                found = self._lower(lambda layer, v: self._relaxed(layer, v, parameters))
                # Not backward(): the network's weights shall keep the gradients they have. The maps
                # are used again.
                gradients = torch.autograd.grad(
                    -found.sum(), every, retain_graph=True, allow_unused=True
                )
            for one, gradient in zip(every, gradients):
                one.grad = gradient
            best = torch.maximum(best, found.detach())
            optimizer.step()
            schedule.step()
            with torch.no_grad():
                for one in parameters.slopes:
                    one.clamp_(0, 1)
            if bool((best > settings.enough).all()):
                break
        means, squares = (
            [optimizer.state[one].get(name, torch.zeros_like(one)) for one in every]
            for name in ("exp_avg", "exp_avg_sq")
        )
        return best, Parameters(
            *[[one.detach() for one in field] for field in (*parameters[:3], means, squares)]
        )

    def _relaxed(self, layer: int, v: Tensor, parameters: Parameters) -> tuple[Tensor, Tensor]:
        lower, upper, center, radius = (field[layer] for field in self._hidden)
        g = v * torch.addcmul(self._active[layer], self._free[layer], parameters.slopes[layer])
        if self._split is not None:
            scale = v.detach().abs().mean(1, keepdim=True)
            g = torch.addcmul(g, scale * self._split[layer], parameters.shifts[layer])
        if self._boxes:
            return g, box_heights(v, g, lower, upper).sum(1)
        return g, relu_intercept(
            v, g, center, radius, lower, upper, parameters.multipliers[layer].exp()
        )

    @torch.no_grad()
    def linear(self, parameters: Parameters) -> tuple[Tensor, Tensor | None]:
        """Return the functions of the input that parameters bound the linear forms by.

        Constants, and slopes or None.
        """
        return self._pulled(lambda layer, v: self._relaxed(layer, v, parameters))

    def _pulled(self, relax: Relax) -> tuple[Tensor, Tensor | None]:
        return propagated_backward(self._maps, self._shapes, self._v, relax)

    def _lower(self, relax: Relax) -> Tensor:
        value, at_input = self._pulled(relax)
        if at_input is None:
            return value
        of_one = at_input.unsqueeze(
            0 if len(self._centers) == 1 else 1
        )  # one example has R linear forms, or R one each
        return value + self._stack.concretize(self._centers, of_one, sign=-1).flatten()

    def _zeros(self) -> list[Tensor]:
        return [one.new_zeros(len(self._v), one.shape[1]) for one in self._hidden.lower]
