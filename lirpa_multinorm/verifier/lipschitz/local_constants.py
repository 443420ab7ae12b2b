"""Lipschitz constants of a network's outputs on sets, from the signs of its neurons there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..problem import IntermediateBounds
from ..relu_network import ReluNetwork, added
from .constants import LipschitzConstants, layer_matrices
from .mixed_norms import mixed_norm

_MAX_ELEMENTS = 1 << 22  # of all matrices of a network whose norms are calculated for each example
_STABLE = 1e-5  # of the ends of an interval: how far from zero a stable neuron's must be
_ROUNDING = 1 + 1e-6  # of numbers of Python in a model, and of the sums of norms


class Slopes(NamedTuple):
    """The slopes that the ReLUs of a layer can have on B sets: from ``least`` to ``most``, (B, n).

    Args:
        least: 1 where a neuron is positive on all of the set, else 0.
        most: 0 where it is negative on all of the set, else 1.
    """

    least: Tensor
    most: Tensor


def slopes_on(network: ReluNetwork, x: Tensor, hidden: IntermediateBounds | None) -> list[Slopes]:
    """Return the slopes of all ReLUs on sets around inputs.

    A neuron counts as stable where its interval is away from zero by more than rounding.

    Args:
        network: The network.
        x: The inputs, (B, ...).
        hidden: Intermediate bounds on the sets; None: any slopes.
    """
    if hidden is None:
        shapes = [(len(x), shape.numel()) for shape in network.shapes[:-1]]
        return [Slopes(x.new_zeros(shape), x.new_ones(shape)) for shape in shapes]
    slopes = []
    for lower, upper in zip(hidden.lower, hidden.upper):
        slack = _STABLE * (lower.abs() + upper.abs())
        slopes.append(Slopes((lower > slack).to(x), (upper >= -slack).to(x)))
    return slopes


@torch.no_grad()
def local_lipschitz_constants(
    network: ReluNetwork,
    constants: LipschitzConstants,
    slopes: Sequence[Slopes],
    v: Tensor,
    norms: tuple[float, float],
) -> Tensor:
    """Return bounds of how far ``v . f`` moves where the input moves by 1 inside a set.

    The smallest of three bounds of the Jacobian's norm over all slopes that the ReLUs can have: the
    norm of an interval of Jacobians, the sum ``sum_i ||v A_i|| L_i`` with ``L_j = ||A_j|| + sum
    over i < j of ||A_ji|| L_i`` over neurons that can be positive, and the same sum of the whole
    input space with each MinMax as one activation.

    Args:
        network: The network.
        constants: Its Lipschitz constants.
        slopes: The slopes of each layer on B sets.
        v: Linear forms of the output, (B, S, K).
        norms: The norms of the input's move, and of the forms' move.

    Returns:
        Constants (B,) in float64, rounded up.

    Source: Zhang et al. 2019, "RecurJac" (intervals of Jacobians); Szegedy et al. 2014.
    """
    v = v.double()
    centers, radii = _interval_jacobian(network, slopes, v)
    everywhere = constants.of(2).activations
    by_matrices = _by_matrices(network, slopes, v, norms)
    constants_of = []
    for example, forms in enumerate(v):
        bounds = [mixed_norm(centers[example], radii[example], *norms)]
        bounds.append(_sum_of_norms(constants, everywhere, forms, norms))
        if by_matrices is not None:
            bounds.append(by_matrices[example])
        constants_of.append(min(bounds) * _ROUNDING)
    return torch.tensor(constants_of, dtype=torch.float64, device=v.device)


def _interval_jacobian(
    network: ReluNetwork, slopes: Sequence[Slopes], v: Tensor
) -> tuple[Tensor, Tensor]:
    """Return centre and radius of the Jacobians of linear forms, (B, S, n) each, in float64."""
    B, S, K = v.shape
    flat, depth = v.reshape(B * S, K), len(network.shapes) - 1
    maps = network.maps(len(flat), flat)
    spread = network.spread_maps(len(flat), flat)
    _, center, centers = maps.pull(depth, flat.view(-1, *network.shapes[depth]))
    radius: Tensor | None = None
    radii: list[Tensor | None] = [None] * depth
    for layer in range(depth - 1, -1, -1):
        middle = centers[layer]
        if middle is None:
            continue
        around = radii[layer]
        around = torch.zeros_like(middle) if around is None else around
        lower, upper = ((middle + sign * around).flatten(1) for sign in (-1, 1))
        least, most = (slope.double().repeat_interleave(S, 0) for slope in slopes[layer])
        lower, upper = (
            torch.where(lower > 0, least, most) * lower,
            torch.where(upper > 0, most, least) * upper,
        )
        shape = (-1, *network.shapes[layer])
        _, form, forms = maps.pull(layer, ((lower + upper) / 2).view(shape))
        center, centers = added(center, form), [*map(added, centers, forms), *centers[len(forms) :]]
        _, form, forms = spread.pull(layer, ((upper - lower) / 2).view(shape))
        radius, radii = added(radius, form), [*map(added, radii, forms), *radii[len(forms) :]]
    zeros = v.new_zeros(B, S, network.input_shape.numel())
    return (
        zeros if center is None else center.reshape(zeros.shape),
        zeros if radius is None else radius.reshape(zeros.shape),
    )


def _sum_of_norms(
    constants: LipschitzConstants, activations: list[float], v: Tensor, norms: tuple[float, float]
) -> float:
    """Return the sum of norms on the whole input space, from l_2 constants of the activations."""
    norm_in, norm_out = norms
    network = constants.network
    _, at_input, at_activations = network.maps(len(v), v).pull(
        len(network.shapes) - 1, v.view(-1, *network.shapes[-1])
    )
    # How far the input moves in l_2 where it moves by 1.
    reach = math.sqrt(network.input_shape.numel()) if norm_in > 2 else 1.0
    total = 0.0 if at_input is None else mixed_norm(at_input.flatten(1), None, *norms)
    if norm_in == 1:
        activations = constants.of(1).activations
    for matrix, length in zip(at_activations, activations):
        if matrix is not None:
            total += mixed_norm(matrix.flatten(1), None, 2, norm_out) * length * reach
    return total


def _by_matrices(
    network: ReluNetwork, slopes: Sequence[Slopes], v: Tensor, norms: tuple[float, float]
) -> list[float] | None:
    """Return the sums of norms over the neurons that can be positive; None of large networks."""
    sizes = [network.input_shape.numel(), *[shape.numel() for shape in network.shapes]]
    if sum(m * sum(sizes[:layer]) for layer, m in enumerate(sizes)) > _MAX_ELEMENTS:
        return None
    like = v.new_zeros(())
    matrices = [layer_matrices(network, layer, like) for layer in range(len(network.shapes))]
    totals = []
    for example, forms in enumerate(v):
        active = [slope.most[example] > 0 for slope in slopes]
        lengths: list[float] = []
        for layer, at in enumerate(matrices[:-1]):
            rows = [None if matrix is None else matrix[active[layer]] for matrix in at]
            lengths.append(_length(rows, active, lengths, (norms[0], 2)))
        rows = [None if matrix is None else forms @ matrix for matrix in matrices[-1]]
        totals.append(_length(rows, active, lengths, norms))
    return totals


def _length(
    matrices: list[Tensor | None],
    active: list[Tensor],
    lengths: list[float],
    norms: tuple[float, float],
) -> float:
    """Return how far a layer moves, from its matrices in the input and in the layers before."""
    at_input, *at_relus = matrices
    total = 0.0 if at_input is None else mixed_norm(at_input, None, *norms)
    for matrix, neurons, length in zip(at_relus, active, lengths):
        if matrix is not None:
            total += mixed_norm(matrix[:, neurons], None, 2, norms[1]) * length
    return total
