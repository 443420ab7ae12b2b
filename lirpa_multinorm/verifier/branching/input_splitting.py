"""Branch and bound over the input, for sets of few dimensions.

Cells of the box around the set, halved.
"""

from __future__ import annotations

import math
import time
from typing import Callable

import torch
from torch import Tensor

from ...perturbations import PerturbationLinf, Region

MAX_INPUTS = 4  # a set of more dimensions has too many cells
_MAX_CELLS = 1 << 13  # that are open
_AT_ONCE = 1 << 9  # cells that are bounded between two looks at the clock

#: Bounds linear forms (N, S, K) on a region of N cells from below, (N, S).
_Bounds = Callable[[Region, Tensor], Tensor]


@torch.no_grad()
def split_inputs(region: Region, v: Tensor, bounds: _Bounds, deadline: float) -> Tensor:
    """Bound linear forms from below on one input's set, halving its box until all are positive.

    Args:
        region: The set, around one input.
        v: Linear forms, (S, K).
        bounds: Of cells.
        deadline: Value of ``time.perf_counter()`` at which to stop.

    Returns:
        Lower bounds, (S,): the lowest of all cells; what is returned is sound at any time.
    """
    x = region.center
    lower, upper = (end.flatten(1) for end in region.perturbation.enclosing_box(x))
    # What cells that are done are bounded by, and the best bound of all that are not: these only
    # get fewer.
    closed, left = v.new_full((len(v),), torch.inf), v.new_full((len(v),), -torch.inf)
    while time.perf_counter() < deadline and len(lower) <= _MAX_CELLS:
        values = []
        for low, high in zip(lower.split(_AT_ONCE), upper.split(_AT_ONCE)):
            if time.perf_counter() > deadline:
                return torch.minimum(
                    closed, left
                )  # what held before this round holds for its cells
            low, high = low.view(-1, *x.shape[1:]), high.view(-1, *x.shape[1:])
            cells = Region(
                (low + high) / 2, PerturbationLinf(float((high - low).max()), (low, high))
            )
            values.append(bounds(cells, v.expand(len(low), -1, -1)).nan_to_num(nan=-torch.inf))
        value = torch.cat(values)
        is_open = ~(value > 0).all(1)
        closed = (
            torch.minimum(closed, value[~is_open].amin(0)) if bool((~is_open).any()) else closed
        )
        if not bool(is_open.any()):
            return closed
        left = torch.maximum(left, value[is_open].amin(0))
        lower, upper = _halved(lower[is_open], upper[is_open])
        met = _meets(region, lower, upper)
        lower, upper = _shrunk(region, lower[met], upper[met])
        if not len(lower):
            return closed
    return torch.minimum(closed, left)


def _halved(lower: Tensor, upper: Tensor) -> tuple:
    """Return both halves of cells, cut across their longest sides."""
    side = (upper - lower).argmax(1, keepdim=True)
    middle = (lower + (upper - lower) / 2).gather(1, side)
    return torch.cat([lower, lower.scatter(1, side, middle)]), torch.cat(
        [upper.scatter(1, side, middle), upper]
    )


def _meets(region: Region, lower: Tensor, upper: Tensor) -> Tensor:
    """Return which cells reach into the ball.

    Whether their points nearest to its centre lie there.
    """
    center = region.center.flatten(1)
    nearest = torch.minimum(torch.maximum(center, lower), upper).view(-1, *region.center.shape[1:])
    tolerance = 1e-5 * max(1.0, float(region.center.abs().max()))
    return region.perturbation.unclipped().contains(nearest, region.center, tolerance)


def _shrunk(region: Region, lower: Tensor, upper: Tensor) -> tuple:
    """Return the boxes around what cells share with the ball.

    Outside it a function may do what it likes.

    ``|z_i - c_i|^p <= r^p - sum over j != i of d_j^p``, d_j the distance of a cell from the centre
    c in coordinate j.
    """
    norm = region.perturbation.norm
    if norm == math.inf:
        return lower, upper
    center, radius = (
        region.center.flatten(1).double(),
        region.perturbation.radius(region.center).double().unsqueeze(1),
    )
    powers = torch.maximum(lower - center, center - upper).clamp(min=0) ** norm
    reach = (radius**norm - powers.sum(1, keepdim=True) + powers).clamp(min=0) ** (1 / norm)
    reach = reach + 1e-5 * (radius + center.abs().max())  # outwards, far beyond rounding
    return torch.maximum(lower, (center - reach).to(lower)), torch.minimum(
        upper, (center + reach).to(upper)
    )
