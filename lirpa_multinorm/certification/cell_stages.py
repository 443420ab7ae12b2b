"""Stages for sets of transforms: adaptive splitting, and the fixed grid as published."""

from __future__ import annotations

import math
import time

import torch
from torch import Tensor

from ..bounds import BoundedModule
from ..perturbations import PerturbationLinf, Region
from ..perturbations.geometric import PerturbationGeometric
from ..transforms import transformed, weight_range
from ..verifier.branching.cells import CellSettings
from .open_pairs import OpenPairs
from .stages import STAGES, Outcome, Stage

SPLITTING = "Splitting"
_CELLS = 256  # cells of a grid that are bounded at once


class SplittingStage(Stage):
    """Adaptive splitting of the parameters, with DeepZ and CROWN on linear forms of them.

    Args:
        name: See :class:`Stage`.
        settings: Of the search; with a time limit it is ended by that alone.
    """

    takes = PerturbationGeometric

    def __init__(self, name: str, settings: CellSettings = CellSettings()) -> None:
        super().__init__(name)
        self._settings = settings

    def within(self, time_limit: float | None) -> Stage:
        """Return the stage with a time limit, which then ends a search."""
        if time_limit is None:
            return self
        return SplittingStage(self.name, CellSettings(max_cells=1 << 62))

    def work(self, bounded: BoundedModule, pairs: OpenPairs, deadline: float) -> Outcome:
        """Return bounds and counterexamples; see :meth:`Stage.work`."""
        bounds, broken = [], {}
        for set_index, perturbation, images, C, enough in pairs.with_all_rivals():
            result = bounded.bound_transforms(
                pairs.x[images], perturbation, C, enough, deadline, self._settings
            )
            bounds.append(result.bounds)
            for row, parameters in result.broken.items():
                image = images[row]
                moved = transformed(pairs.x[image].unsqueeze(0), parameters.unsqueeze(0))
                broken[set_index, int(image)] = moved[0]
        return Outcome(pairs.from_all_rivals(bounds), broken)


class GridStage(Stage):
    """The fixed grid of a set's ``splits``, each cell by interval arithmetic, as published.

    Source: Yang et al. 2023, Provable Defense Against Geometric Transformations.
    """

    takes = PerturbationGeometric

    def bound(self, bounded: BoundedModule, pairs: OpenPairs, deadline: float) -> Tensor:
        """Return the least bounds over all cells; see :meth:`Stage.bound`."""
        C = pairs.specification()
        bounds = pairs.x.new_full((len(pairs),), -math.inf)
        groups = torch.stack([pairs.set_index, pairs.image], dim=1)
        for set_index, image in groups.unique(dim=0).tolist():
            rows = (groups == groups.new_tensor([set_index, image])).all(1)
            cells = pairs.sets[set_index].fixed_grid(pairs.x)
            bounds[rows] = self._least(
                bounded, pairs.x[image : image + 1], C[rows].transpose(0, 1), cells, deadline
            ).to(bounds)
        return bounds

    @staticmethod
    def _least(
        bounded: BoundedModule,
        image: Tensor,
        C: Tensor,
        cells: tuple[Tensor, Tensor],
        deadline: float,
    ) -> Tensor:
        """Return the least bounds of an image's margins over its cells, (S,)."""
        least = image.new_full((C.shape[1],), math.inf)
        for lower, upper in zip(*(ends.split(_CELLS) for ends in cells)):
            if time.perf_counter() > deadline:
                return torch.full_like(least, -math.inf)
            images = image.expand(len(lower), -1, -1, -1)
            box = weight_range(images, lower, upper)
            region = Region(box.middle(), PerturbationLinf(1.0, clip=tuple(box)))
            ((bound, _),) = bounded.compute_region_bounds(
                [region], C.expand(len(lower), -1, -1), "IBP", bound_upper=False
            )
            least = torch.minimum(least, bound.detach().amin(0))
            if bool((least <= 0).any()):
                return torch.where(least <= 0, least, -math.inf)
        return least


STAGES.update({stage.name: stage for stage in (SplittingStage(SPLITTING), GridStage("Grid-IBP"))})
