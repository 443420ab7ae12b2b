"""A bounding problem: a network, regions at its input and bounds of its hidden layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from ..perturbations import Region, take_rows
from .relu_network import LayeredNetwork


class IntermediateBounds(NamedTuple):
    """Bounds of the layers in front of the ReLUs: an interval and an l_2 ball of each.

    Args:
        lower: Lower bounds of each layer, (R, n) each.
        upper: Upper bounds of each layer, (R, n) each.
        center: Centres of the balls, (R, n) each.
        radius: Radii of the balls, (R,) each.
    """

    lower: list[Tensor]
    upper: list[Tensor]
    center: list[Tensor]
    radius: list[Tensor]

    def rows(self, index: Tensor) -> IntermediateBounds:
        """Return the bounds of some rows."""
        return IntermediateBounds._make(
            [[tensor.index_select(0, index) for tensor in field] for field in self]
        )

    def before(self, layer: int) -> IntermediateBounds:
        """Return the bounds of the layers before the given one."""
        return IntermediateBounds._make([field[:layer] for field in self])

    def split(self, splits: list[Tensor]) -> IntermediateBounds:
        """Return the bounds where neurons are positive (1) or negative (-1) by ``splits``."""
        lower = [
            bound.clamp(min=0) + bound.clamp(max=0) * (sign <= 0)
            for bound, sign in zip(self.lower, splits)
        ]
        upper = [
            bound.clamp(max=0) + bound.clamp(min=0) * (sign >= 0)
            for bound, sign in zip(self.upper, splits)
        ]
        return self._replace(lower=lower, upper=upper)


class Problem(NamedTuple):
    """The network and the regions that linear forms are to be bounded on.

    Args:
        network: The network, or a receptive field that stands in for it.
        regions: (centre, set) pairs; together they have R examples.
        hidden: Intermediate bounds of the hidden layers on each example's set; of the first
            layers only, if linear forms of a hidden layer are to be bounded.
    """

    network: LayeredNetwork
    regions: Sequence[Region]
    hidden: IntermediateBounds

    def rows(self, index: Tensor) -> Problem:
        """Return the problem of some examples; ``index`` must rise if there are several regions."""
        return Problem(self.network, take_rows(self.regions, index), self.hidden.rows(index))
