"""One branch per norm: which region of a set is propagated in training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import List, Optional, Sequence, Tuple

import torch
from torch import Tensor, nn

from ..attacks import AttackSettings, attack_regions
from ..errors import InvalidArgumentError
from ..perturbations import (PerturbationLpBox, Region, as_perturbation, cure_l2_region, sabr_region,
                             small_ball_region)

#: The attack of SABR: 8 steps of cross-entropy, the step falling tenfold at 50, 80 and 90 % of them.
TRAINING_ATTACK = AttackSettings(steps=8, step_size={float("inf"): 0.5, 2: 0.2, 1: 0.2},
                                 decays=((0.5, 0.1), (0.8, 0.1), (0.9, 0.1)), loss="ce")
REGIONS = ("set", "box", "ball")


@dataclass(frozen=True)
class Branch:
    """A set and the region of it that training propagates.

    Args:
        perturbation: The set the network shall be robust on.
        region: "set" (all of it: a sound bound, no attack), "box" (SABR's small box for l_inf, CURE's for other
            norms) or "ball" (the small ball of the same norm).
        ratio: lambda: the region's size as a share of eps (not used for "set").
    """

    perturbation: PerturbationLpBox
    region: str = "box"
    ratio: float = 0.4

    def __post_init__(self) -> None:
        object.__setattr__(self, "perturbation", as_perturbation(self.perturbation))
        if self.region not in REGIONS:
            raise InvalidArgumentError(f"region={self.region!r} is unknown; use {', '.join(REGIONS)}")
        if not 0 < self.ratio <= 1:
            raise InvalidArgumentError(f"ratio={self.ratio!r} must lie in (0, 1]")

    def scaled(self, scale: float) -> "Branch":
        """Return the branch with its radius multiplied (annealing)."""
        return Branch(self.perturbation.with_eps(self.perturbation.eps * scale), self.region, self.ratio)

    @property
    def attacked(self) -> PerturbationLpBox:
        """The set in which the region's centre is searched."""
        if self.region == "box" and self.perturbation.norm == float("inf"):
            return self.perturbation  # SABR attacks the whole set and pushes the box inside afterwards
        return self.perturbation.with_eps(self.perturbation.eps * (1 - self.ratio))

    @property
    def needs_attack(self) -> bool:
        """Whether the centre is searched by an attack at all."""
        return self.region != "set" and not (self.region == "ball" and self.ratio == 1)

    def around(self, x: Tensor, x_adv: Tensor) -> Region:
        """Return the region to propagate for inputs x and attacked points x_adv."""
        if self.region == "set":
            return Region(x, self.perturbation)
        if self.region == "ball":
            return small_ball_region(x, x_adv, self.perturbation, self.ratio)
        make = sabr_region if self.perturbation.norm == float("inf") else cure_l2_region
        return make(x, x_adv, self.perturbation, self.ratio)


def find_regions(model: nn.Module, batches: Sequence[Tuple[Tensor, Tensor]], branches: Sequence[Branch],
                 settings: AttackSettings = TRAINING_ATTACK,
                 generator: Optional[torch.Generator] = None) -> List[Region]:
    """Attack each branch's inputs, all in one batch, and return the regions to propagate.

    Args:
        model: The plain classifier.
        batches: (inputs, labels) per branch.
        branches: The branches.
        settings: The attack.
        generator: Source of the random starts.

    Returns:
        One region per branch.
    """
    points = [x for x, _ in batches]
    attacked = [i for i, branch in enumerate(branches) if branch.needs_attack]
    if attacked:
        searched = [Region(points[i], branches[i].attacked) for i in attacked]
        found = attack_regions(model, searched, [batches[i][1] for i in attacked], settings, generator)
        for i, x_adv in zip(attacked, found):
            points[i] = x_adv
    return [branch.around(x, x_adv) for branch, (x, _), x_adv in zip(branches, batches, points)]
