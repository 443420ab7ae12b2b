"""Output constraints: tighter intervals of hidden neurons where counterexamples can be.

To prove ``v . f(x) > 0`` on a set it suffices to bound it where ``v . f(x) <= 0``. With ``v . f(x)
>= a . x + b`` there, and ``z >= c . x + d`` of a neuron, ``z >= min over the set of (c + w a) . x +
d + w b`` at each such point, for each weight w >= 0. The functions c and d, which bound z on the
undivided set, are found once; a and b differ from domain to domain.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...perturbations import Region
from ..problem import IntermediateBounds, Problem
from ..relaxations.ascent import OptimizerSettings
from ..relaxations.sdp_crown import Relaxation

_MAX_NEURONS = 100  # neurons whose intervals are tightened
_STEPS = 20  # of the optimiser, on the neurons' bounds on the undivided set
_WEIGHT = 0.1  # w, times the interval's width per unit that the linear form lacks
_NEAR = 1e-4  # the least that a linear form lacks, as a share of how large its terms get
_ROUNDING = 100  # of a linear form's bound, in units of its last place: w multiplies it
#: Share of an interval's first width by which its bounds must pass each other, besides rounding.
_CROSSED = 1e-3


class OutputConstraints:
    """Hidden neurons, and their intervals where linear forms of the output are not positive.

    **These are no intervals on the undivided set.** A bound of a linear form that rests on them is
    a bound on the undivided set only as far as it is not positive; a positive one proves the linear
    form positive, and does not say by how much.

    Args:
        problem: The problem of one example.
        v: The linear forms, (R, K); the k neurons are those whose relaxations cost them most.

    Source: Kotha et al. 2023 (INVPROP), section 3; Zhou et al. 2025 (Clip-and-Verify), for bounds
        that are kept.
    """

    @torch.no_grad()
    def __init__(self, problem: Problem, v: Tensor) -> None:
        self._hidden, self._set = problem.hidden, _CentredSet(problem.regions[0])
        self._neurons = _costliest(problem, v)
        # Lower bounds of the neurons, and below them of their negatives: values at the centre, and
        # slopes.
        self._value, self._slopes, reach = self._linear_bounds(problem)
        lower, upper = self.first(1)
        rounding = _ROUNDING * torch.finfo(reach.dtype).eps * reach.view(2, -1).amax(0)
        self._crossed = _CROSSED * (upper - lower) + rounding

    def first(self, rows: int) -> tuple[Tensor, Tensor]:
        """Return the neurons' intervals on the undivided set, (lower, upper), each (rows, k)."""
        lower, upper = self.intervals_in(self._hidden)
        return lower.repeat(rows, 1), upper.repeat(rows, 1)

    def intervals_in(self, hidden: IntermediateBounds) -> tuple[Tensor, Tensor]:
        """Return the neurons' intervals, (lower, upper), each (P, k), in intermediate bounds."""
        rows = max([1, *[len(bound) for bound in hidden.lower]])
        return self._columns(hidden.lower, rows), self._columns(hidden.upper, rows)

    def _columns(self, bounds: list[Tensor], rows: int) -> Tensor:
        """Return the neurons' columns, (rows, k), of one tensor per layer."""
        columns = [
            bound[:, neurons].expand(rows, -1) for bound, neurons in zip(bounds, self._neurons)
        ]
        return torch.cat([self._set.center.new_zeros(rows, 0), *columns], dim=1)

    def hidden(self, lower: Tensor, upper: Tensor) -> IntermediateBounds:
        """Return the intermediate bounds with the neurons' intervals, (P, k), put in."""
        return self._hidden._replace(
            lower=self._with_columns(self._hidden.lower, lower),
            upper=self._with_columns(self._hidden.upper, upper),
        )

    def _with_columns(self, bounds: list[Tensor], new: Tensor) -> list[Tensor]:
        """Return one tensor per layer with the neurons' columns, (P, k), put in."""
        sizes = [len(neurons) for neurons in self._neurons]
        new_columns = new.split(sizes, dim=1) if sizes else ()
        return [
            bound.repeat(len(new), 1).index_copy(1, neurons, columns) if len(neurons) else bound
            for bound, neurons, columns in zip(bounds, self._neurons, new_columns)
        ]

    @torch.no_grad()
    def tightened(
        self, lower: Tensor, upper: Tensor, constant: Tensor, slopes: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return tighter intervals of the neurons.

        Args:
            lower: Lower bounds of the neurons, (P, k).
            upper: Upper bounds of the neurons, (P, k).
            constant: b of each domain's linear form, (P,).
            slopes: a of each domain's linear form, (P, *input); None: zero.

        Returns:
            (lower, upper, empty): intervals inside the given ones, and whether there is no
            counterexample in each domain, (P,).
        """
        if slopes is None:
            return lower, upper, torch.zeros_like(constant, dtype=torch.bool)
        bounds = torch.cat([lower, -upper], dim=1)
        reach = self._set.reach(constant, slopes)
        value, slopes = self._set.centred(constant, slopes)
        lacks = torch.maximum(self._set.falls(slopes.clone()) - value, _NEAR * reach)
        weight = _WEIGHT * (upper - lower).repeat(1, 2) / lacks.unsqueeze(1)
        value = value - _ROUNDING * torch.finfo(value.dtype).eps * reach
        for domain in range(len(lower)):  # one after the other they stay in the cache
            sums = torch.addcmul(self._slopes, weight[domain].unsqueeze(1), slopes[domain])
            bound = torch.addcmul(self._value, weight[domain], value[domain]) - self._set.falls(
                sums
            )
            bounds[domain] = torch.fmax(bounds[domain], bound)
        lower, negative = bounds.chunk(2, dim=1)
        upper = -negative
        empty = (lower - upper > self._crossed).any(1)
        # Where rounding has crossed the bounds, the interval is one point.
        return lower, torch.maximum(upper, lower), empty

    def _linear_bounds(self, problem: Problem) -> tuple[Tensor, Tensor, Tensor]:
        """Return the neurons' linear lower bounds, the best that the optimiser finds.

        Returns:
            Values at the centre (2k,), slopes (2k, n), and how large their terms get (2k,); of the
            neurons, and then of their negatives.
        """
        empty = self._set.center.new_zeros(2, 0)
        values, slopes, reaches = [empty], [empty.new_zeros(2, 0, len(self._set.center))], [empty]
        for layer, neurons in enumerate(self._neurons):
            if not len(neurons):
                continue
            size = problem.hidden.lower[layer].shape[1]
            v = torch.nn.functional.one_hot(neurons, size).to(self._set.center)
            inner = problem._replace(hidden=problem.hidden.before(layer))
            relaxation = Relaxation(inner, torch.cat([v, -v]))
            settings = OptimizerSettings(enough=math.inf)
            _, parameters = relaxation.improved(relaxation.first(), _STEPS, settings)
            linear = relaxation.linear(parameters)
            value, slope = self._set.centred(*linear)
            values.append(value.unflatten(0, (2, -1)))
            slopes.append(slope.unflatten(0, (2, -1)))
            reaches.append(self._set.reach(*linear).unflatten(0, (2, -1)))
        value, slope, reach = (torch.cat(rows, dim=1) for rows in (values, slopes, reaches))
        return value.flatten(0, 1), slope.flatten(0, 1), reach.flatten(0, 1)


def _costliest(problem: Problem, v: Tensor) -> list[Tensor]:
    """Return the neurons of each layer whose relaxations cost linear forms most.

    They are in the first layer only if there is no other layer.
    """
    if not problem.hidden.lower:
        return []
    relaxation = Relaxation(problem, v)
    losses = [loss.sum(0) for loss in relaxation.losses(relaxation.first())]
    if len(losses) > 1:
        losses[0] = torch.zeros_like(losses[0])
    all_losses = torch.cat(losses)
    chosen = all_losses.topk(min(_MAX_NEURONS, int((all_losses > 0).sum()))).indices
    mask = torch.zeros_like(all_losses, dtype=torch.bool).index_fill(0, chosen, True)
    return [layer.nonzero().squeeze(1) for layer in mask.split([len(loss) for loss in losses])]


class _CentredSet:
    """A box, or the unclipped ball around a set of one example, with linear functions on it.

    What holds on the ball holds on its part in the pixel range, and is cheaper to find.

    Args:
        region: The set, around one input.
    """

    def __init__(self, region: Region) -> None:
        x, ball = region.center, region.perturbation
        self._dual = ball.ball.dual
        lower, upper = ball.enclosing_box(x)
        if ball.is_box():
            self.center = ((lower + upper) / 2).flatten()
            self._size = ((upper - lower) / 2).flatten()
        else:
            self.center, self._size = x.flatten(), ball.radius(x)
        self._farthest = torch.maximum(lower.abs(), upper.abs()).flatten()

    def centred(self, constant: Tensor, slopes: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return functions' values at the centre, (R,), and slopes on a set of radius 1, (R, n)."""
        if slopes is None:
            return constant, constant.new_zeros(len(constant), len(self.center))
        slopes = slopes.flatten(1)
        return constant + slopes @ self.center, slopes * self._size

    def falls(self, slopes: Tensor) -> Tensor:
        """Return how far functions fall on a set of radius 1, (R,); ``slopes`` is overwritten."""
        if self._dual == 1:  # several times as fast as torch's norms
            return slopes.abs_().sum(1)
        if self._dual == 2:
            return slopes.square_().sum(1).sqrt_()
        return torch.linalg.vector_norm(slopes, self._dual, dim=1)

    def reach(self, constant: Tensor, slopes: Tensor | None) -> Tensor:
        """Return how large the terms of functions get, (R,)."""
        if slopes is None:
            return constant.abs()
        return constant.abs() + slopes.flatten(1).abs() @ self._farthest
