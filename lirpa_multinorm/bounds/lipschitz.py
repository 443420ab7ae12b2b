"""l_2 Lipschitz constants of a ReLU network, layer by layer."""

from __future__ import annotations

from typing import Dict, List, NamedTuple, Optional, Tuple

import torch
from torch import Tensor

from .. import host
from .operator_norms import spectral_norm, step_norm
from .relu_network import ReluNetwork

_MAX_ELEMENTS = 1 << 25  # of a matrix between two layers that is written out
_MAX_SIDE = 4096  # the smaller side of such a matrix
_CHUNK = 1 << 22  # elements pulled back at once
_ROUNDING = 1 + 1e-5  # of matrices computed in float32


class LipschitzBounds(NamedTuple):
    """How far layers can move when the input moves by at most 1 in l_2.

    Args:
        layers: Per layer a bound of how far its value moves in l_2.
        neurons: Per layer the same for each of its neurons, (n,).
    """

    layers: List[float]
    neurons: List[Tensor]


def lipschitz_bounds(network: ReluNetwork, like: Tensor) -> LipschitzBounds:
    """Return l_2 Lipschitz constants of every layer before the output, and of its neurons.

    ``L_j = ||A_j|| + sum over i < j of ||A_ji|| L_i`` with exact spectral norms where the matrices can be written out,
    since ReLUs do not enlarge distances; else node by node, with :func:`convolution_norm`.

    Args:
        network: The network.
        like: Tensor of the type and on the device of its weights.

    Returns:
        The constants.

    Raises:
        UnsupportedModelError: A matrix is too large to be written out, and a node of an unknown kind.

    Source: Szegedy et al. 2014, section 4.3; with the last layer's row differences as in Tsuzuku et al. 2018.
    """
    layers, neurons = [], []
    for place, shape in enumerate(network.shapes[:-1]):
        sides = [(shape.numel(), before.numel()) for before in (network.input_shape, *network.shapes[:place])]
        small = all(m * n <= _MAX_ELEMENTS and min(m, n) <= _MAX_SIDE for m, n in sides)
        length, rows = (_written_out if small else _node_by_node)(network, place, layers, like)
        layers.append(length * _ROUNDING)
        neurons.append((rows * _ROUNDING).to(like).flatten())
    return LipschitzBounds(layers, neurons)


def _written_out(network: ReluNetwork, place: int, layers: List[float], like: Tensor) -> Tuple[float, Tensor]:
    length, rows = 0.0, torch.zeros(network.shapes[place].numel(), dtype=torch.float64, device=like.device)
    for matrix, before in zip(_matrices(network, place, like), [1.0, *layers]):
        if matrix is not None:
            length += spectral_norm(matrix) * before
            rows += torch.linalg.vector_norm(matrix, dim=1) * before
    return length, rows


def _node_by_node(network: ReluNetwork, place: int, layers: List[float], like: Tensor) -> Tuple[float, Tensor]:
    """Multiply and add the norms of the nodes between the earlier ReLUs and a layer."""
    sources, targets = network.nodes()
    known = {node.name: length for node, length in zip(sources, [1.0, *layers])}
    length, shape = _length(targets[place], known), network.shapes[place]
    step = _step(targets[place], known)
    if step.kind not in ("conv", "linear"):
        return length, torch.full(shape, length, dtype=torch.float64, device=like.device)
    rows = torch.linalg.vector_norm(step.weight.flatten(1), dim=1) * known[step.moving[0].name]
    rows = rows.view(-1, *[1] * (len(shape) - 1)).expand(shape)
    return min(length, float(torch.linalg.vector_norm(rows))), rows.clamp(max=length)


def _length(node, known: Dict[str, float]) -> float:
    """Return how far a node's value moves, from how far those before it do; ``known`` is filled in on the way."""
    if node.name not in known:
        step = _step(node, known)
        before = sum(_length(one, known) for one in step.moving)
        known[node.name] = before if step.weight is None else before * step_norm(step.kind, step.weight, step.options)
    return known[node.name]


def _step(node, known: Dict[str, float]) -> host.AffineStep:
    """Return what a node does to distances, in float64; a BatchNorm is taken together with the layer before it."""
    step = host.affine_step(node)
    if step.weight is None:
        return step
    weight = step.weight.double()
    if step.kind == "scale" and weight.ndim == 1 and step.moving[0].name not in known:
        inner = host.affine_step(step.moving[0])
        if inner.kind in ("conv", "linear"):
            return inner._replace(weight=inner.weight * weight.view(-1, *[1] * (inner.weight.ndim - 1)))
    return step._replace(weight=weight)


def _matrices(network: ReluNetwork, place: int, like: Tensor) -> List[Optional[Tensor]]:
    """Return the matrices of a layer in the input and each ReLU before it, in float64; None where it does not look."""
    parts = [[None if one is None else one.double() for one in matrices]
             for _, matrices in network.rows(place, like, _CHUNK)]
    return [None if one[0] is None else torch.cat(one) for one in zip(*parts)]
