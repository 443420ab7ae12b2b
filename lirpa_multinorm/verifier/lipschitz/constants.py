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
from .operator_norms import column_norm, layer_norm, layer_weight, spectral_norm, step_norm

_MAX_ELEMENTS = 1 << 25  # of a matrix between two layers that is written out
_MAX_SIDE = 4096  # the smaller side of such a matrix
_CHUNK = 1 << 22  # elements pulled back at once
_ROUNDING = 1 + 1e-5  # of matrices computed in float32


class LipschitzBounds(NamedTuple):
    """How far layers can move when the input moves by at most 1.

    Args:
        layers: Per layer a bound of how far its value moves in l_2.
        neurons: Per layer the same for each of its neurons, (n,).
    """

    layers: list[float]
    neurons: list[Tensor]


class LayerMoves(NamedTuple):
    """How far layers can move on sets around B inputs.

    Args:
        layers: Per layer a bound of how far its value moves in l_2, (B,).
        neurons: Per layer the same for each of its neurons, (B, n).
    """

    layers: list[Tensor]
    neurons: list[Tensor]


class LipschitzConstants:
    """A network's Lipschitz constants, each calculated when it is first asked for.

    Args:
        relus: The network.
        like: Tensor of the type and on the device of its weights.
    """

    def __init__(self, relus: ReluNetwork, like: Tensor) -> None:
        self._relus, self._like = relus, like
        self._bounds: dict[float, LipschitzBounds] = {}

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
        reach = torch.cat([region.perturbation.l2_radius(region.center) for region in regions])
        layers = [reach * length for length in self.of(2).layers]
        neurons = [reach.unsqueeze(1) * gain for gain in self.of(2).neurons]
        reach = l1_radius(regions)
        if bool(torch.isfinite(reach).any()):
            # fmin, since infinity times zero is NaN, of sets that are no l_1 ball.
            layers = [
                torch.fmin(move, reach * length) for move, length in zip(layers, self.of(1).layers)
            ]
            neurons = [
                torch.fmin(move, reach.unsqueeze(1) * gain)
                for move, gain in zip(neurons, self.of(1).neurons)
            ]
        return LayerMoves(layers, neurons)


def l1_radius(regions: Sequence[Region]) -> Tensor:
    """Return the radius of each l_1 ball, (B,); infinity for the other sets."""
    radii = []
    for region in regions:
        radius = region.perturbation.radius(region.center)
        is_l1 = region.perturbation.norm == 1
        radii.append(radius if is_l1 else torch.full_like(radius, math.inf))
    return torch.cat(radii)


def lipschitz_bounds(relus: ReluNetwork, like: Tensor, norm: float = 2) -> LipschitzBounds:
    """Return Lipschitz constants of every layer before the output, and of its neurons.

    ``L_j = ||A_j|| + sum over i < j of ||A_ji|| L_i`` with exact spectral norms where the matrices
    can be written out, since ReLUs do not enlarge distances; else step by step, with
    :func:`convolution_norm` and Schur's bound. For an input that moves in l_1, ``||A_j||`` is the
    largest l_2 norm of a column.

    Args:
        relus: The network.
        like: Tensor of the type and on the device of its weights.
        norm: The norm that the input moves by 1 in, 2 or 1. Layers are measured in l_2.

    Returns:
        The constants.

    Source: Szegedy et al. 2014, section 4.3; with the last layer's row differences as in Tsuzuku et
        al. 2018.
    """
    layers: list[float] = []
    neurons: list[Tensor] = []
    for layer, shape in enumerate(relus.shapes[:-1]):
        sides = [
            (shape.numel(), before.numel()) for before in (relus.input_shape, *relus.shapes[:layer])
        ]
        small = all(m * n <= _MAX_ELEMENTS and min(m, n) <= _MAX_SIDE for m, n in sides)
        length, rows = (_written_out if small else _step_by_step)(relus, layer, layers, like, norm)
        layers.append(length * _ROUNDING)
        neurons.append((rows * _ROUNDING).to(like).flatten())
    return LipschitzBounds(layers, neurons)


def _written_out(
    relus: ReluNetwork, layer: int, layers: list[float], like: Tensor, norm: float
) -> tuple[float, Tensor]:
    """Add up the norms of the matrices between the earlier ReLUs and a layer."""
    length, size = 0.0, relus.shapes[layer].numel()
    rows = torch.zeros(size, dtype=torch.float64, device=like.device)
    for source, (matrix, before) in enumerate(zip(_matrices(relus, layer, like), [1.0, *layers])):
        if matrix is None:
            continue
        if norm == 1 and source == 0:
            length += before * float(torch.linalg.vector_norm(matrix, dim=0).max())
            rows += before * torch.linalg.vector_norm(matrix, math.inf, dim=1)
        else:
            length += before * spectral_norm(matrix)
            rows += before * torch.linalg.vector_norm(matrix, 2, dim=1)
    return length, rows


