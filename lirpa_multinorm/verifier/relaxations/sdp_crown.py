"""SDP-CROWN and beyond: optimised bounds over an interval and an l_2 ball in every layer."""

from __future__ import annotations

import torch
from torch import Tensor

from ...perturbations import PerturbationStack
from ..problem import Problem
from ..relu_network import Relax, propagated_backward
from .ascent import Ascent, OptimizerSettings, Parameters
from .relu import box_heights, crown_slopes, relu_heights, relu_intercept

_PATIENCE = 3.0  # times the gain of a round: more is not expected of the rounds after it
_FIRST_MULTIPLIERS = (1e-6, 1e-4, 1e-3, 1e-2, 0.03, 0.1, 0.3, 1.0)  # times |v| / r


def optimized_bounds(
    problem: Problem,
    v: Tensor,
    settings: OptimizerSettings = OptimizerSettings(),
    groups: Tensor | None = None,
) -> Tensor:
    """Return lower bounds of linear forms of a network's layer, one linear form per example.

    This is CROWN's backward pass with each ReLU layer relaxed by :func:`relu_intercept`; every
    slope and every multiplier gives a bound of its own, and Adam looks for the best.

    Args:
        problem: The problem of R examples.
        v: Linear forms of the first layer that the problem has no intermediate bounds of, (R, n).
        settings: See :class:`OptimizerSettings`.
        groups: The group of each linear form, (R,); a group is of use only if all its bounds get
            above ``enough``. The lowest bound of each group is optimised first, and given up where
            a round's gain says that it stays far below; where it does not get there, the other
            bounds of the group stay as they are.

    Returns:
        The best lower bound met for each linear form, (R,).

    Source: Chiu et al. 2025 (SDP-CROWN), Xu et al. 2021 (alpha-CROWN).
    """
    relaxation = Relaxation(problem, v)
    parameters = relaxation.first()
    best = relaxation.value(parameters)
    rows = torch.arange(len(v), device=v.device)
    if groups is None:
        _optimize(problem, v, settings, parameters, best, rows, give_up=False)
        return best
    worst = best.new_full((int(groups.max()) + 1,), torch.inf).scatter_reduce(
        0, groups, best, "amin"
    )
    leads = best <= worst[groups]
    _optimize(problem, v, settings, parameters, best, rows[leads], give_up=True)
    failed = (best[leads] <= settings.enough).to(worst)
    lost = torch.zeros_like(worst).index_add(0, groups[leads], failed) > 0
    rest = rows[~leads & ~lost[groups]]
    _optimize(problem, v, settings, parameters, best, rest, give_up=True)
    return best


def _optimize(
    problem: Problem,
    v: Tensor,
    settings: OptimizerSettings,
    parameters: Parameters,
    best: Tensor,
    rows: Tensor,
    give_up: bool,
) -> None:
    """Optimise some rows, round by round, into ``best``.

    Args:
        problem: The problem of R examples.
        v: Linear forms, (R, n).
        settings: See :class:`OptimizerSettings`.
        parameters: The parameters to start from, R rows.
        best: The best bounds so far, (R,), which are raised.
        rows: The rows to optimise.
        give_up: Whether rows are given up that stay far below ``enough``.
    """
    parameters = parameters.rows(rows)
    for steps in settings.rounds:
        unproved = (best[rows] <= settings.enough).nonzero().squeeze(1)
        if not len(unproved):
            return
        rows, parameters = rows[unproved], parameters.rows(unproved)
        relaxation = Relaxation(problem.rows(rows), v[rows])
        start = parameters._replace(means=(), squares=())
        bounds, parameters = relaxation.improved(start, steps, settings)
        gain = (bounds - best[rows]).clamp(min=0)
        best[rows] = torch.maximum(best[rows], bounds)
        if give_up:
            near = (best[rows] + _PATIENCE * gain > settings.enough).nonzero().squeeze(1)
            rows, parameters = rows[near], parameters.rows(near)


