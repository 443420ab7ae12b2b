"""l_2 Lipschitz constants of a ReLU network, layer by layer."""

from __future__ import annotations

import math
from typing import List, NamedTuple, Optional

import torch
from torch import Tensor

from ..errors import UnsupportedModelError
from .relu_network import ReluNetwork

_MAX_ELEMENTS = 1 << 24  # of the matrix between two layers that is written out
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

    ``L_j = ||A_j|| + sum over i < j of ||A_ji|| L_i`` with exact spectral norms, since ReLUs do not enlarge distances.

    Args:
        network: The network.
        like: Tensor of the type and on the device of its weights.

    Returns:
        The constants.

    Raises:
        UnsupportedModelError: A matrix between two layers has more elements than can be written out.

    Source: Szegedy et al. 2014, section 4.3; with the last layer's row differences as in Tsuzuku et al. 2018.
    """
    layers, neurons = [], []
    for place in range(len(network.shapes) - 1):
        length, rows = 0.0, torch.zeros(network.shapes[place].numel(), dtype=torch.float64, device=like.device)
        for matrix, before in zip(_matrices(network, place, like), [1.0, *layers]):
            if matrix is not None:
                length += spectral_norm(matrix) * before * _ROUNDING
                rows += torch.linalg.vector_norm(matrix, dim=1) * before * _ROUNDING
        layers.append(length)
        neurons.append(rows.to(like.dtype))
    return LipschitzBounds(layers, neurons)


def spectral_norm(matrix: Tensor) -> float:
    """Return the largest singular value of a matrix (m, n) from its smaller Gram matrix; NaN unless all is finite.

    Example:
        >>> spectral_norm(torch.tensor([[3., 0., 0.], [0., 0., 4.]], dtype=torch.float64))
        4.0
    """
    if not bool(torch.isfinite(matrix).all()):
        return math.nan
    gram = matrix @ matrix.T if matrix.shape[0] < matrix.shape[1] else matrix.T @ matrix
    return float(torch.linalg.eigvalsh(gram)[-1].clamp(min=0).sqrt())


def _matrices(network: ReluNetwork, place: int, like: Tensor) -> List[Optional[Tensor]]:
    """Return the matrices of a layer in the input and each ReLU before it, in float64; None where it does not look."""
    size, sources = network.shapes[place].numel(), [network.input_shape, *network.shapes[:place]]
    largest = max(one.numel() for one in sources)
    if size * largest > _MAX_ELEMENTS:
        raise UnsupportedModelError(f"model: the matrix between two of its layers has {size} x {largest} elements, too "
                                    f"many to write out (at most {_MAX_ELEMENTS}); use another method than Lipschitz")
    step = max(1, _CHUNK // largest)
    parts = []
    for start in range(0, size, step):
        rows = torch.eye(size, dtype=like.dtype, device=like.device)[start:start + step]
        maps = network.maps(len(rows), like)
        _, at_input, at_relus = maps.pull(place, rows.view(-1, *network.shapes[place]))
        parts.append([None if one is None else one.flatten(1).double() for one in (at_input, *at_relus)])
    return [None if one[0] is None else torch.cat(one) for one in zip(*parts)]
