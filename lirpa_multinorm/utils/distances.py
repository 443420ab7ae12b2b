"""Distances of points from weights in an l_p norm, block by block, with gradients.

``u_bj = ||x_b - w_j||_p`` has B m n differences of which no more than a block is ever in memory, in
the forward and in the backward pass, which computes them anew.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

#: Differences in a block: as many as a CPU's cache takes, or as keep a GPU busy.
BLOCK_CPU, BLOCK_GPU = 1 << 18, 1 << 25
_FEW_ROWS = 8  # of a block, whose gradients are added one by one
_NEGLIGIBLE = 1e-36  # shares of a sum below it; smaller ones would be slow denormal numbers


def distances(x: Tensor, weight: Tensor, inverse_p: Tensor) -> Tensor:
    """Return ``||x_b - w_j||_p``, also in graphs that torch.export and the host read.

    Powers are taken of differences divided by the largest, so that none overflows. The gradient is
    ``sign(d_i) (|d_i| / u)^(p - 1)``; for p = inf it is the sign of the largest difference, and of
    all largest ones where several are equal.

    Args:
        x: Points (B, n).
        weight: Weights (m, n).
        inverse_p: ``1 / p``, a tensor of one number in [0, 1], which a graph follows; 0 for inf.

    Returns:
        Distances (B, m).

    Source: Zhang et al. 2021, "Towards Certifying l_inf Robustness using Neural Networks with
        l_inf-dist Neurons", sections 3 and 5.

    Example:
        >>> x, weight = torch.tensor([[3.0, 4.0]]), torch.zeros(1, 2)
        >>> [float(distances(x, weight, torch.tensor(1 / p))) for p in (2, math.inf)]
        [5.0, 4.0]
    """
    return _Distances.apply(x, weight, inverse_p)


class _Distances(torch.autograd.Function):
    """The distances as a function with a backward pass of its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, inverse_p: Tensor) -> Tensor:
        """Return the distances."""
        value = torch.ops.lirpa_multinorm.distances(x, weight, inverse_p)
        ctx.save_for_backward(x, weight, inverse_p.clone(), value)  # p may be set before the end
        return value

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        """Return the gradients of points and weights."""
        x, weight, inverse_p, value = ctx.saved_tensors
        return *_gradients(x, weight, exponent(inverse_p), value, gradient), None

    @staticmethod
    def symbolic(graph: Any, x: Any, weight: Any, inverse_p: Any) -> Any:
        """Return the operator's node in an ONNX graph."""
        node = graph.op("lirpa_multinorm::LinfDistance", x, weight, inverse_p)
        rows, neurons = ((value.type().sizes() or [None])[0] for value in (x, weight))
        node.setType(weight.type().with_sizes([rows, neurons]))
        return node


@torch.library.custom_op("lirpa_multinorm::distances", mutates_args=())
def _distances(x: Tensor, weight: Tensor, inverse_p: Tensor) -> Tensor:
    p = exponent(inverse_p)
    value = x.new_empty(len(x), len(weight))
    for rows, neurons in blocks(x, weight):
        difference = x[rows].unsqueeze(1) - weight[neurons]
        value[rows, neurons] = p_norm(difference.abs_(), p)
    return value


@_distances.register_fake
def _(x: Tensor, weight: Tensor, inverse_p: Tensor) -> Tensor:
    return x.new_empty(len(x), len(weight))


def exponent(inverse_p: Tensor) -> float:
    """Return p of a tensor ``1 / p``; powers of two are met exactly.

    Example:
        >>> exponent(torch.tensor(0.0)), exponent(torch.tensor(0.125))
        (inf, 8.0)
    """
    inverse = float(inverse_p)
    return 1 / inverse if inverse else math.inf


def blocks(x: Tensor, weight: Tensor) -> Iterator[tuple[slice, slice]]:
    """Yield slices of rows of points (B, n) and of weights (m, n) that make blocks together."""
    size = BLOCK_CPU if x.device.type == "cpu" else BLOCK_GPU
    width = max(1, x.shape[1])
    neurons = min(len(weight), max(1, size // width))
    rows = max(1, size // (neurons * width)) if neurons else 1
    for start in range(0, len(weight), max(1, neurons)):
        for row in range(0, len(x), rows):
            yield slice(row, row + rows), slice(start, start + neurons)


def p_norm(size: Tensor, p: float) -> Tensor:
    """Return the l_p norms of numbers >= 0 along the last dimension, whatever their size.

    Args:
        size: Numbers (..., n); for finite p they are overwritten.
        p: At least 1.

    Returns:
        Norms (...).
    """
    largest = size.amax(-1)
    if p == math.inf:
        return largest
    scale = largest.clamp(min=torch.finfo(size.dtype).tiny)
    shares = size.div_(scale.unsqueeze(-1)).clamp_(min=_NEGLIGIBLE ** (1 / p))
    return largest * _power(shares, p).sum(-1).pow_(1 / p)


def _power(shares: Tensor, p: float) -> Tensor:
    """Return the p-th powers of shares in (0, 1], in place; a power of two by squaring."""
    squarings = math.log2(p)
    if not squarings.is_integer():
        return shares.log2_().mul_(p).exp2_()
    for _ in range(int(squarings)):
        shares.mul_(shares)
    return shares


def _gradients(
    x: Tensor, weight: Tensor, p: float, value: Tensor, gradient: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the gradients of points (B, n) and weights (m, n) from that of the distances."""
    of_x, of_weight = torch.zeros_like(x), torch.zeros_like(weight)
    value = value.clamp(min=torch.finfo(value.dtype).tiny)
    for rows, neurons in blocks(x, weight):
        difference = x[rows].unsqueeze(1) - weight[neurons]
        slopes = _slopes(difference, value[rows, neurons].unsqueeze(-1), p)
        factor = gradient[rows, neurons]
        of_x[rows] += torch.bmm(factor.unsqueeze(1), slopes).squeeze(1)
        if len(factor) <= _FEW_ROWS:
            for slope, row in zip(slopes, factor):
                of_weight[neurons].addcmul_(slope, row.unsqueeze(1), value=-1)
        else:
            of_weight[neurons] -= slopes.mul_(factor.unsqueeze(-1)).sum(0)
    return of_x, of_weight


def _slopes(difference: Tensor, value: Tensor, p: float) -> Tensor:
    """Return ``sign(d) (|d| / u)^(p - 1)``; without comparisons, which are slow on a CPU.

    Args:
        difference: d, (..., n); overwritten.
        value: u, (..., 1).
        p: At least 1.
    """
    if p == math.inf:
        size = difference.abs()
        return torch.eq(size, value, out=size).mul_(difference).div_(value)
    signed = difference.div_(value)
    least = max(_NEGLIGIBLE ** (2 / p), torch.finfo(signed.dtype).tiny)
    squares = signed.square().clamp_(min=least, max=1)
    squarings = math.log2(p)
    if p == 1 or not squarings.is_integer():
        return squares.log2_().mul_((p - 2) / 2).exp2_().mul_(signed)
    for step in range(int(squarings) - 1):  # z z^2 z^4 ... = z^(p - 1)
        signed.mul_(squares if step == 0 else squares.mul_(squares))
    return signed
