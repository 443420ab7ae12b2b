"""What tests of several folders assert about bounds, and the points they assert it at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Callable, Union

import torch
from torch import Tensor, nn

from lirpa_multinorm import PerturbationLpBox, Region
from lirpa_multinorm.attacks.geometry import random_point
from lirpa_multinorm.audit.attack import ATTACK, Bounds, attacked_ranges, violation

TOLERANCE = 1e-5
Tensors = Union[Tensor, Sequence["Tensors"]]


def assert_same(found: Tensors, expected: Tensors, atol=TOLERANCE, rtol=TOLERANCE) -> None:
    """Tensors, or sequences of them, are the same but for rounding."""
    if isinstance(found, Tensor):
        assert found.shape == expected.shape
        torch.testing.assert_close(found.detach(), expected.detach(), atol=atol, rtol=rtol)
        return
    found, expected = list(found), list(expected)
    assert len(found) == len(expected)
    for part, other in zip(found, expected):
        assert_same(part, other, atol, rtol)


def differ(found: Tensors, others: Tensors) -> bool:
    """Whether any of the tensors differs by more than rounding."""
    return any(not torch.allclose(*pair, atol=1e-4) for pair in zip(found, others))


# --- sound and tight ------------------------------------------------------------------------------


def assert_within(values: Tensor, bounds: Bounds, tolerance: float = TOLERANCE) -> None:
    """Values lie between lower and upper bounds, to which they broadcast."""
    lower, upper = bounds
    assert bool((values >= lower - tolerance).all()) and bool((values <= upper + tolerance).all())


def assert_contains(bounds: Bounds, reached: Bounds, tolerance=TOLERANCE, what="bounds") -> None:
    """Bounds are ordered, and hold what an attack has reached, up to a share of their size."""
    bounds = tuple(end.detach() for end in bounds)
    excess = violation(bounds, reached)
    assert bool((bounds[0] <= bounds[1]).all()), f"{what}: lower above upper"
    assert excess <= tolerance, f"{what} violated by {excess:.2e}"


def reached_by_attack(
    model: nn.Module,
    x: Tensor,
    sets: Sequence[PerturbationLpBox],
    C: Tensor | None = None,
    settings=ATTACK,
    seed: int = 0,
) -> list[Bounds]:
    """The lowest and highest outputs that an attack reaches inside each set, (B, S) each."""
    return attacked_ranges(model, x, sets, C, settings, torch.Generator().manual_seed(seed))


def assert_sound(
    model: nn.Module,
    x: Tensor,
    sets: PerturbationLpBox | Sequence[PerturbationLpBox],
    bounds: Bounds | Sequence[Bounds],
    C: Tensor | None = None,
    tolerance: float = TOLERANCE,
    settings=ATTACK,
) -> None:
    """No attack inside a set leaves the set's bounds; one set with bounds, or as many of both."""
    if isinstance(sets, PerturbationLpBox):
        sets, bounds = [sets], [bounds]
    ranges = reached_by_attack(model, x, sets, C, settings)
    assert len(sets) == len(bounds)
    for perturbation, ends, reached in zip(sets, bounds, ranges):
        assert_contains(ends, reached, tolerance, f"bounds on {perturbation!r}")


def assert_no_looser(tight: Bounds, loose: Bounds, tolerance: float = TOLERANCE) -> None:
    """Bounds lie inside others."""
    (lower, upper), (low, high) = tight, loose
    assert bool((lower >= low - tolerance).all()) and bool((upper <= high + tolerance).all())


# --- points and gradients -------------------------------------------------------------------------


def points_in(regions: Sequence[Region], count: int, seed: int = 0) -> Tensor:
    """Random points of stacked regions, (count * R, ...): all regions' first, then the second."""
    generator = torch.Generator().manual_seed(seed)
    points = []
    for region in regions:
        x = region.center.unsqueeze(0).expand(count, *region.center.shape)
        point = random_point(region.perturbation, x.flatten(0, 1), generator)
        points.append(point.unflatten(0, (count, -1)))
    return torch.cat(points, dim=1).flatten(0, 1)


def assert_differentiable(
    function: Callable[[], Tensor],
    weight: Tensor,
    directions: int = 3,
    step: float = 1e-5,
    rtol: float = 1e-4,
    atol: float = 1e-5,
) -> None:
    """The gradient in a weight is what differences in some random directions say."""
    (gradient,) = torch.autograd.grad(function(), weight)
    generator = torch.Generator().manual_seed(0)
    for _ in range(directions):
        direction = torch.randn(weight.shape, generator=generator, dtype=weight.dtype)
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                weight += sign * step * direction
                values.append(float(function()))
                weight -= sign * step * direction
        slope, expected = (values[0] - values[1]) / (2 * step), float((gradient * direction).sum())
        assert abs(slope - expected) <= max(rtol * abs(expected), atol)
