"""Terms of sets that are certified part by part: transforms and patches."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..attacks.geometry import Randomness, uniform
from ..errors import InvalidArgumentError
from ..perturbations import Region
from ..perturbations.split import SplitPerturbation
from .margin import margin_cross_entropy


@dataclass(frozen=True)
class SplitTerm:
    """A set and a random part of it, which training propagates by IBP: a box of pixels.

    A part of a set of transforms is a cell of their parameters, a part of a set of patches a place.
    The box holds every image of the part; the loss on it certifies nothing of the other parts. Of
    several candidates per image the one with the largest loss by IBP is propagated with gradients.

    Args:
        perturbation: The set.
        ratio: Share of each parameter's range that a cell takes; patches have places instead.
        shrink: As of :class:`~lirpa_multinorm.LossTerm`.
        scale: Share of the full size that training has come to (annealing).
        candidates: Random parts of which each image's loss takes the worst; during annealing
            fewer, in proportion. From two on they are the same for all images of a batch.

    Source: Yang et al. 2023, Provable Defense Against Geometric Transformations, section 5 (cells);
    Chiang et al. 2020, Certified Defenses for Adversarial Patches, section 4 (random places).

    Example:
        >>> import torch
        >>> from lirpa_multinorm import PerturbationGeometric
        >>> term = SplitTerm(PerturbationGeometric(rotation=30), ratio=0.1)
        >>> x = torch.rand(2, 1, 8, 8)
        >>> region = term.around(x, x)
        >>> tuple(region.center.shape)
        (2, 1, 8, 8)
    """

    perturbation: SplitPerturbation
    ratio: float = 0.05
    shrink: float = 0.0
    scale: float = 1.0
    candidates: int = 1
    #: What a :class:`~lirpa_multinorm.LossTerm` has and this has not.
    region: ClassVar[str] = "part"
    bounding: ClassVar[str] = "IBP"
    mix: ClassVar[None] = None
    crown_share: ClassVar[float] = 0.0
    needs_attack: ClassVar[bool] = False
    is_estimate: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not isinstance(self.perturbation, SplitPerturbation):
            raise InvalidArgumentError(
                f"perturbation={self.perturbation!r} is no set of transforms or patches; a ball "
                "has a LossTerm"
            )
        for name, positive in (("ratio", True), ("shrink", False), ("scale", False)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise InvalidArgumentError(f"{name}={value!r} must be a number")
            if not 0 <= value <= 1 or (positive and value == 0):
                raise InvalidArgumentError(
                    f"{name}={value!r} must lie in {'(' if positive else '['}0, 1]"
                )
        count = self.candidates
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise InvalidArgumentError(f"candidates={count!r} must be a positive integer")

    def scaled(self, scale: float) -> SplitTerm:
        """Return the term at ``scale`` times its full size (annealing)."""
        now = min(self.scale * scale, 1.0)
        count = 1 + round((self.candidates - 1) * min(scale, 1.0))
        return dataclasses.replace(self, scale=now, candidates=count)

    def of_examples(self, examples: Tensor, x: Tensor) -> SplitTerm:
        """Return the term for some examples of a batch: the set is the same for all."""
        return self

    def around(self, x: Tensor, x_adv: Tensor, generator: Randomness = None) -> Region:
        """Return the box of a random part around each image."""
        draws = uniform(x.new_empty(len(x), self.perturbation.draws), generator)
        return self.perturbation.random_part(x, draws, self.ratio, self.scale)

    def per_example(
        self, bound: Tensor, point: Tensor | None, interval: Tensor | None = None
    ) -> Tensor:
        """Return one loss per example, of margins (B, K - 1)."""
        return margin_cross_entropy(bound)
