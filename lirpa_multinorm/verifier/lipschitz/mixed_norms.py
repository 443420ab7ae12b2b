"""Norms of matrices between l_1, l_2 and l_inf, as upper bounds."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .operator_norms import spectral_norm

NORMS = (1, 2, math.inf)
_ROUNDING = 1 + 1e-9


def mixed_norm(center: Tensor, radius: Tensor | None, norm_in: float, norm_out: float) -> float:
    """Return a bound of ``max ||J x||_out`` over ``||x||_in <= 1`` and all J near a matrix.

    With M the largest absolute values of J: from l_1 the longest column, to l_inf the longest row
    in the dual norm, both exact without a radius; from l_2 to l_2 the spectral norm of M, or that
    of the centre and that of the radius; else the norm of M, which is reached at a corner of
    positive entries, or that from l_2 to l_2 times the roots of the sides.

    Args:
        center: The matrix (m, n) in float64.
        radius: How far entries of J may be from it; None: not at all.
        norm_in: 1, 2 or inf.
        norm_out: 1, 2 or inf.

    Returns:
        The bound, rounded up.

    Source: Horn and Johnson 2013, Matrix Analysis, section 5.6; theorem 8.1.18 (norms of matrices
        and of their absolute values).

    Example:
        >>> matrix = torch.tensor([[3., -4.], [0., 1.]], dtype=torch.float64)
        >>> [round(mixed_norm(matrix, None, norm, norm), 4) for norm in (1, math.inf)]
        [5.0, 7.0]
    """
    largest = center.abs() if radius is None else center.abs() + radius
    if not largest.numel():
        return 0.0
    if norm_in == 1:
        columns = torch.linalg.vector_norm(largest, norm_out, dim=0)
        return float(columns.max()) * _ROUNDING
    if norm_out == math.inf:
        dual = 2 if norm_in == 2 else 1
        return float(torch.linalg.vector_norm(largest, dual, dim=1).max()) * _ROUNDING
    euclidean = spectral_norm(center if radius is None else largest)
    if radius is not None:
        euclidean = min(euclidean, spectral_norm(center) + spectral_norm(radius))
    sides = (norm_out == 1) * math.log(len(center)) + (norm_in > 2) * math.log(center.shape[1])
    bounds = [euclidean * math.exp(sides / 2)]
    if norm_in > 2:
        bounds.append(float(torch.linalg.vector_norm(largest.sum(1), norm_out)))
    elif norm_out == 1:
        bounds.append(float(torch.linalg.vector_norm(largest.sum(0))))
    return min(bounds) * _ROUNDING
