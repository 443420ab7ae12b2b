"""Lipschitz constants of a ReLU network, layer by layer, and how far layers move on sets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ...perturbations import Region
from .. import network
from ..relu_network import ReluNetwork
from .operator_norms import spectral_norm
from .steps import first_lengths, spread_norms, step_rows

_MAX_ELEMENTS = 1 << 25  # of a matrix between two layers that is written out
_MAX_PRODUCTS = 1 << 33  # of such a matrix and its transpose
_CHUNK = 1 << 22  # elements pulled back at once
_ROUNDING = 1 + 1e-6  # of numbers of Python in a model, and of the sums of norms
_RADIUS = 1 + 2 * torch.finfo(torch.float32).eps  # of radii in float32
_UNIT = torch.finfo(torch.float64).eps / 2


class LipschitzBounds(NamedTuple):
    """How far layers can move when the input moves by at most 1.

    Args:
        layers: Per layer a bound of how far its value moves in l_2.
        neurons: Per layer the same for each of its neurons, (n,).
        activations: Per ReLU or MinMax a bound of how far its value moves in l_2.
    """

    layers: list[float]
    neurons: list[Tensor]
    activations: list[float]

    def on(self, reach: Tensor) -> LayerMoves:
        """Return how far layers move where inputs move by as much as ``reach`` (B,)."""
        return LayerMoves(
            [reach * length for length in self.layers],
            [reach.unsqueeze(1) * gain for gain in self.neurons],
            [reach * length for length in self.activations],
        )


class LayerMoves(NamedTuple):
    """How far layers can move on sets around B inputs.

    Args:
        layers: Per layer a bound of how far its value moves in l_2, (B,).
        neurons: Per layer the same for each of its neurons, (B, n).
        activations: Per ReLU or MinMax a bound of how far its value moves in l_2, (B,).
    """

    layers: list[Tensor]
    neurons: list[Tensor]
    activations: list[Tensor]


class LipschitzConstants:
    """A network's Lipschitz constants, each calculated when it is first asked for.

    Args:
        relus: The network.
        like: Tensor of the type and on the device of its weights.
    """

    def __init__(self, relus: ReluNetwork, like: Tensor) -> None:
        self._relus, self._like = relus, like
        self._bounds: dict[float, LipschitzBounds] = {}
        #: The network with each MinMax as one activation.
        self.network = relus.paired()

    def of(self, norm: float) -> LipschitzBounds:
        """Return the constants for an input that moves by 1 in l_2 or l_1."""
        if norm not in self._bounds:
            self._bounds[norm] = lipschitz_bounds(self._relus, self._like, norm)
        return self._bounds[norm]

    def moves(self, regions: Sequence[Region]) -> LayerMoves:
        """Return how far layers move on regions.

        An l_1 ball has the smaller of the bounds by its l_1 radius and by its l_2 radius.

        Args:
            regions: (centre, set) pairs, together B examples.
        """
        moves = self.of(2).on(l2_radius(regions))
        reach = l1_radius(regions)
        if bool(torch.isfinite(reach).any()):
            # fmin, since infinity times zero is NaN, of sets that are no l_1 ball.
            pairs = zip(moves, self.of(1).on(reach))
            moves = LayerMoves(*(list(map(torch.fmin, *both)) for both in pairs))
        return moves


def l2_radius(regions: Sequence[Region]) -> Tensor:
    """Return the radius of an l_2 ball around each set, (B,), rounded up."""
    radii = [region.perturbation.l2_radius(region.center) for region in regions]
    return torch.cat(radii) * _RADIUS


def l1_radius(regions: Sequence[Region]) -> Tensor:
    """Return the radius of each l_1 ball, (B,); infinity for the other sets."""
    radii = []
    for region in regions:
        radius = region.perturbation.radius(region.center)
        is_l1 = region.perturbation.norm == 1
        radii.append(radius if is_l1 else torch.full_like(radius, math.inf))
    return torch.cat(radii) * _RADIUS


def lipschitz_bounds(relus: ReluNetwork, like: Tensor, norm: float = 2) -> LipschitzBounds:
    """Return Lipschitz constants of every layer before the output, and of its neurons.

    ``L_j = ||A_j|| + sum over i < j of ||A_ji|| L_i`` with proved spectral norms, which are nearly
    exact, where the matrices can be written out, since ReLUs and MinMax do not enlarge distances;
    else step by step, with :func:`convolution_norm` and Schur's bound. All of it is calculated in
    float64 and rounded up. For an input that moves in l_1, ``||A_j||`` is the largest l_2 norm of a
    column.

    Args:
        relus: The network.
        like: Tensor of the type and on the device of its weights.
        norm: The norm that the input moves by 1 in, 2 or 1. Layers are measured in l_2.

    Returns:
        The constants.

    Source: Szegedy et al. 2014, section 4.3; with the last layer's row differences as in Tsuzuku et
        al. 2018.
    """
    constants, measured = LipschitzBounds([], [], []), relus.paired()
    for layer, shape in enumerate(measured.shapes[:-1]):
        sides = [
            (shape.numel(), before.numel())
            for before in (measured.input_shape, *measured.shapes[:layer])
        ]
        small = all(m * n <= _MAX_ELEMENTS and m * n * min(m, n) <= _MAX_PRODUCTS for m, n in sides)
        bound = _written_out if small else _step_by_step
        length, rows = bound(measured, layer, constants.activations, like, norm)
        constants.activations.append(length * _ROUNDING)
        # A MinMax is a ReLU of the difference of two values, whose l_2 norm is at most that of the
        # two times the root of 2.
        is_pair = measured.shapes[layer] != relus.shapes[layer]
        longest = length * math.sqrt(2) if is_pair else length
        constants.layers.append(longest * _ROUNDING)
        constants.neurons.append((rows.clamp(max=longest) * _ROUNDING).to(like).flatten())
    return constants


def _written_out(
    relus: ReluNetwork, layer: int, layers: list[float], like: Tensor, norm: float
) -> tuple[float, Tensor]:
    """Add up the norms of the matrices between the earlier ReLUs and a layer.

    The neurons of a MinMax are the differences of its pairs.
    """
    graph, target = relus.graph, relus.graph.layers[layer]
    is_pair = graph.steps[target].operator == "pair"
    length, rows = 0.0, torch.zeros((), dtype=torch.float64, device=like.device)
    matrices = zip([0, *graph.relus], layer_matrices(relus, layer, like), [1.0, *layers])
    for source, matrix, before in matrices:
        if matrix is None:
            continue
        error = _matrix_error(graph, target, source)
        neurons = torch.sub(*matrix.chunk(2)) if is_pair else matrix
        if norm == 1 and source == 0:
            length += before * (float(torch.linalg.vector_norm(matrix, dim=0).max()) + error)
            rows = rows + before * (torch.linalg.vector_norm(neurons, math.inf, dim=1) + error)
        else:
            length += before * (spectral_norm(matrix) + error)
            rows = rows + before * (torch.linalg.vector_norm(neurons, 2, dim=1) + error)
    size = relus.shapes[layer].numel() // (2 if is_pair else 1)
    return length, rows.expand(size)


def _matrix_error(graph: network.ModelGraph, target: int, source: int) -> float:
    """Return how far a matrix in float64 can be from the exact one, in norm and in its rows.

    A product of matrices is off by as many units of the product of their absolute values as
    numbers are added up in a row, which are at most all numbers between.
    """
    between = graph.needed([target], [0, *graph.relus])
    terms = sum(
        graph.steps[before].shape.numel() for i in between for before in graph.steps[i].sources
    )
    rows, columns = spread_norms(graph, target, source, [0, *graph.relus])
    return 4 * (terms + len(between)) * _UNIT * (rows + columns)


def _step_by_step(
    relus: ReluNetwork, depth: int, layers: list[float], like: Tensor, norm: float
) -> tuple[float, Tensor]:
    """Multiply and add the norms of the steps between the earlier ReLUs and a layer."""
    graph, target = relus.graph, relus.graph.layers[depth]
    lengths = dict(zip([0, *graph.relus], [1.0, *layers]))
    first = first_lengths(graph) if norm == 1 else {}
    length, rows = step_rows(graph, target, lengths, first)
    if graph.steps[target].operator == "pair":
        size = relus.shapes[depth].numel() // 2
        each = length * math.sqrt(2)
        return length, torch.full((size,), each, dtype=torch.float64, device=graph.like.device)
    return length, rows


def layer_matrices(relus: ReluNetwork, layer: int, like: Tensor) -> list[Tensor | None]:
    """Return the matrices of a layer in the input and each ReLU before it, in float64.

    A matrix is None where the layer does not depend on the input or the ReLU.
    """
    chunks = [matrices for _, matrices in relus.rows(layer, like.double(), _CHUNK)]
    return [
        None if rows[0] is None else torch.cat([part for part in rows if part is not None])
        for rows in zip(*chunks)
    ]
