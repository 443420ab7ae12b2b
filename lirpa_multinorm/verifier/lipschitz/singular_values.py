"""Largest singular values that are proved: found in floating point, and then checked."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_VECTORS = 16  # iterated together
_STEPS, _STEPS_OF_ALL = 150, 6  # of power iteration, at most, and those of all matrices
_LARGEST_MATRICES = 6  # that go on
_SETTLED = 1e-8  # relative growth in a step by which the iteration ends
_SLACKS = (1e-7, 1e-6, 1e-5, 1e-4, 1e-3)  # added to what the iteration finds, until it holds
_CHUNK = 1 << 24  # elements of Gram matrices that are worked on at once
_UNIT = torch.finfo(torch.float64).eps / 2


def largest_singular_value(matrices: Tensor) -> float:
    """Return an upper bound of all singular values of some matrices, above by about 1e-7.

    Power iteration finds the largest eigenvalue s of the Gram matrices G **from below**, and proves
    nothing. The proof is a Cholesky decomposition of ``t I - G`` for a t just above s: where it
    succeeds, ``t I - G`` is positive definite but for an error of at most ``gamma_(n+1) tr(t I -
    G)``, which is added. Where it fails, as after an iteration that has not converged, t grows; at
    last the eigenvalues are calculated, and their sum, the trace, if they do not hold either.

    Args:
        matrices: Real or complex matrices (..., m, n) in double precision.

    Returns:
        The bound; NaN unless all matrices are finite.

    Source: Rump 2006, "Verification of Positive Definiteness", theorem 2.3 (Cholesky); Higham 2002,
        section 3.5 (products of matrices).

    Example:
        >>> matrix = torch.tensor([[3., 0., 0.], [0., 0., 4.]], dtype=torch.float64)
        >>> 4.0 <= largest_singular_value(matrix) < 4.000001
        True
    """
    if not bool(torch.isfinite(matrices).all()):
        return math.nan
    m, n = matrices.shape[-2:]
    if not matrices.numel():
        return 0.0
    # A power of two is taken out without rounding, so that no square overflows or vanishes.
    exponent = math.frexp(float(matrices.abs().max()))[1]
    flat = matrices.reshape(-1, m, n) * 2.0 ** max(-exponent, -1000)
    chunks = flat.split(max(1, _CHUNK // min(m, n) ** 2))
    largest = max(_largest(chunk) for chunk in chunks)
    return largest * 2.0 ** min(exponent, 1000) if largest else 0.0


def _largest(matrices: Tensor) -> float:
    """Return the bound of matrices (N, m, n) that are finite."""
    m, n = matrices.shape[1:]
    gram = matrices @ matrices.mH if m < n else matrices.mH @ matrices
    squares = float(matrices.abs().square().sum((1, 2)).max())
    if squares == 0:
        return 0.0
    # An entry of the Gram matrix is off by at most gamma times the product of absolute values,
    # whose norm is at most the sum of squares; complex products have four times the terms.
    terms = 4 * (max(m, n) + 2)
    proved = _proved_eigenvalue(gram) + 2 * terms * _UNIT * squares
    return min(math.sqrt(proved), math.sqrt(squares)) * (1 + 1e-12)


def _proved_eigenvalue(gram: Tensor) -> float:
    """Return a bound of the eigenvalues of matrices (N, n, n), as they are stored."""
    estimate, side = _iterated_eigenvalue(gram), gram.shape[1]
    if estimate == 0:
        estimate = float(gram.diagonal(dim1=1, dim2=2).real.max())
    identity = torch.eye(side, dtype=gram.dtype, device=gram.device)
    for guess in (lambda: estimate, lambda: float(torch.linalg.eigvalsh(gram).max())):
        value = guess()
        for slack in _SLACKS:
            bound = value * (1 + slack)
            shifted = bound * identity - gram
            _, failed = torch.linalg.cholesky_ex(shifted)
            if not bool(failed.any()):
                trace = float(shifted.diagonal(dim1=1, dim2=2).real.sum(1).max())
                return bound + 8 * (side + 2) * _UNIT * (trace + bound)
    return float(gram.diagonal(dim1=1, dim2=2).real.sum(1).max()) * (1 + 1e-9)


def _iterated_eigenvalue(gram: Tensor) -> float:
    """Return what power iteration makes of the largest eigenvalue, which may be too small.

    A few vectors are iterated together, from the longest columns of the matrices on. After some
    steps only the matrices with the largest values go on.
    """
    lengths = gram.abs().square().sum(1)
    start = lengths.topk(min(_VECTORS, gram.shape[1]), dim=1).indices
    vectors = torch.take_along_dim(gram, start.unsqueeze(1), 2)
    value = 0.0
    for step in range(_STEPS):
        vectors = torch.linalg.qr(vectors)[0]
        images = gram @ vectors
        values = torch.linalg.eigvalsh(vectors.mH @ images).amax(1)
        last, value = value, float(values.max())
        if step >= _STEPS_OF_ALL and abs(value - last) <= _SETTLED * value:
            break
        vectors = images
        if step == _STEPS_OF_ALL:
            best = values.topk(min(_LARGEST_MATRICES, len(values))).indices
            gram, vectors = gram[best], vectors[best]
    return value