class Relaxation:
    """The dual problem of a batch of linear forms.

    A choice between two values is written as a product with a mask, which is many times as fast.

    Args:
        problem: The problem of R examples, or of one on which all linear forms are bounded.
        v: Linear forms of the first layer that the problem has no intermediate bounds of, (R, n).
        splits: Per layer the neurons that are positive (1) or negative (-1) by splits, (R, n) each;
            None: no neuron is split.
    """

    def __init__(self, problem: Problem, v: Tensor, splits: list[Tensor] | None = None) -> None:
        network, regions, hidden = problem
        depth = len(hidden.lower)
        self._shapes, self._v = network.shapes[: depth + 1], v
        self._hidden = hidden if splits is None else hidden.split(splits)
        self._stack = PerturbationStack(regions)
        # The balls around intervals say nothing that the intervals do not.
        self._boxes = self._stack.is_box()
        self._centers = self._stack.centers()
        self._maps = network.maps(len(v), v, depth)
        intervals = list(zip(self._hidden.lower, self._hidden.upper))
        self._free = [((lower < 0) & (upper > 0)).to(v) for lower, upper in intervals]
        self._active = [(lower >= 0).to(v) for lower, _ in intervals]
        self._split = None if splits is None else [(signs != 0).to(v) for signs in splits]

    @torch.no_grad()
    def first(self) -> Parameters:
        """Return CROWN's slopes and the best of a few multipliers."""
        rest, rows = self._zeros(), len(self._v)
        multipliers = [radius.new_zeros(rows) for radius in self._hidden.radius]
        parameters = Parameters(list(rest), multipliers, rest)

        def choose(layer: int, v: Tensor) -> tuple[Tensor, Tensor]:
            """Fill in a layer's slopes and multipliers, and relax it with them."""
            lower, upper, center, radius = (field[layer] for field in self._hidden)
            slopes = parameters.slopes[layer] = crown_slopes(v, lower, upper)
            if self._boxes:
                return v * slopes, box_heights(v, v * slopes, lower, upper).sum(1)
            scale = torch.linalg.vector_norm(v, dim=1).clamp(min=1e-12) / radius.clamp(min=1e-12)
            heights = [
                relu_intercept(v, v * slopes, center, radius, lower, upper, scale * share)
                for share in _FIRST_MULTIPLIERS
            ]
            height, choice = torch.stack(heights).max(0)
            share = scale.new_tensor(_FIRST_MULTIPLIERS)[choice]
            parameters.multipliers[layer] = (scale * share).log()
            return v * slopes, height

        self._lower(choose)
        return parameters

    @torch.no_grad()
    def value(self, parameters: Parameters) -> Tensor:
        """Return the bounds that parameters give, (R,)."""
        return self._lower(lambda layer, v: self._relaxed(layer, v, parameters))

    @torch.no_grad()
    def losses(self, parameters: Parameters) -> list[Tensor]:
        """Return the loss by each neuron's relaxation, (R, n) per layer; zero if it is stable."""
        losses = self._zeros()

        def measure(layer: int, v: Tensor) -> tuple[Tensor, Tensor]:
            """Relax a layer, and write down the loss by that."""
            lower, upper, center, _ = (field[layer] for field in self._hidden)
            g, height = self._relaxed(layer, v, parameters)
            heights = (
                box_heights(v, g, lower, upper)
                if self._boxes
                else relu_heights(v, g, center, lower, upper, parameters.multipliers[layer].exp())
            )
            losses[layer] = ((-heights).clamp(min=0) + 1e-12) * self._free[layer]
            return g, height

        self._lower(measure)
        return losses

    def improved(
        self, parameters: Parameters, steps: int, settings: OptimizerSettings
    ) -> tuple[Tensor, Parameters]:
        """Return the best bounds met in some steps, and the parameters after the last one.

        Adam goes on with the running means of the parameters, if they have any; its first step is a
        full one otherwise.
        """
        ascent = Ascent(parameters, with_shifts=self._split is not None)
        if not ascent.tensors:  # a network without ReLUs is bounded exactly
            return self.value(ascent.parameters), ascent.parameters
        ascent.prepare(steps, settings)
        best = self._v.new_full((len(self._v),), -torch.inf)
        for _ in range(steps):
            with torch.enable_grad():
                bounds = self._lower(lambda layer, v: self._relaxed(layer, v, ascent.parameters))
                if not bounds.requires_grad:  # no ReLU between these neurons and the input
                    return bounds, ascent.result()
                # Not backward(): the network's weights shall keep the gradients they have. The maps
                # are used again.
                gradients = torch.autograd.grad(
                    -bounds.sum(), ascent.tensors, retain_graph=True, allow_unused=True
                )
            best = torch.maximum(best, bounds.detach())
            ascent.step(gradients)
            if bool((best > settings.enough).all()):
                break
        return best, ascent.result()

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
        """Return the functions of the input that bound the linear forms: constants, and slopes.

        The slopes are None where the bounds do not depend on the input.
        """
        return self._pulled(lambda layer, v: self._relaxed(layer, v, parameters))

    def _pulled(self, relax: Relax) -> tuple[Tensor, Tensor | None]:
        return propagated_backward(self._maps, self._shapes, self._v, relax)

    def _lower(self, relax: Relax) -> Tensor:
        value, at_input = self._pulled(relax)
        if at_input is None:
            return value
        # One example has R linear forms, or R examples have one each.
        forms = at_input.unsqueeze(0 if len(self._centers) == 1 else 1)
        return value + self._stack.concretize(self._centers, forms, sign=-1).flatten()

    def _zeros(self) -> list[Tensor]:
        return [lower.new_zeros(len(self._v), lower.shape[1]) for lower in self._hidden.lower]
