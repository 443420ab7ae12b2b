"""The stages of a method: cheap bounds first, dearer ones for what they leave open."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..perturbations import Region


class Stage(NamedTuple):
    """One try at bounds: the regions, and how the hidden layers are bounded first.

    Args:
        regions: (centre, set) pairs, together B examples.
        crown: Whether the hidden layers are bounded by CROWN.
        tighten: Whether the bounds of the hidden layers are optimised.
        lipschitz: Whether the hidden layers are bounded by Lipschitz constants.
    """

    regions: Sequence[Region]
    crown: bool
    tighten: bool = False
    lipschitz: bool = True

    def differs_from(self, regions: Sequence[Region]) -> Tensor:
        """Return whether the stage bounds each example, (B, 1), on another region than these."""
        differs = [
            torch.full_like(region.center.flatten(1)[:, :1], region is not other)
            for region, other in zip(self.regions, regions)
        ]
        return torch.cat(differs).bool()


def sdp_crown_stages(regions: Sequence[Region], tighten: bool) -> list[Stage]:
    """Return the stages of SDP-CROWN, cheap ones first.

    The Lipschitz constants bound the hidden layers at no cost, but loosely on boxes. Relaxations
    are not monotone: sometimes the ball has the better bound than its part in the pixel range.

    Args:
        regions: (centre, set) pairs, together B examples.
        tighten: Whether the last stages optimise the bounds of the hidden layers.
    """
    stages = [Stage(regions, crown=True)]
    if tighten:
        stages.append(Stage(regions, crown=True, tighten=True))
    if not all(region.perturbation.is_box() for region in regions):
        stages.insert(0, Stage(regions, crown=False))
    if any(map(_is_clipped_ball, regions)):
        balls = [unclipped(region) if _is_clipped_ball(region) else region for region in regions]
        stages.extend([stage._replace(regions=balls) for stage in stages])
    return stages


def unclipped(region: Region) -> Region:
    """Return a region without the pixel range, which holds the given one."""
    return region._replace(perturbation=region.perturbation.unclipped())


def _is_clipped_ball(region: Region) -> bool:
    return region.perturbation.clip is not None and not region.perturbation.is_box()
