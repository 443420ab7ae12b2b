"""Certified losses over several norms: one branch per set, combined as CURE does."""

from __future__ import annotations

from typing import Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple

import torch
from torch import Tensor

from ..attacks import AttackSettings
from ..bounds import BoundedModule, margin_matrix
from ..bounds.margins import check_labels
from ..errors import InvalidArgumentError
from .branches import TRAINING_ATTACK, Branch, find_regions
from .margin import margin_cross_entropy

Batch = Tuple[Tensor, Tensor]


class LossResult(NamedTuple):
    """What a loss gives back.

    Args:
        value: The loss, a scalar to differentiate.
        margins: Lower margin bounds (B_i, K - 1) of each branch on its training region.
        per_example: Loss of each example, (B_i,) per branch.
    """

    value: Tensor
    margins: List[Tensor]
    per_example: List[Tensor]


def joint(losses: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Return the weighted sum of the branches' mean losses; ``(1 - alpha) a + alpha b`` for two norms."""
    return sum(weight * loss.mean() for weight, loss in zip(weights, losses))


def worst(losses: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Return the mean over examples of the largest branch loss: ``mean_i max(a_i, b_i)``."""
    return torch.stack(list(losses)).amax(dim=0).mean()


class MultiNormLoss:
    """A certified training loss, for use in any training loop.

    Attacks the branches (plain model, eval mode), propagates their regions in one IBP pass, and combines the
    cross-entropies of the margin bounds. BatchNorm is bounded with the statistics of the last forward pass of the
    BoundedModule, so run ``bounded(x)`` on the clean batch first, as CURE and SABR do.

    Args:
        branches: One per set.
        combine: "joint" (weighted mean), "max" (worst branch of each example) or "random" (a fresh partition of the
            batch into equal blocks, one per branch, with equal weights).
        weights: Weight per branch for "joint", adding up to 1; None weighs them equally.
        attack: Settings of the attack.

    Raises:
        InvalidArgumentError: No branches, an unknown combination, or weights that do not fit.

    Source: Jiang and Singh 2024 (CURE), sections 3.3 (l_2 defence, Joint, Max, Random) and 4; Müller et al. 2023
    (SABR).

    Example:
        >>> from lirpa_multinorm import PerturbationLinf, PerturbationL2Box
        >>> _ = torch.manual_seed(0)
        >>> bounded = BoundedModule(torch.nn.Sequential(torch.nn.Linear(4, 3)))
        >>> loss = MultiNormLoss([Branch(PerturbationLinf(0.1)), Branch(PerturbationL2Box(0.2), "ball", 0.5)], "max")
        >>> x, y = torch.rand(2, 4), torch.tensor([0, 1])
        >>> value, margins, per_example = loss(bounded, x, y)
        >>> value.backward()
        >>> [tuple(one.shape) for one in margins]
        [(2, 2), (2, 2)]
    """

    def __init__(self, branches: Sequence[Branch], combine: str = "joint", weights: Optional[Sequence[float]] = None,
                 attack: AttackSettings = TRAINING_ATTACK) -> None:
        self.branches, self.combine, self.attack = list(branches), combine, attack
        if not self.branches:
            raise InvalidArgumentError("branches is empty; give at least one Branch")
        if combine not in COMBINE:
            raise InvalidArgumentError(f"combine={combine!r} is unknown; use {', '.join(COMBINE)}")
        if weights is not None and combine != "joint":
            raise InvalidArgumentError(f"weights={weights!r} belong to combine='joint'; leave them out for {combine!r}")
        count = len(self.branches)
        self.weights = [1 / count] * count if weights is None else list(weights)
        # Written so that NaN is refused too.
        if len(self.weights) != count or not (min(self.weights) >= 0 and abs(sum(self.weights) - 1) < 1e-6):
            raise InvalidArgumentError(f"weights={weights!r} must be {count} numbers >= 0 that add up to 1")

    def __call__(self, bounded: BoundedModule, x: Tensor, y: Tensor, eps_scale: float = 1.0,
                 generator: Optional[torch.Generator] = None) -> LossResult:
        """Compute the loss.

        Args:
            bounded: The module whose model is trained.
            x: Inputs in clip, shape (B, ...).
            y: True classes, shape (B,).
            eps_scale: Factor on every radius (annealing), in [0, 1].
            generator: Source of random starts and of the partition.

        Returns:
            The loss with its parts.
        """
        classes = bounded.output_shape(x).numel()
        check_labels(y, classes, len(x), x.device)
        branches = [branch.scaled(eps_scale) for branch in self.branches]
        batches = self._batches(x, y, generator)
        regions = find_regions(bounded.model, batches, branches, self.attack, generator)
        C = [margin_matrix(labels, classes, x.dtype) for _, labels in batches]
        margins = [lower for lower, _ in bounded.compute_region_bounds(regions, C, "IBP", bound_upper=False)]
        per_example = [margin_cross_entropy(lower) for lower in margins]
        return LossResult(COMBINE[self.combine](per_example, self.weights), margins, per_example)

    def _batches(self, x: Tensor, y: Tensor, generator: Optional[torch.Generator]) -> List[Batch]:
        """The inputs of each branch: all of them, or its block of a random partition."""
        if self.combine != "random":
            return [(x, y)] * len(self.branches)
        if len(x) < len(self.branches):
            raise InvalidArgumentError(f"x has {len(x)} examples for {len(self.branches)} blocks of the random "
                                       "partition; use larger batches")
        device = "cpu" if generator is None else generator.device
        order = torch.randperm(len(x), generator=generator, device=device).to(x.device)
        return [(x[block], y[block]) for block in order.tensor_split(len(self.branches))]


#: How branch losses become one number.
COMBINE: Dict[str, Callable] = {"joint": joint, "max": worst, "random": joint}
