"""Lower bounds of a network's outputs by Lipschitz constants."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ...perturbations import Region
from ..relu_network import ReluNetwork
from .constants import LipschitzConstants, l1_radius


@torch.no_grad()
def lipschitz_output_bounds(
    network: ReluNetwork, constants: LipschitzConstants, regions: Sequence[Region], v: Tensor
) -> Tensor:
    """Return ``v . f(x) - r ||v A|| - sum_i r_i ||v A_i||``.

    This is the clean value less what the last layer makes of the ball at the input and of those
    that the ReLUs move in.

    Args:
        network: The network.
        constants: The network's Lipschitz constants.
        regions: (centre, set) pairs, together B examples.
        v: Linear forms of the output, (B, S, K).

    Returns:
        Lower bounds, (B, S).
    """
    x, moves = torch.cat([region.center for region in regions]), constants.moves(regions)
    reach = torch.cat([region.perturbation.l2_radius(region.center) for region in regions])
    reach_1 = l1_radius(regions)
    flat = v.flatten(0, 1)
    _, at_input, at_relus = network.maps(len(flat), x).pull(
        len(network.shapes) - 1, flat.view(len(flat), *network.shapes[-1])
    )
    value = (v * network.layers(x)[-1].flatten(1).unsqueeze(1)).sum(2)
    if at_input is not None:
        in_l2, in_l1 = (
            torch.linalg.vector_norm(at_input.flatten(1), dual, dim=1).view_as(value)
            for dual in (2, math.inf)
        )
        value = value - torch.fmin(reach.unsqueeze(1) * in_l2, reach_1.unsqueeze(1) * in_l1)
    for matrix, move in zip(at_relus, moves.layers):
        if matrix is not None:
            length = torch.linalg.vector_norm(matrix.flatten(1), dim=1).view_as(value)
            value = value - move.unsqueeze(1) * length
    return value
