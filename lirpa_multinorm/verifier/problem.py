"""What is to be bounded: a network, sets at its input, and what is known of its hidden layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from ..perturbations import Region, take_rows
from .relu_network import ReluNetwork


class IntermediateBounds(NamedTuple):
    """Where the layers in front of the ReLUs lie: each in an interval and in an l_2 ball.

    Args:
        lower: Lower ends of the interval of each layer, (R, n) each.
        upper: Upper ends.
        center: Centres of the balls.
        radius: Their radii, (R,) each.
    """

    lower: list[Tensor]
    upper: list[Tensor]
    center: list[Tensor]
    radius: list[Tensor]

    def rows(self, index: Tensor) -> IntermediateBounds:
        """Return the sets of some rows."""
        return IntermediateBounds(
            *[[one.index_select(0, index) for one in field] for field in self]
        )

    def before(self, layer: int) -> IntermediateBounds:
        """Return the sets of the layers before one."""
        return IntermediateBounds(*[field[:layer] for field in self])

    def split(self, splits: list[Tensor]) -> IntermediateBounds:
        """Return the sets' parts where neurons are positive (1) or negative (-1) by ``splits``."""
        lower = [
            one.clamp(min=0) + one.clamp(max=0) * (sign <= 0)
            for one, sign in zip(self.lower, splits)
        ]
        upper = [
            one.clamp(max=0) + one.clamp(min=0) * (sign >= 0)
            for one, sign in zip(self.upper, splits)
        ]
        return self._replace(lower=lower, upper=upper)


class Problem(NamedTuple):
    """Linear forms of which network are to be bounded where.

    Args:
        network: The network, or a window that stands in for it.
        regions: (centre, set) pairs; together they have R examples.
        hidden: What is known of the hidden layers on each example's set; of the first ones, if
            linear forms of a hidden layer are to be bounded.
    """

    network: ReluNetwork
    regions: Sequence[Region]
    hidden: IntermediateBounds

    def rows(self, index: Tensor) -> Problem:
        """Return the problem of some examples; ``index`` must rise if there are several regions."""
        return Problem(self.network, take_rows(self.regions, index), self.hidden.rows(index))
