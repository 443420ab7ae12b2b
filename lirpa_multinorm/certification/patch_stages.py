"""Stages for patches: groups of places by their difference, and place by place as published."""

from __future__ import annotations

from torch import Tensor, nn

from ..bounds import BoundedModule
from ..bounds.patch_places import bounds_by_place
from ..perturbations.patch import PerturbationPatch
from ..verifier.patches.offered import offering_layer
from ..verifier.patches.search import PatchSettings
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

    def precedes_attacks(self, model: nn.Module) -> bool:
        """Return whether the model offers bounds, which cost less than an attack."""
        return offering_layer(model) is not None

    def bound(self, bounded: BoundedModule, pairs: OpenPairs, deadline: float) -> Tensor:
        """Return the least bounds over all places; see :meth:`Stage.bound`."""
        return pairs.from_all_rivals(
            [
                bounded.bound_patches(
                    pairs.x[images], perturbation, C, enough, deadline, self._settings
                ).bounds
                for _, perturbation, images, C, enough in pairs.with_all_rivals()
            ]
        )


class PlaceStage(Stage):
    """Interval arithmetic of the whole image, place by place, as published.

    Source: Chiang et al. 2020, Certified Defenses for Adversarial Patches, section 4.
    """

    takes = PerturbationPatch

    def bound(self, bounded: BoundedModule, pairs: OpenPairs, deadline: float) -> Tensor:
        """Return the least bounds over all places; see :meth:`Stage.bound`."""
        return pairs.from_all_rivals(
            [
                bounds_by_place(bounded, pairs.x[images], perturbation, C, enough, deadline).bounds
                for _, perturbation, images, C, enough in pairs.with_all_rivals()
            ]
        )


STAGES.update({stage.name: stage for stage in (PatchStage(PATCHES), PlaceStage("Places-IBP"))})
