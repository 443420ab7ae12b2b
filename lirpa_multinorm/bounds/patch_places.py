"""Bounds of patches place by place, by a method of regions, as published."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from ..perturbations import PerturbationLinf, Region
from ..perturbations.patch import PerturbationPatch
from ..verifier.patches.search import PatchResult
from .result import Bounds

_CHUNK = 64  # places that are bounded at once


class RegionBounds(Protocol):
    """What bounds regions."""

    def compute_region_bounds(
        self,
        regions: Sequence[Region],
        C: None | Tensor | Sequence = None,
        method: str = "IBP",
        **kwargs,
    ) -> list[Bounds]:
        """Bound outputs on regions; see :meth:`.RegionModule.compute_region_bounds`."""


def bounds_by_place(
    bounded: RegionBounds,
    x: Tensor,
    perturbation: PerturbationPatch,
    C: Tensor,
    enough: Tensor,
    deadline: float = math.inf,
    every_place: bool = False,
) -> PatchResult:
    """Bound ``C f`` on patched images by IBP of the whole image, once for each place.

    Args:
        bounded: The network.
        x: Images, (B, C, H, W).
        perturbation: The patches.
        C: Specification (B, S, K).
        enough: What bounds must exceed, (B, S); -inf: the row is not asked.
        deadline: Value of ``time.perf_counter()`` at which to stop.
        every_place: Whether an image is bounded on after a place of it has failed.

    Source: Chiang et al. 2020, Certified Defenses for Adversarial Patches, section 4.
    """
    rows, columns = perturbation.places(x)
    axes = (torch.arange(count, device=x.device) for count in (rows, columns))
    every = torch.cartesian_prod(*axes)
    bounds = x.new_full((len(x), len(every), C.shape[1]), -math.inf)
    passes = x.new_zeros(len(x))
    for image in range(len(x)):
        for numbers in torch.arange(len(every), device=x.device).split(_CHUNK):
            if time.perf_counter() >= deadline:
                break
            lower, upper = perturbation.boxes(x[image], every[numbers])
            region = Region((lower + upper) / 2, PerturbationLinf(1.0, clip=(lower, upper)))
            ((lower_bounds, _),) = bounded.compute_region_bounds(
                [region], C[image].expand(len(numbers), -1, -1), "IBP", bound_upper=False
            )
            bounds[image, numbers] = lower_bounds.detach()
            passes[image] += len(numbers)
            if not (every_place or bool((lower_bounds > enough[image]).all())):
                break
    bounds = bounds.unflatten(1, (rows, columns))
    proved = (bounds > enough[:, None, None]).all(3)
    nothing = torch.zeros_like(passes, dtype=torch.long)
    return PatchResult(bounds.flatten(1, 2).amin(1), bounds, proved, passes, nothing)
