"""CROWN of ReLU networks, without gradients: as many linear forms at once as memory holds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ...perturbations import PerturbationStack, Region
from ..problem import IntermediateBounds
from ..relu_network import LayeredNetwork, propagated_backward
from .relu import chord, lower_slope


class CrownSlopes(NamedTuple):
    """CROWN's relaxation of the ReLUs on intervals.

    ``v . ReLU(z) >= (v+ below + v- above) . z + v- . lift``, with v+ and v- the positive and the
    negative coefficients.

    Args:
        below: Slopes for positive coefficients, (R, n) for each ReLU layer.
        above: Slopes for negative coefficients, (R, n) for each ReLU layer.
        lift: How far the upper line lies above zero at z = 0, (R, n) for each ReLU layer.
    """

    below: list[Tensor]
    above: list[Tensor]
    lift: list[Tensor]

    @classmethod
    def of(cls, hidden: IntermediateBounds, layers: int) -> CrownSlopes:
        """Return the relaxation of the first layers on their intervals."""
        return cls.on(list(zip(hidden.lower[:layers], hidden.upper[:layers])))

    @classmethod
    def on(cls, intervals: Sequence[tuple[Tensor, Tensor]]) -> CrownSlopes:
        """Return the relaxation on (lower, upper) of each layer."""
        below = [lower_slope(*interval) for interval in intervals]
        chords = [chord(*interval) for interval in intervals]
        return cls(below, [slope for slope, _ in chords], [lift for _, lift in chords])

    def rows(self, index: Tensor) -> CrownSlopes:
        """Return the relaxation of some examples."""
        return CrownSlopes(*[[tensor.index_select(0, index) for tensor in field] for field in self])

    def relax(self, layer: int, v: Tensor) -> tuple[Tensor, Tensor]:
        """Relax a layer with the slopes that the signs of its coefficients call for."""
        below, above, lift = (field[layer] for field in self)
        positive, negative = v.clamp(min=0), v.clamp(max=0)
        return torch.addcmul(positive * below, negative, above), torch.linalg.vecdot(negative, lift)


@torch.no_grad()
def crown_bounds(
    network: LayeredNetwork, regions: Sequence[Region], slopes: CrownSlopes, v: Tensor
) -> Tensor:
    """Return lower bounds of linear forms of a network's layer, one linear form per example.

    Args:
        network: The network, or a receptive field that stands in for it.
        regions: (centre, set) pairs; together they have R examples.
        slopes: The relaxation of the ReLUs before the layer, one row per example.
        v: The linear forms, (R, n).

    Returns:
        Lower bounds, (R,).

    Source: Zhang et al. 2018 (CROWN), with the adaptive lower slope.
    """
    depth, stack = len(slopes.below), PerturbationStack(regions)
    maps = network.maps(len(v), v, depth)
    value, at_input = propagated_backward(maps, network.shapes[: depth + 1], v, slopes.relax)
    if at_input is None:
        return value
    return value + stack.concretize(stack.centers(), at_input.unsqueeze(1), sign=-1).squeeze(1)
