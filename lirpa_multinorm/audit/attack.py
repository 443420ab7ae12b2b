"""Gradient attacks inside a set on claimed bounds."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..attacks import AttackSettings, Batched, maximize
from ..perturbations import PerturbationLpBox, Region
from ..utils.modes import evaluating

Bounds = tuple[Tensor, Tensor]
ATTACK = AttackSettings(steps=60, restarts=2)


def largest_violation(
    model: nn.Module,
    x: Tensor,
    perturbation: PerturbationLpBox,
    bounds: Bounds,
    C: Tensor | None = None,
    settings: AttackSettings = ATTACK,
    generator: torch.Generator | None = None,
) -> float:
    """Return the largest excess of an attack over claimed bounds; not positive without any.

    Every output is pushed down and up separately, from every input, inside the set.

    Args:
        model: The network the bounds are claimed for.
        x: Inputs, shape (B, ...).
        perturbation: The set.
        bounds: (lb, ub) of shape (B, S); NaN counts as infinitely violated, -inf and inf claim
            nothing.
        C: Specification (B, S, K) the bounds belong to, or None for the outputs themselves.
        settings: Strength of the attack.
        generator: Source of the random starts.

    Returns:
        The largest excess over both bounds and all outputs, relative to 1 + the bounds' size.

    Example:
        >>> from lirpa_multinorm import PerturbationLinf
        >>> x, ball = torch.full((1, 2), 0.5), PerturbationLinf(eps=0.1)
        >>> round(largest_violation(nn.Identity(), x, ball, (x - 0.05, x + 0.1)), 3)
        0.034
    """
    if bool(torch.stack(bounds).isnan().any()):
        return float("inf")
    return violation(bounds, attacked_range(model, x, perturbation, C, settings, generator))


def attacked_range(
    model: nn.Module,
    x: Tensor,
    perturbation: PerturbationLpBox,
    C: Tensor | None = None,
    settings: AttackSettings = ATTACK,
    generator: torch.Generator | None = None,
) -> Bounds:
    """Return the smallest and largest outputs that an attack reaches inside the set, each (B, S).

    Args:
        model: Network (B, ...) -> (B, K).
        x: Inputs, shape (B, ...).
        perturbation: The set.
        C: Specification (B, S, K), or None for the outputs themselves.
        settings: Strength of the attack.
        generator: Source of the random starts.

    Returns:
        (lowest, highest): what sound bounds must contain, and what tight ones come near.
    """
    return attacked_ranges(model, x, [perturbation], C, settings, generator)[0]


def attacked_ranges(
    model: nn.Module,
    x: Tensor,
    perturbations: Sequence[PerturbationLpBox],
    C: Tensor | None = None,
    settings: AttackSettings = ATTACK,
    generator: torch.Generator | None = None,
) -> list[Bounds]:
    """Return :func:`attacked_range` of several sets, searched side by side."""
    outputs = Batched(model)
    with evaluating(model):
        with torch.no_grad():
            size = outputs(x).shape[1] if C is None else C.shape[1]
        batch, sets = x.shape[0], len(perturbations)
        signs = torch.tensor([-1.0, 1.0], dtype=x.dtype, device=x.device)
        sign = signs.repeat_interleave(size * batch).repeat(sets)
        output = torch.arange(size, device=x.device).repeat_interleave(batch).repeat(2 * sets)

        def objective(inputs: Tensor) -> Tensor:
            values = outputs(inputs)
            if C is not None:
                values = C.repeat(2 * size * sets, 1, 1).matmul(values.unsqueeze(-1)).squeeze(-1)
            return sign * values.gather(1, output.unsqueeze(1)).squeeze(1)

        rows = torch.arange(batch, device=x.device).repeat(2 * size)
        regions = [Region(x, perturbation).rows(rows) for perturbation in perturbations]
        _, values = maximize(objective, regions, settings, generator)
    extremes = [value.view(2, size, batch).transpose(1, 2) for value in values]
    return [(-below, above) for below, above in extremes]


def violation(bounds: Bounds, reached: Bounds) -> float:
    """Return the largest excess of reached outputs over bounds, relative to 1 + the bounds' size.

    An excess of NaN is infinite.
    """
    (lower, upper), (lowest, highest) = bounds, reached
    excess = torch.stack([_relative(lower, -lowest), _relative(-upper, highest)])
    return float(excess.nan_to_num(nan=float("inf")).max())


def _relative(lower: Tensor, reached: Tensor) -> Tensor:
    """Return the excess of a lower bound over -reached, relative to 1 + its size.

    The limit for an infinite bound is its sign.
    """
    return torch.where(lower.isinf(), lower.sign(), (lower + reached) / (1 + lower.abs()))
