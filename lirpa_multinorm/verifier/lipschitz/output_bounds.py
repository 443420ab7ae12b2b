"""Lower bounds of a network's outputs by Lipschitz constants."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ...perturbations import Region
from ..relu_network import ReluNetwork
from .constants import LipschitzConstants, l1_radius, l2_radius

_ROUNDING = 1 + 1e-9  # of the sums in float64


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
    x = torch.cat([region.center for region in regions])
    moves, reach, reach_1 = constants.moves(regions), l2_radius(regions), l1_radius(regions)
    flat, paired = v.double().flatten(0, 1), constants.network
    _, at_input, at_activations = paired.maps(len(flat), flat.new_zeros((), device=x.device)).pull(
        len(paired.shapes) - 1, flat.view(len(flat), *paired.shapes[-1])
    )
    value = (v * network.layers(x.double())[-1].flatten(1).unsqueeze(1)).sum(2)
    reach, reach_1 = reach.double() * _ROUNDING, reach_1.double() * _ROUNDING
    if at_input is not None:
        in_l2, in_l1 = (
            torch.linalg.vector_norm(at_input.flatten(1), dual, dim=1).view_as(value)
            for dual in (2, math.inf)
        )
        value = value - torch.fmin(reach.unsqueeze(1) * in_l2, reach_1.unsqueeze(1) * in_l1)
    for matrix, move in zip(at_activations, moves.activations):
        if matrix is not None:
            length = torch.linalg.vector_norm(matrix.flatten(1), dim=1).view_as(value)
            value = value - move.double().unsqueeze(1) * _ROUNDING * length
    return rounded_down(value, v)


def rounded_down(value: Tensor, like: Tensor) -> Tensor:
    """Return values in the type of another tensor, none of them larger."""
    rounded = value.to(like.dtype)
    lower = torch.nextafter(rounded, rounded.new_tensor(-math.inf))
    return torch.where(rounded.double() > value, lower, rounded)