def _step_by_step(
    relus: ReluNetwork, depth: int, layers: list[float], like: Tensor, norm: float
) -> tuple[float, Tensor]:
    """Multiply and add the norms of the steps between the earlier ReLUs and a layer."""
    graph, target = relus.graph, relus.graph.layers[depth]
    lengths = dict(zip([0, *graph.relus], [1.0, *layers]))
    first = _first_lengths(graph) if norm == 1 else {}
    length, shape = _length(graph, target, lengths, first), relus.shapes[depth]
    weight, layer = _layer_weight(graph, target, lengths), _layer(graph, target, lengths)
    if weight is None:
        return length, torch.full(shape, length, dtype=torch.float64, device=like.device)
    if layer in first:
        rows = weight.flatten(1).abs().amax(1) * first[layer]
    else:
        source_length = lengths[_layer_source(graph, target, lengths)]
        rows = torch.linalg.vector_norm(weight.flatten(1), dim=1) * source_length
    # The neurons of a Linear layer are in the last dimension.
    is_linear = graph.steps[layer].operator == "linear"
    rows = rows.view(-1, *[1] * (0 if is_linear else len(shape) - 1)).expand(shape)
    return min(length, float(torch.linalg.vector_norm(rows))), rows.clamp(max=length)


def _first_lengths(graph: network.ModelGraph) -> dict[int, float]:
    """Return how far l_1 distances grow in front of each first layer, by the layer's index.

    First layers see the input through steps on each element only.
    """
    return {
        index: math.prod(step_norm(graph, before, 0) for before in layer.chain)
        for index, layer in network.first_layers(graph).items()
    }


def _length(
    graph: network.ModelGraph, index: int, lengths: dict[int, float], first: dict[int, float]
) -> float:
    """Return how far a step's value moves, from the ``lengths`` of earlier steps.

    The lengths of the steps between are filled in on the way.
    """
    if index not in lengths:
        weight, layer = _layer_weight(graph, index, lengths), _layer(graph, index, lengths)
        if weight is not None and layer in first:
            lengths[index] = first[layer] * column_norm(graph.steps[layer], weight)
        elif weight is not None:
            before = _length(graph, _layer_source(graph, index, lengths), lengths, first)
            lengths[index] = before * layer_norm(graph.steps[layer], weight)
        else:
            step = graph.steps[index]
            lengths[index] = sum(
                _length(graph, source, lengths, first) * step_norm(graph, index, which)
                for which, source in enumerate(step.sources)
            )
    return lengths[index]


def _layer(graph: network.ModelGraph, index: int, lengths: dict[int, float]) -> int:
    """Return the index of the layer that a BatchNorm is taken together with, or the given one."""
    step = graph.steps[index]
    if step.operator != "batch_norm" or step.sources[0] in lengths:
        return index
    before = graph.steps[step.sources[0]]
    by_channel = before.operator in ("conv1d", "conv2d") or (
        before.operator == "linear" and len(before.shape) == 2
    )
    return step.sources[0] if by_channel else index


def _layer_source(graph: network.ModelGraph, index: int, lengths: dict[int, float]) -> int:
    return graph.steps[_layer(graph, index, lengths)].sources[0]


def _layer_weight(
    graph: network.ModelGraph, index: int, lengths: dict[int, float]
) -> Tensor | None:
    """Return a layer's weight in float64, with a BatchNorm behind it taken in; None of others."""
    inner = _layer(graph, index, lengths)
    weight = layer_weight(graph.steps[inner])
    if weight is None or inner == index:
        return weight
    options = graph.steps[index].arguments
    scale = network.batch_norm_scale(options["weight"], options["running_var"], options["eps"])
    return weight * scale.double().view(-1, *[1] * (weight.ndim - 1))


def _matrices(relus: ReluNetwork, layer: int, like: Tensor) -> list[Tensor | None]:
    """Return the matrices of a layer in the input and each ReLU before it, in float64.

    A matrix is None where the layer does not depend on the input or the ReLU.
    """
    chunks = [
        [None if matrix is None else matrix.double() for matrix in matrices]
        for _, matrices in relus.rows(layer, like, _CHUNK)
    ]
    return [None if rows[0] is None else torch.cat(rows) for rows in zip(*chunks)]
