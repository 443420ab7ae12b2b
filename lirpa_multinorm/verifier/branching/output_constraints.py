"""Where counterexamples can be.

Tighter intervals of hidden neurons at points where a linear form is not positive.

To prove ``v . f(x) > 0`` on a set it is enough to bound it where ``v . f(x) <= 0``. With ``v . f(x)
>= a . x + b`` there, and ``z >= c . x + d`` of a neuron, ``z >= min over the set of (c + w a) . x +
d + w b`` at every such point, for every weight w >= 0. What bounds z on the whole set is found
once; a and b are each part's own.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...perturbations import Region
from ...perturbations.norms import NORMS
from ..problem import IntermediateBounds, Problem
from ..relaxations.sdp_crown import OptimizerSettings, Relaxation

_MAX_NEURONS = 100  # whose intervals are tightened
_STEPS = 20  # of the optimiser, on their bounds on the whole set
_WEIGHT = 0.1  # w, times the interval's width per unit that the linear form lacks
_NEAR = (
    1e-4  # what it lacks, as a share of how large its terms get, is taken to be this much at least
)
_ROUNDING = 100  # of a linear form's bound, in units of its last place: w multiplies it
# Share of an interval's first width by which its ends must pass each other, and what rounding
# may do.
_CROSSED = 1e-3


class OutputConstraints:
    """Hidden neurons, and their intervals where linear forms of the output are not positive.

    **No intervals of the whole set.** A bound of a linear form that is found with them is one on
    the whole set only as far as it is not positive; a positive one proves the linear form positive,
    and says nothing of how much.

    Args:
        problem: Of one example.
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
        """Return the neurons' intervals on the whole set, (lower, upper), each (rows, k)."""
        return tuple(one.repeat(rows, 1) for one in self.ends_in(self._hidden))

    def ends_in(self, hidden: IntermediateBounds) -> tuple[Tensor, Tensor]:
        """Return the neurons' intervals, (lower, upper), each (P, k), in hidden sets."""
        rows = max([1, *[len(one) for one in hidden.lower]])
        return tuple(
            torch.cat(
                [
                    self._set.center.new_zeros(rows, 0),
                    *[
                        one[:, neurons].expand(rows, -1)
                        for one, neurons in zip(ends, self._neurons)
                    ],
                ],
                dim=1,
            )
            for ends in hidden[:2]
        )

    def hidden(self, lower: Tensor, upper: Tensor) -> IntermediateBounds:
        """Return the hidden layers' sets with the neurons' intervals, (P, k), in their place."""
        sizes, found = [len(one) for one in self._neurons], []
        for ends, new in zip(self._hidden[:2], (lower, upper)):
            own = new.split(sizes, dim=1) if sizes else ()
            found.append(
                [
                    one.repeat(len(new), 1).index_copy(1, neurons, part) if len(neurons) else one
                    for one, neurons, part in zip(ends, self._neurons, own)
                ]
            )
        return self._hidden._replace(lower=found[0], upper=found[1])

    @torch.no_grad()
    def ends(
        self, lower: Tensor, upper: Tensor, constant: Tensor, slopes: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return tighter intervals.

        Args:
            lower: Lower ends of the neurons, (P, k).
            upper: Upper ends.
            constant: b of each part's linear form, (P,).
            slopes: a, (P, *input); None: zero.

        Returns:
            (lower, upper, empty): inside the given ones; in which parts no counterexample is left,
            (P,).
        """
        if slopes is None:
            return lower, upper, torch.zeros_like(constant, dtype=torch.bool)
        found = torch.cat([lower, -upper], dim=1)
        reach = self._set.reach(constant, slopes)
        value, slopes = self._set.centred(constant, slopes)
        lacks = torch.maximum(self._set.falls(slopes.clone()) - value, _NEAR * reach)
        weight = _WEIGHT * (upper - lower).repeat(1, 2) / lacks.unsqueeze(1)
        value = value - _ROUNDING * torch.finfo(value.dtype).eps * reach
        for part in range(len(lower)):  # one by one they stay in the cache
            sums = torch.addcmul(self._slopes, weight[part].unsqueeze(1), slopes[part])
            bound = torch.addcmul(self._value, weight[part], value[part]) - self._set.falls(sums)
            found[part] = torch.fmax(found[part], bound)
        lower, negative = found.chunk(2, dim=1)
        upper = -negative
        empty = (lower - upper > self._crossed).any(1)
        return (
            lower,
            torch.maximum(upper, lower),
            empty,
        )  # ends that rounding has crossed make one point

    def _linear_bounds(self, problem: Problem) -> tuple[Tensor, Tensor, Tensor]:
        """Return linear lower bounds, the best that the optimiser finds.

        Values (2k,), slopes (2k, n), how large (2k,).
        """
        nothing = self._set.center.new_zeros(2, 0)
        found = [(nothing, nothing.new_zeros(2, 0, len(self._set.center)), nothing)]
        for layer, neurons in enumerate(self._neurons):
            if not len(neurons):
                continue
            v = torch.nn.functional.one_hot(neurons, problem.hidden.lower[layer].shape[1]).to(
                self._set.center
            )
            inner = Relaxation(
                problem._replace(hidden=problem.hidden.before(layer)), torch.cat([v, -v])
            )
            _, parameters = inner.improved(
                inner.first(), _STEPS, OptimizerSettings(enough=math.inf)
            )
            linear = inner.linear(parameters)
            parts = *self._set.centred(*linear), self._set.reach(*linear)
            found.append(tuple(one.unflatten(0, (2, -1)) for one in parts))
        return tuple(torch.cat(parts, dim=1).flatten(0, 1) for parts in zip(*found))


def _costliest(problem: Problem, v: Tensor) -> list[Tensor]:
    """Return the neurons of each layer whose relaxations cost linear forms most.

    Behind the first layer, if there are.
    """
    if not problem.hidden.lower:
        return []
    relaxation = Relaxation(problem, v)
    losses = [one.sum(0) for one in relaxation.losses(relaxation.first())]
    if len(losses) > 1:
        losses[0] = torch.zeros_like(losses[0])
    every = torch.cat(losses)
    chosen = every.topk(min(_MAX_NEURONS, int((every > 0).sum()))).indices
    mask = torch.zeros_like(every, dtype=torch.bool).index_fill(0, chosen, True)
    return [one.nonzero().squeeze(1) for one in mask.split([len(one) for one in losses])]


class _CentredSet:
    """A box or a whole ball around a set of one example.

    How far linear functions fall below their value at its centre.

    What holds on a whole ball holds on its part in the pixel range, and is cheaper to find.
    """

    def __init__(self, region: Region) -> None:
        x, ball = region.center, region.perturbation
        self._dual = NORMS[ball.norm].dual
        lower, upper = ball.enclosing_box(x)
        if ball.is_box():
            self.center, self._size = (
                ((lower + upper) / 2).flatten(),
                ((upper - lower) / 2).flatten(),
            )
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
        """Return how far functions fall on a set of radius 1, (R,).

        Their slopes (R, n) are overwritten.
        """
        if self._dual == 1:  # several times as fast as torch's norms
            return slopes.abs_().sum(1)
        if self._dual == 2:
            return slopes.square_().sum(1).sqrt_()
        return torch.linalg.vector_norm(slopes, self._dual, dim=1)

    def reach(self, constant: Tensor, slopes: Tensor | None) -> Tensor:
        """Return how large the terms of functions get, (R,)."""
        return (
            constant.abs()
            if slopes is None
            else constant.abs() + slopes.flatten(1).abs() @ self._farthest
        )
