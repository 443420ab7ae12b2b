"""Stages for patches: groups of places by their difference, and place by place as published."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..bounds import BoundedModule
from ..bounds.patch_places import bounds_by_place
from ..perturbations.patch import PerturbationPatch
from ..verifier.patches.search import PatchResult, PatchSettings
from .open_pairs import OpenPairs
from .stages import STAGES, Stage

PATCHES = "Patches"


class PatchStage(Stage):
    """Groups of places by interval arithmetic of the difference to the clean image, then CROWN.

    Args:
        name: See :class:`Stage`.
        settings: Of the search.
    """

    takes = PerturbationPatch

    def __init__(self, name: str, settings: PatchSettings = PatchSettings()) -> None:
        super().__init__(name)
        self._settings = settings

    def bound(self, bounded: BoundedModule, pairs: OpenPairs, deadline: float) -> Tensor:
        """Return the least bounds over all places; see :meth:`Stage.bound`."""
        key = pairs.set_index, pairs.image, pairs.rival
        bounds = pairs.x.new_full(pairs.mask().shape, -math.inf)
        enough = torch.full_like(bounds, -math.inf)
        needed = torch.zeros(len(pairs)) if pairs.needed is None else pairs.needed
        # Rounded up, where the thresholds have more digits than the bounds.
        enough[key] = torch.nextafter(needed.to(enough), torch.full_like(bounds[key], math.inf))
        eye = torch.eye(pairs.classes, dtype=pairs.x.dtype, device=pairs.x.device)
        for set_index in pairs.set_index.unique().tolist():
            images = pairs.image[pairs.set_index == set_index].unique()
            result = self._result(
                bounded,
                pairs.x[images],
                pairs.sets[set_index],
                eye[pairs.y[images]].unsqueeze(1) - eye,
                enough[set_index, images],
                deadline,
            )
            bounds[set_index, images] = result.bounds
        return bounds[key]

    def _result(
        self,
        bounded: BoundedModule,
        x: Tensor,
        perturbation: PerturbationPatch,
        C: Tensor,
        enough: Tensor,
        deadline: float,
    ) -> PatchResult:
        """Return what is found of some images."""
        return bounded.bound_patches(x, perturbation, C, enough, deadline, self._settings)


class PlaceStage(PatchStage):
    """Interval arithmetic of the whole image, place by place, as published.

    Source: Chiang et al. 2020, Certified Defenses for Adversarial Patches, section 4.
    """

    def _result(
        self,
        bounded: BoundedModule,
        x: Tensor,
        perturbation: PerturbationPatch,
        C: Tensor,
        enough: Tensor,
        deadline: float,
    ) -> PatchResult:
        """Return what is found of some images."""
        return bounds_by_place(bounded, x, perturbation, C, enough, deadline)


STAGES.update({stage.name: stage for stage in (PatchStage(PATCHES), PlaceStage("Places-IBP"))})
