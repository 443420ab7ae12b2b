"""CROWN of a ReLU network's output, on hidden intervals found only for what can gain by them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..perturbations import PerturbationStack, take_rows
from ..utils.groups import ranks
from .intermediate_bounds import crown_intermediate_bounds
from .problem import Problem
from .receptive_fields import ReceptiveFields
from .relaxations.crown import CrownSlopes, crown_bounds
from .relaxations.crown_limits import crown_limits

_TRIED = 3  # linear forms of an example that are looked at for one that CROWN cannot prove
_FEW = (
    0.1  # share of examples with one such, at which the next linear form is not looked at any more
)


@torch.no_grad()
def sparse_crown_bounds(
    windows: ReceptiveFields, problem: Problem, example: Tensor, v: Tensor, enough: float = math.inf
) -> Tensor:
    """Return CROWN's lower bounds of linear forms of the output.

    Args:
        windows: Of the network.
        problem: With intervals by IBP.
        example: On which example of the problem each linear form is to be bounded, (R,), rising.
        v: Linear forms, (R, K).
        enough: A bound by IBP above it is left as it is, and so are all bounds of an example of
            which CROWN cannot get all above it.

    Returns:
        Lower bounds, (R,).

    Source: Zhang et al. 2018 (CROWN).
    """
    found, rows = torch.full_like(v[:, 0], -math.inf), example.unique()
    if enough < math.inf:
        value, found = interval_bounds(windows, problem, example, v)
        rows = _within_reach(problem, example, v, value, found, enough)
    place = torch.full((int(example.max()) + 1,), -1, device=v.device)
    place[rows] = torch.arange(len(rows), device=v.device)
    left = ((found <= enough) & (place[example] >= 0)).nonzero().squeeze(1)
    if len(left):
        part = problem.rows(rows)
        hidden = crown_intermediate_bounds(windows, part.regions, part.hidden, intersect=False)
        own = place[example[left]]
        slopes = CrownSlopes.of(hidden, len(hidden.lower)).rows(own)
        bounds = crown_bounds(part.network, take_rows(part.regions, own), slopes, v[left])
        found[left] = torch.maximum(found[left], bounds)
    return found


@torch.no_grad()
def interval_bounds(
    windows: ReceptiveFields, problem: Problem, example: Tensor, v: Tensor
) -> tuple[Tensor, Tensor]:
    """Return linear forms' values at the centres, and lower bounds from the hidden intervals.

    Args:
        windows: Of the network.
        problem: With any sets of the hidden layers.
        example: On which example of the problem each linear form is to be bounded, (R,), rising.
        v: Linear forms, (R, K).

    Returns:
        Values and lower bounds, (R,) each.
    """
    constants, at_input, at_relus = windows.output(v)
    stack = PerturbationStack(take_rows(problem.regions, example))
    value = lower = v @ constants
    if at_input is not None:
        part = v @ at_input
        value = value + (part * stack.centers().flatten(1)).sum(1)
        part = part.view_as(stack.centers())
        lower = lower + stack.concretize(stack.centers(), part.unsqueeze(1), sign=-1).squeeze(1)
    for matrix, low, high, center in zip(at_relus, *problem.hidden[:3]):
        if matrix is not None:
            part = v @ matrix
            value = value + (part * center[example].relu()).sum(1)
            lower = lower + (
                part.clamp(min=0) * low[example].relu() + part.clamp(max=0) * high[example].relu()
            ).sum(1)
    return value, lower


def _within_reach(
    problem: Problem, example: Tensor, v: Tensor, value: Tensor, lower: Tensor, enough: float
) -> Tensor:
    """Return the examples, rising, that CROWN may still get above ``enough``.

    Each has a linear form that is not above it, and none that CROWN cannot get there.
    """
    rank = ranks(example, (value - enough) / (value - lower).clamp(min=torch.finfo(v.dtype).tiny))
    left = example[lower <= enough].unique()
    for tried in range(_TRIED):
        own = ((rank == tried) & torch.isin(example, left)).nonzero().squeeze(1)
        if not len(own):
            break
        lost = example[own[crown_limits(problem.rows(example[own]), v[own]) <= enough]]
        left = left[~torch.isin(left, lost)]
        if len(lost) <= _FEW * len(own):
            break
    return left
