"""Projected gradient ascent over several perturbation sets at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Callable

import torch
from torch import Tensor

from ..perturbations import PerturbationStack, Region
from ..perturbations.broadcast import column
from ..utils.modes import sheltered
from .geometry import Randomness, box_of, project, random_point, steepest_step
from .settings import AttackSettings


@sheltered
def maximize(
    objective: Callable[[Tensor], Tensor],
    regions: Sequence[Region],
    settings: AttackSettings = AttackSettings(),
    generator: Randomness | Sequence[Randomness] = None,
    solved: Callable[[], Tensor] | None = None,
) -> tuple[list[Tensor], list[Tensor]]:
    """Maximise a function of the stacked inputs over several regions by projected gradient ascent.

    Args:
        objective: Maps the stacked inputs (sum of B, ...) to one value each.
        regions: (centre, set) pairs.
        settings: Steps, step sizes and restarts (its loss is not used).
        generator: Source of the random starts: one for all regions, or a list with one for each.
        solved: Says which of the points that the objective was last called with need no search,
            (sum of B,) of bool; a run ends when all best points are such.

    Returns:
        (points, values) per region; where no point gives a number, the centre.
    """
    stack = PerturbationStack(regions)
    region_steps = [_RegionSteps(rows, region, settings) for rows, region in stack.slices()]
    best = stack.centers().detach().clone()
    value = best.new_full((len(best),), -math.inf)
    done = torch.zeros(len(best), dtype=torch.bool, device=best.device)
    if settings.try_center:
        with torch.no_grad():
            value = objective(best)
        done = done if solved is None else solved()
    for _ in range(settings.restarts):
        point = _start(stack, settings, generator)
        for step in range(settings.steps + 1):
            last = step == settings.steps
            point.requires_grad_(not last)
            with torch.set_grad_enabled(not last):
                current = objective(point)
            better = current.detach() > value
            best = torch.where(column(better, best), point.detach(), best)
            value = torch.where(better, current.detach(), value)
            if solved is not None:
                done = torch.where(better, solved(), done)
            if last or (solved is not None and bool(done.all())):
                break
            (gradient,) = torch.autograd.grad(current, point, torch.ones_like(current))
            point = torch.cat([moved(point.detach(), gradient, step) for moved in region_steps])
    slices = [rows for rows, _ in stack.slices()]
    return [best[rows] for rows in slices], [value[rows] for rows in slices]


def _start(
    stack: PerturbationStack, settings: AttackSettings, generator: Randomness | Sequence[Randomness]
) -> Tensor:
    if not settings.random_start:
        return stack.centers().detach().clone()
    generators = (
        generator if isinstance(generator, (list, tuple)) else [generator] * len(stack.regions)
    )
    points = [
        random_point(region.perturbation, region.center, source)
        for region, source in zip(stack.regions, generators)
    ]
    return torch.cat(points).detach()


class _RegionSteps:
    """Steps of the points of a region; what all steps share is computed once.

    Args:
        rows: The rows of the region's points in the stack.
        region: The region.
        settings: Of the attack.
    """

    def __init__(self, rows: slice, region: Region, settings: AttackSettings) -> None:
        self.rows, self.region, self.settings = rows, region, settings
        center, perturbation = region
        length = perturbation.radius(center) * settings.step_length(perturbation.norm)
        self._length = column(length, center)
        self._box = box_of(perturbation, center) if perturbation.is_box() else None

    def __call__(self, points: Tensor, gradient: Tensor, step: int) -> Tensor:
        """Return the region's points after a step along their gradient."""
        center, perturbation = self.region
        point, length = points[self.rows], self._length * self.settings.decay(step)
        moved = point + length * steepest_step(perturbation, gradient[self.rows], point, center)
        if self._box is None:
            return project(perturbation, moved, center)
        lower, upper = self._box
        return torch.minimum(torch.maximum(moved, lower), upper)
