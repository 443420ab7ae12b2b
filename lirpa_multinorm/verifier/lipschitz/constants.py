"""Lipschitz constants of a ReLU network, layer by layer, and what they say of sets."""

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
    """A network's Lipschitz constants, each found when it is first asked for.

    Args:
        relus: The network.
        like: Tensor of the type and on the device of its weights.
    """

    def __init__(self, relus: ReluNetwork, like: Tensor) -> None:
        self._relus, self._like, self._found = relus, like, {}

    def of(self, norm: float) -> LipschitzBounds:
        """Return the constants for an input that moves by 1 in l_2 or l_1."""
        if norm not in self._found:
            self._found[norm] = lipschitz_bounds(self._relus, self._like, norm)
        return self._found[norm]

    def moves(self, regions: Sequence[Region]) -> LayerMoves:
        """Return how far layers move on regions.

        An l_1 ball has the smaller of its own bound and of its l_2 radius'.

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
    """Return the radius of every l_1 ball, (B,); infinity for the other sets."""
    radii = [region.perturbation.radius(region.center) for region in regions]
    return torch.cat(
        [
            radius if region.perturbation.norm == 1 else torch.full_like(radius, math.inf)
            for radius, region in zip(radii, regions)
        ]
    )


def lipschitz_bounds(relus: ReluNetwork, like: Tensor, norm: float = 2) -> LipschitzBounds:
    """Return Lipschitz constants of every layer before the output, and of its neurons.

    ``L_j = ||A_j|| + sum over i < j of ||A_ji|| L_i`` with exact spectral norms where the matrices
    can be written out, since ReLUs do not enlarge distances; else step by step, with
    :func:`convolution_norm` and Schur's bound. For an input that moves in l_1, ``||A_j||`` is the
    largest l_2 norm of a column.

    Args:
        relus: The network.
        like: Tensor of the type and on the device of its weights.
        norm: Which the input moves by 1 in, 2 or 1. Layers are measured in l_2.

    Returns:
        The constants.

    Source: Szegedy et al. 2014, section 4.3; with the last layer's row differences as in Tsuzuku et
        al. 2018.
    """
    layers, neurons = [], []
    for place, shape in enumerate(relus.shapes[:-1]):
        sides = [
            (shape.numel(), before.numel()) for before in (relus.input_shape, *relus.shapes[:place])
        ]
        small = all(m * n <= _MAX_ELEMENTS and min(m, n) <= _MAX_SIDE for m, n in sides)
        length, rows = (_written_out if small else _step_by_step)(relus, place, layers, like, norm)
        layers.append(length * _ROUNDING)
        neurons.append((rows * _ROUNDING).to(like).flatten())
    return LipschitzBounds(layers, neurons)


def _written_out(
    relus: ReluNetwork, place: int, layers: list[float], like: Tensor, norm: float
) -> tuple[float, Tensor]:
    length, rows = (
        0.0,
        torch.zeros(relus.shapes[place].numel(), dtype=torch.float64, device=like.device),
    )
    for which, (matrix, before) in enumerate(zip(_matrices(relus, place, like), [1.0, *layers])):
        if matrix is None:
            continue
        of_l1 = norm == 1 and which == 0
        length += before * (
            float(torch.linalg.vector_norm(matrix, dim=0).max()) if of_l1 else spectral_norm(matrix)
        )
        rows += before * torch.linalg.vector_norm(matrix, math.inf if of_l1 else 2, dim=1)
    return length, rows


def _step_by_step(
    relus: ReluNetwork, place: int, layers: list[float], like: Tensor, norm: float
) -> tuple[float, Tensor]:
    """Multiply and add the norms of the steps between the earlier ReLUs and a layer."""
    graph, target = relus.graph, relus.graph.layers[place]
    known, first = (
        dict(zip([0, *graph.relus], [1.0, *layers])),
        _first_lengths(graph) if norm == 1 else {},
    )
    length, shape = _length(graph, target, known, first), relus.shapes[place]
    weight, layer = _layer_weight(graph, target, known), _layer(graph, target, known)
    if weight is None:
        return length, torch.full(shape, length, dtype=torch.float64, device=like.device)
    rows = (
        weight.flatten(1).abs().amax(1) * first[layer]
        if layer in first
        else torch.linalg.vector_norm(weight.flatten(1), dim=1)
        * known[_layer_source(graph, target, known)]
    )
    # The neurons of a Linear layer are in the last dimension.
    is_linear = graph.steps[layer].operator == "linear"
    rows = rows.view(-1, *[1] * (0 if is_linear else len(shape) - 1)).expand(shape)
    return min(length, float(torch.linalg.vector_norm(rows))), rows.clamp(max=length)


def _first_lengths(graph: network.ModelGraph) -> dict[int, float]:
    """Return how far l_1 distances grow in front of each first layer, by its place.

    First layers see the input through steps on each element.
    """
    return {
        place: math.prod(step_norm(graph, before, 0) for before in layer.chain)
        for place, layer in network.first_layers(graph).items()
    }


def _length(
    graph: network.ModelGraph, place: int, known: dict[int, float], first: dict[int, float]
) -> float:
    """Return how far a step's value moves, from how far those before it do.

    ``known`` is filled in on the way.
    """
    if place not in known:
        weight, layer = _layer_weight(graph, place, known), _layer(graph, place, known)
        if weight is not None and layer in first:
            known[place] = first[layer] * column_norm(graph.steps[layer], weight)
        elif weight is not None:
            before = _length(graph, _layer_source(graph, place, known), known, first)
            known[place] = before * layer_norm(graph.steps[layer], weight)
        else:
            step = graph.steps[place]
            known[place] = sum(
                _length(graph, source, known, first) * step_norm(graph, place, which)
                for which, source in enumerate(step.sources)
            )
    return known[place]


def _layer(graph: network.ModelGraph, place: int, known: dict[int, float]) -> int:
    """Return the place of the layer that a BatchNorm is taken together with, or the given one."""
    step = graph.steps[place]
    if step.operator != "batch_norm" or step.sources[0] in known:
        return place
    before = graph.steps[step.sources[0]]
    by_channel = before.operator in ("conv1d", "conv2d") or (
        before.operator == "linear" and len(before.shape) == 2
    )
    return step.sources[0] if by_channel else place


def _layer_source(graph: network.ModelGraph, place: int, known: dict[int, float]) -> int:
    return graph.steps[_layer(graph, place, known)].sources[0]


def _layer_weight(graph: network.ModelGraph, place: int, known: dict[int, float]) -> Tensor | None:
    """Return a layer's weight in float64, with a BatchNorm behind it taken in.

    None of another step.
    """
    inner = _layer(graph, place, known)
    weight = layer_weight(graph.steps[inner])
    if weight is None or inner == place:
        return weight
    options = graph.steps[place].arguments
    scale = network.batch_norm_scale(
        options["weight"], options["running_var"], options["eps"]
    ).double()
    return weight * scale.view(-1, *[1] * (weight.ndim - 1))


def _matrices(relus: ReluNetwork, place: int, like: Tensor) -> list[Tensor | None]:
    """Return the matrices of a layer in the input and each ReLU before it, in float64.

    None where it does not look.
    """
    parts = [
        [None if one is None else one.double() for one in matrices]
        for _, matrices in relus.rows(place, like, _CHUNK)
    ]
    return [None if one[0] is None else torch.cat(one) for one in zip(*parts)]
