"""Branch and bound over the input, for sets of few dimensions: cells of their box are halved."""

from __future__ import annotations

import math
import time
from typing import Callable

import torch
from torch import Tensor

from ...perturbations import PerturbationLinf, Region

MAX_INPUTS = 4  # dimensions; a set of more dimensions has too many cells
_MAX_CELLS = 1 << 13  # open cells
_AT_ONCE = 1 << 9  # cells that are bounded between two looks at the clock

#: Bounds linear forms (N, S, K) on a region of N cells from below, (N, S).
_Bounds = Callable[[Region, Tensor], Tensor]


@torch.no_grad()
def split_inputs(region: Region, v: Tensor, bounds: _Bounds, deadline: float) -> Tensor:
    """Bound linear forms from below on one input's set, halving its box until all are positive.

    Args:
        region: The set, around one input.
        v: Linear forms, (S, K).
        bounds: Bounds linear forms on cells.
        deadline: Value of ``time.perf_counter()`` at which to stop.

    Returns:
        Lower bounds, (S,): the lowest of all cells; the bounds are sound at any time.
    """
    x = region.center
    lower, upper = (bound.flatten(1) for bound in region.perturbation.enclosing_box(x))
    # The lowest bound of all closed cells, and the best one so far of all open cells: these only
    # get fewer.
    closed, open_bound = v.new_full((len(v),), torch.inf), v.new_full((len(v),), -torch.inf)
    while time.perf_counter() < deadline and len(lower) <= _MAX_CELLS:
        values = []
        for cell_lower, cell_upper in zip(lower.split(_AT_ONCE), upper.split(_AT_ONCE)):
            if time.perf_counter() > deadline:
                # The bounds from before this round hold for its cells.
                return torch.minimum(closed, open_bound)
            cells = _cells(cell_lower.view(-1, *x.shape[1:]), cell_upper.view(-1, *x.shape[1:]))
            cell_bounds = bounds(cells, v.expand(len(cell_lower), -1, -1))
            values.append(cell_bounds.nan_to_num(nan=-torch.inf))
        value = torch.cat(values)
        is_open = ~(value > 0).all(1)
        if bool((~is_open).any()):
            closed = torch.minimum(closed, value[~is_open].amin(0))
        if not bool(is_open.any()):
            return closed
        open_bound = torch.maximum(open_bound, value[is_open].amin(0))
        lower, upper = _halved(lower[is_open], upper[is_open])
        met = _meets(region, lower, upper)
        lower, upper = _shrunk(region, lower[met], upper[met])
        if not len(lower):
            return closed
    return torch.minimum(closed, open_bound)


def _cells(lower: Tensor, upper: Tensor) -> Region:
    """Return boxes as a region."""
    perturbation = PerturbationLinf(float((upper - lower).max()), (lower, upper))
    return Region((lower + upper) / 2, perturbation)


def _halved(lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """Return both halves of cells, cut across their longest sides."""
    side = (upper - lower).argmax(1, keepdim=True)
    middle = (lower + (upper - lower) / 2).gather(1, side)
    lower_halves = torch.cat([lower, lower.scatter(1, side, middle)])
    return lower_halves, torch.cat([upper.scatter(1, side, middle), upper])


def _meets(region: Region, lower: Tensor, upper: Tensor) -> Tensor:
    """Return which cells reach into the ball: their points nearest to its centre lie there."""
    center = region.center.flatten(1)
    nearest = torch.minimum(torch.maximum(center, lower), upper).view(-1, *region.center.shape[1:])
    tolerance = 1e-5 * max(1.0, float(region.center.abs().max()))
    return region.perturbation.unclipped().contains(nearest, region.center, tolerance)


def _shrunk(region: Region, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """Return the boxes around the intersections of cells with the ball.

    A point z of a cell in the ball has ``|z_i - c_i|^p <= r^p - sum over j != i of d_j^p``, with
    d_j the distance of the cell from the centre c in coordinate j.
    """
    norm = region.perturbation.norm
    if norm == math.inf:
        return lower, upper
    center = region.center.flatten(1).double()
    radius = region.perturbation.radius(region.center).double().unsqueeze(1)
    powers = torch.maximum(lower - center, center - upper).clamp(min=0) ** norm
    reach = (radius**norm - powers.sum(1, keepdim=True) + powers).clamp(min=0) ** (1 / norm)
    reach = reach + 1e-5 * (radius + center.abs().max())  # outwards, far beyond rounding
    shrunk_lower = torch.maximum(lower, (center - reach).to(lower))
    return shrunk_lower, torch.minimum(upper, (center + reach).to(upper))
