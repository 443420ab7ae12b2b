"""CROWN of ReLU networks, without gradients: as many linear forms at once as memory holds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ...perturbations import PerturbationStack, Region
from ..problem import IntermediateBounds
from ..relu_network import ReluNetwork, propagated_backward
from .relu import crown_slopes


class CrownSlopes(NamedTuple):
    """CROWN's relaxation of the ReLUs: ``v . ReLU(z) >= (v+ below + v- above) . z + v- .

    Lift`` on an interval.

    Args:
        below: Slopes for positive coefficients, (R, n) for each ReLU layer.
        above: Slopes for negative ones.
        lift: How far the upper line lies above zero at z = 0.
    """

    below: list[Tensor]
    above: list[Tensor]
    lift: list[Tensor]

    @classmethod
    def of(cls, hidden: IntermediateBounds, layers: int) -> CrownSlopes:
        """Return the relaxation of the first layers on their intervals."""
        ends = list(zip(hidden.lower[:layers], hidden.upper[:layers]))
        below = [crown_slopes(torch.ones_like(low), low, high) for low, high in ends]
        above, lift = zip(*[chord(*one) for one in ends]) if ends else ((), ())
        return cls(below, list(above), list(lift))

    def rows(self, index: Tensor) -> CrownSlopes:
        """Return the relaxation of some examples."""
        return CrownSlopes(*[[one.index_select(0, index) for one in field] for field in self])


def chord(lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """Return (slope, lift) of the line above ReLUs on intervals.

    ``ReLU(z) <= slope z + lift``, exact where stable.
    """
    slope = crown_slopes(-torch.ones_like(lower), lower, upper)
    return slope, torch.where(upper > 0, -slope * lower.clamp(max=0), 0.0)


@torch.no_grad()
def crown_bounds(
    network: ReluNetwork, regions: Sequence[Region], slopes: CrownSlopes, v: Tensor
) -> Tensor:
    """Return lower bounds of linear forms of a network's layer, one linear form per example.

    Args:
        network: The network, or a window of it.
        regions: (centre, set) pairs; together they have R examples.
        slopes: Of the layers before the one in question, one row per example.
        v: The linear forms, (R, n).

    Returns:
        Lower bounds, (R,).

    Source: Zhang et al. 2018 (CROWN), with the adaptive lower slope.
    """

    def relax(layer: int, v: Tensor) -> tuple[Tensor, Tensor]:
        """Relax a layer with the slopes that the signs call for."""
        below, above, lift = (field[layer] for field in slopes)
        positive, negative = v.clamp(min=0), v.clamp(max=0)
        return torch.addcmul(positive * below, negative, above), torch.linalg.vecdot(negative, lift)

    depth, stack = len(slopes.below), PerturbationStack(regions)
    value, at_input = propagated_backward(
        network.maps(len(v), v, depth), network.shapes[: depth + 1], v, relax
    )
    if at_input is None:
        return value
    return value + stack.concretize(stack.centers(), at_input.unsqueeze(1), sign=-1).squeeze(1)
