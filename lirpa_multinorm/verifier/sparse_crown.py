"""CROWN of a ReLU network's output; hidden intervals are bounded only where the output can gain."""

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

_TRIED = 3  # linear forms of an example that are searched for one that CROWN cannot prove
_FEW = 0.1  # share of examples with such a linear form, at which the search ends


@torch.no_grad()
def sparse_crown_bounds(
    receptive_fields: ReceptiveFields,
    problem: Problem,
    example: Tensor,
    v: Tensor,
    threshold: float = math.inf,
) -> Tensor:
    """Return CROWN's lower bounds of linear forms of the output.

    Args:
        receptive_fields: The receptive fields of the network.
        problem: The problem, with intervals by IBP.
        example: The example of the problem that each linear form is bounded on, (R,), rising.
        v: Linear forms, (R, K).
        threshold: A bound by IBP above it stays as it is, and so do all bounds of an example of
            which CROWN cannot get all above it.

    Returns:
        Lower bounds, (R,).

    Source: Zhang et al. 2018 (CROWN).
    """
    bounds, rows = torch.full_like(v[:, 0], -math.inf), example.unique()
    if threshold < math.inf:
        value, bounds = interval_bounds(receptive_fields, problem, example, v)
        rows = _within_reach(problem, example, v, value, bounds, threshold)
    row_of = torch.full((int(example.max()) + 1,), -1, device=v.device)
    row_of[rows] = torch.arange(len(rows), device=v.device)
    open_forms = ((bounds <= threshold) & (row_of[example] >= 0)).nonzero().squeeze(1)
    if len(open_forms):
        subproblem = problem.rows(rows)
        hidden = crown_intermediate_bounds(
            receptive_fields, subproblem.regions, subproblem.hidden, intersect=False
        )
        open_rows = row_of[example[open_forms]]
        slopes = CrownSlopes.of(hidden, len(hidden.lower)).rows(open_rows)
        crown = crown_bounds(
            subproblem.network, take_rows(subproblem.regions, open_rows), slopes, v[open_forms]
        )
        bounds[open_forms] = torch.maximum(bounds[open_forms], crown)
    return bounds


@torch.no_grad()
def interval_bounds(
    receptive_fields: ReceptiveFields, problem: Problem, example: Tensor, v: Tensor
) -> tuple[Tensor, Tensor]:
    """Return linear forms' values at the centres, and lower bounds from the hidden intervals.

    Args:
        receptive_fields: The receptive fields of the network.
        problem: The problem, with any bounds of the hidden layers.
        example: The example of the problem that each linear form is bounded on, (R,), rising.
        v: Linear forms, (R, K).

    Returns:
        Values and lower bounds, (R,) each.
    """
    constants, at_input, at_relus = receptive_fields.output(v)
    stack = PerturbationStack(take_rows(problem.regions, example))
    value = lower = v @ constants
    if at_input is not None:
        terms = v @ at_input
        value = value + (terms * stack.centers().flatten(1)).sum(1)
        terms = terms.view_as(stack.centers())
        lower = lower + stack.concretize(stack.centers(), terms.unsqueeze(1), sign=-1).squeeze(1)
    for matrix, relu_lower, relu_upper, center in zip(at_relus, *problem.hidden[:3]):
        if matrix is not None:
            terms = v @ matrix
            value = value + (terms * center[example].relu()).sum(1)
            lower = lower + (
                terms.clamp(min=0) * relu_lower[example].relu()
                + terms.clamp(max=0) * relu_upper[example].relu()
            ).sum(1)
    return value, lower


def _within_reach(
    problem: Problem, example: Tensor, v: Tensor, value: Tensor, lower: Tensor, threshold: float
) -> Tensor:
    """Return the examples, rising, all bounds of which CROWN may still get above ``threshold``.

    Each has a linear form whose bound is not above it, and none that CROWN cannot get there.
    """
    slack = (value - lower).clamp(min=torch.finfo(v.dtype).tiny)
    rank = ranks(example, (value - threshold) / slack)
    examples = example[lower <= threshold].unique()
    for attempt in range(_TRIED):
        tried = ((rank == attempt) & torch.isin(example, examples)).nonzero().squeeze(1)
        if not len(tried):
            break
        lost = example[tried[crown_limits(problem.rows(example[tried]), v[tried]) <= threshold]]
        examples = examples[~torch.isin(examples, lost)]
        if len(lost) <= _FEW * len(tried):
            break
    return examples
