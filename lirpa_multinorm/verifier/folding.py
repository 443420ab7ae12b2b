"""A ReLU network on one set, folded: only the unstable neurons there are left.

A ReLU that is stable on the set is the identity or zero there, so that it belongs to the affine
maps around it. What optimises the same bound a thousand times over, as branch and bound does, then
works on a tenth of the neurons.
"""

from __future__ import annotations

import warnings
from typing import NamedTuple

import torch
from torch import Tensor

from .affine_matrices import AffineMatrices, Places
from .problem import IntermediateBounds, Problem
from .receptive_fields import WORTH, ReceptiveField
from .relu_network import added

_MAX_PRODUCTS = 1 << 35  # multiplications to fold a network: about a second
_SPARSE = 1 / 8  # share of entries that are not zero from which on a dense product is faster


def folded(matrices: AffineMatrices, problem: Problem) -> Problem:
    """Return the same problem without the stable neurons.

    Args:
        matrices: Of the problem's network.
        problem: Of one example; on the first hidden layers, if linear forms of a hidden layer are
            to be bounded.

    Returns:
        A problem with the same bounds, or the given one where folding its network would not pay.
    """
    like = problem.regions[0].center
    neurons = [
        _Neurons.of(low[0], high[0])
        for low, high in zip(problem.hidden.lower, problem.hidden.upper)
    ]
    sizes = matrices.sizes[: len(neurons) + 2]
    if not matrices.affordable(len(neurons)) or _products(sizes, neurons) > _MAX_PRODUCTS:
        return problem
    pixels, outputs = (torch.arange(size, device=like.device) for size in (sizes[0], sizes[-1]))
    maps = _folded_maps(matrices, neurons, outputs, like)
    if sum(_size(one) for _, parts in maps for one in parts if one is not None) > WORTH * sum(
        sizes
    ):
        return problem
    window = ReceptiveField(outputs, [pixels, *[one.unstable for one in neurons]], maps)
    only = outputs.new_zeros(1)
    sets = [window.rows(field, only) for field in problem.hidden[:3]]
    return Problem(
        window,
        window.regions(problem.regions, only),
        IntermediateBounds(*sets, problem.hidden.radius),
    )


class _Neurons(NamedTuple):
    """Places of a layer's unstable neurons, and of those that are always active."""

    unstable: Tensor
    active: Tensor

    @classmethod
    def of(cls, lower: Tensor, upper: Tensor) -> _Neurons:
        return cls(
            ((lower < 0) & (upper > 0)).nonzero().squeeze(1), (lower >= 0).nonzero().squeeze(1)
        )


def _products(sizes: list[int], neurons: list[_Neurons]) -> int:
    """Return how many multiplications folding costs at most."""
    count, width = 0, sizes[0]
    inner = [width, *[len(one.active) for one in neurons]]
    rows = [*[len(one.unstable) + len(one.active) for one in neurons], sizes[-1]]
    for layer, own in enumerate(rows):
        count += own * width * sum(inner[1 : layer + 1])
        width += len(neurons[layer].unstable) if layer < len(neurons) else 0
    return count


def _folded_maps(
    matrices: AffineMatrices, neurons: list[_Neurons], outputs: Tensor, like: Tensor
) -> list[tuple[Tensor, Places]]:
    """Return each layer as an affine map of the input and of the unstable neurons."""
    maps, active = [], []
    for layer in range(len(neurons) + 1):
        rows = torch.cat(neurons[layer]) if layer < len(neurons) else outputs
        constants, parts = matrices.of(layer, like)
        value = constants[rows]
        found: Places = [None if parts[0] is None else parts[0].dense(rows), *[None] * layer]
        for source, matrix in enumerate(parts[1:]):
            if matrix is not None:
                dense = matrix.dense(rows)
                through, (fixed, inner) = dense[:, neurons[source].active], active[source]
                value = value + through @ fixed
                found[source + 1] = added(found[source + 1], dense[:, neurons[source].unstable])
                found = [
                    added(one, None if part is None else through @ part)
                    for one, part in zip(found, [*inner, *[None] * (layer - source)])
                ]
        count = len(neurons[layer].unstable) if layer < len(neurons) else len(outputs)
        maps.append(
            (value[:count], [None if one is None else _compact(one[:count]) for one in found])
        )
        active.append((value[count:], [None if one is None else one[count:] for one in found]))
    return maps


class SparseFactor:
    """A sparse matrix that linear forms are multiplied by, ``v @ factor``, with fast gradients.

    Args:
        dense: The matrix, (n, m).
    """

    def __init__(self, dense: Tensor) -> None:
        with warnings.catch_warnings():  # torch calls the format a beta feature
            warnings.simplefilter("ignore", UserWarning)
            self.matrix, self.transposed = (
                dense.to_sparse_csr(),
                dense.t().contiguous().to_sparse_csr(),
            )

    def __rmatmul__(self, v: Tensor) -> Tensor:
        return _SparseProduct.apply(v, self.matrix, self.transposed)


class _SparseProduct(torch.autograd.Function):
    """Product ``v @ matrix`` with a sparse matrix, with a faster backward pass than torch's own.

    Torch's own product with sparse matrices is several times slower on the way back.
    """

    @staticmethod
    def forward(ctx, v: Tensor, matrix: Tensor, transposed: Tensor) -> Tensor:
        ctx.matrix = matrix
        return (transposed @ v.t()).t()

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None]:
        return (ctx.matrix @ gradient.t()).t(), None, None


def _compact(dense: Tensor):
    """Return a matrix to multiply by from the right, sparse where that is faster."""
    fast = dense.is_cuda or torch.backends.mkl.is_available()
    return (
        SparseFactor(dense)
        if fast and int((dense != 0).sum()) < _SPARSE * dense.numel()
        else dense.contiguous()
    )


def _size(factor) -> int:
    return factor.matrix.values().numel() if isinstance(factor, SparseFactor) else factor.numel()
