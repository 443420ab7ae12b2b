"""Folding: a ReLU network on one region, reduced to its unstable neurons.

A ReLU that is stable on the region is the identity or zero there, so that it belongs to the affine
maps around it. Branch and bound, which optimises the same bound a thousand times over, then works
on a tenth of the neurons.
"""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .affine_matrices import AffineMatrices, Matrices, SparseRows
from .problem import IntermediateBounds, Problem
from .receptive_fields import WORTH, ReceptiveField
from .relu_network import added

_MAX_PRODUCTS = 1 << 35  # multiplications to fold a network: about a second
_SPARSE = 1 / 8  # share of entries that are not zero from which on a dense product is faster


def folded(matrices: AffineMatrices, problem: Problem) -> Problem:
    """Return the same problem without the stable neurons.

    Args:
        matrices: The affine maps of the problem's network.
        problem: A problem of one example; it has bounds of the first hidden layers only, if linear
            forms of a hidden layer are to be bounded.

    Returns:
        A problem with the same bounds, or the given one where folding its network would not pay.
    """
    like = problem.regions[0].center
    neurons = [
        _Neurons.of(lower[0], upper[0])
        for lower, upper in zip(problem.hidden.lower, problem.hidden.upper)
    ]
    sizes = matrices.sizes[: len(neurons) + 2]
    if not matrices.affordable(len(neurons)) or _products(sizes, neurons) > _MAX_PRODUCTS:
        return problem
    pixels, outputs = (torch.arange(size, device=like.device) for size in (sizes[0], sizes[-1]))
    maps = _folded_maps(matrices, neurons, outputs, like)
    elements = sum(_size(factor) for _, factors in maps for factor in factors if factor is not None)
    if elements > WORTH * sum(sizes):
        return problem
    network = ReceptiveField(outputs, [pixels, *[layer.unstable for layer in neurons]], maps)
    example = outputs.new_zeros(1)
    lower, upper, center = (network.rows(field, example) for field in problem.hidden[:3])
    hidden = IntermediateBounds(lower, upper, center, problem.hidden.radius)
    return Problem(network, network.regions(problem.regions, example), hidden)


class _Neurons(NamedTuple):
    """Indices of a layer's unstable neurons, and of those that are always active."""

    unstable: Tensor
    active: Tensor

    @classmethod
    def of(cls, lower: Tensor, upper: Tensor) -> _Neurons:
        unstable = ((lower < 0) & (upper > 0)).nonzero().squeeze(1)
        return cls(unstable, (lower >= 0).nonzero().squeeze(1))


def _products(sizes: list[int], neurons: list[_Neurons]) -> int:
    """Return how many multiplications folding costs at most."""
    products, width = 0, sizes[0]
    inner = [width, *[len(layer.active) for layer in neurons]]
    rows = [*[len(layer.unstable) + len(layer.active) for layer in neurons], sizes[-1]]
    for layer, count in enumerate(rows):
        products += count * width * sum(inner[1 : layer + 1])
        width += len(neurons[layer].unstable) if layer < len(neurons) else 0
    return products


def _folded_maps(
    matrices: AffineMatrices, neurons: list[_Neurons], outputs: Tensor, like: Tensor
) -> list[tuple[Tensor, Matrices]]:
    """Return each layer as an affine map of the input and of the unstable neurons."""
    maps: list[tuple[Tensor, Matrices]] = []
    active: list[tuple[Tensor, Matrices]] = []
    for layer in range(len(neurons) + 1):
        rows = torch.cat(neurons[layer]) if layer < len(neurons) else outputs
        constants, layer_matrices = matrices.of(layer, like)
        value, factors = _substituted(constants[rows], layer_matrices, rows, neurons, active)
        count = len(neurons[layer].unstable) if layer < len(neurons) else len(outputs)
        compact = [None if dense is None else _compact(dense[:count]) for dense in factors]
        maps.append((value[:count], compact))
        active.append(
            (value[count:], [None if dense is None else dense[count:] for dense in factors])
        )
    return maps


def _substituted(
    value: Tensor,
    matrices: list[SparseRows | None],
    rows: Tensor,
    neurons: list[_Neurons],
    active: list[tuple[Tensor, Matrices]],
) -> tuple[Tensor, Matrices]:
    """Return some rows of a layer's affine map with the active neurons before it substituted.

    Args:
        value: The constants of the rows.
        matrices: The layer's matrices in the input and in each ReLU before it.
        rows: The rows.
        neurons: The unstable and the active neurons of each layer.
        active: The affine maps of the active neurons of each layer before this one.
    """
    at_input, *at_relus = matrices
    factors: Matrices = [
        None if at_input is None else at_input.dense(rows),
        *[None] * len(at_relus),
    ]
    for source, matrix in enumerate(at_relus):
        if matrix is not None:
            dense = matrix.dense(rows)
            through, (fixed, inner) = dense[:, neurons[source].active], active[source]
            value = value + through @ fixed
            factors[source + 1] = added(factors[source + 1], dense[:, neurons[source].unstable])
            factors = [
                added(factor, None if inner_matrix is None else through @ inner_matrix)
                for factor, inner_matrix in zip(
                    factors, [*inner, *[None] * (len(at_relus) - source)]
                )
            ]
    return value, factors


class SparseFactor:
    """A sparse matrix that linear forms are multiplied by, ``v @ factor``, with fast gradients.

    Args:
        dense: The matrix, (n, m).
    """

    def __init__(self, dense: Tensor) -> None:
        with warnings.catch_warnings():  # torch calls the format a beta feature
            warnings.simplefilter("ignore", UserWarning)
            self.matrix = dense.to_sparse_csr()
            self.transposed = dense.t().contiguous().to_sparse_csr()

    def __rmatmul__(self, v: Tensor) -> Tensor:
        return _SparseProduct.apply(v, self.matrix, self.transposed)


class _SparseProduct(torch.autograd.Function):
    """Product ``v @ matrix`` with a sparse matrix.

    The backward pass of torch's own product is several times slower.
    """

    @staticmethod
    def forward(ctx, v: Tensor, matrix: Tensor, transposed: Tensor) -> Tensor:
        ctx.matrix = matrix
        return (transposed @ v.t()).t()

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None]:
        return (ctx.matrix @ gradient.t()).t(), None, None


def _compact(dense: Tensor) -> Any:
    """Return a matrix to multiply by from the right, sparse where that is faster."""
    fast = dense.is_cuda or torch.backends.mkl.is_available()
    if fast and int((dense != 0).sum()) < _SPARSE * dense.numel():
        return SparseFactor(dense)
    return dense.contiguous()


def _size(factor: Tensor | SparseFactor) -> int:
    return factor.matrix.values().numel() if isinstance(factor, SparseFactor) else factor.numel()
