"""The l_p norms that sets can have, a class each; ``docs/adding-a-norm.md`` adds another."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..errors import InvalidArgumentError
from .support import support_box, support_l1_box, support_l2_box

#: The norms that sets can have, by p.
NORMS: dict[float, Norm] = {}

_L1_SHARE = 0.05  # share of the coordinates that one l_1 step moves


class Norm:
    """An l_p norm: its dual for bounds, its geometry for attacks.

    Offsets are flattened, shape (B, n).

    Attributes:
        p: The norm's number, in [1, inf].
        dual: q with 1/p + 1/q = 1.
        step: First step length of training attacks, as a share of eps.
        avoids_edges: Whether :meth:`steepest` wants to know which coordinates are at the edge of
            the valid range.
    """

    p: float
    dual: float
    step: float = 0.2
    avoids_edges: bool = False

    def support(self, a: Tensor, lower: Tensor, upper: Tensor, eps: Tensor) -> Tensor:
        """Return the maximum of a.d over ``||d||_p <= eps, lower <= d <= upper``, or a bound of it.

        Args:
            a: Linear forms, shape (..., k).
            lower: Lower bounds of the offsets, <= 0, broadcastable to (..., k).
            upper: Upper bounds, >= 0, likewise.
            eps: Radius, broadcastable to (...).

        Returns:
            Values of shape (...), never less than the maximum.
        """
        raise NotImplementedError

    def steepest(self, gradient: Tensor, stuck: Tensor | None) -> Tensor:
        """Return a direction of length 1 that rises most.

        Args:
            gradient: Shape (B, n).
            stuck: Coordinates that cannot move as the gradient points, bool (B, n); None unless
                asked for.
        """
        raise NotImplementedError

    def project(self, offset: Tensor, eps: Tensor) -> Tensor:
        """Return a point of the ball near each offset, shape (B, n); eps has shape (B,).

        No coordinate may move away from 0, so that the result stays in every box around the centre.
        """
        raise NotImplementedError


def register_norm(norm: Norm) -> Norm:
    """Register a norm, so that ``PerturbationLpBox(norm=p, ...)`` accepts it.

    Raises:
        InvalidArgumentError: p is not in [1, inf], dual does not belong to it, or p is taken.
    """
    if not norm.p >= 1 or not math.isclose(1 / norm.p + 1 / norm.dual, 1):
        raise InvalidArgumentError(
            f"norm.p={norm.p} and norm.dual={norm.dual} must be >= 1 with 1/p + 1/dual = 1"
        )
    if norm.p in NORMS:
        raise InvalidArgumentError(f"norm.p={norm.p} is registered already")
    NORMS[norm.p] = norm
    return norm


def number_of(norm) -> float:
    """Return p as a number, or raise InvalidArgumentError where no such norm is registered."""
    try:
        value = float(norm)
    except (TypeError, ValueError):
        value = math.nan
    if value not in NORMS:
        names = ", ".join("math.inf" if p == math.inf else f"{p:g}" for p in sorted(NORMS))
        raise InvalidArgumentError(
            f"norm={norm!r} is not supported; use one of {names}, or register_norm"
        )
    return int(value) if value.is_integer() else value


class _Linf(Norm):
    p, dual, step = math.inf, 1, 0.5

    def support(self, a, lower, upper, eps):
        eps = eps.unsqueeze(-1)
        return support_box(a, torch.maximum(lower, -eps), torch.minimum(upper, eps))

    def steepest(self, gradient, stuck):
        return gradient.sign()

    def project(self, offset, eps):
        return torch.minimum(torch.maximum(offset, -eps.unsqueeze(1)), eps.unsqueeze(1))


class _L2(Norm):
    p, dual = 2, 2

    def support(self, a, lower, upper, eps):
        return support_l2_box(a, lower, upper, eps)

    def steepest(self, gradient, stuck):
        return gradient / torch.linalg.vector_norm(gradient, dim=1, keepdim=True).clamp(min=1e-12)

    def project(self, offset, eps):
        length = torch.linalg.vector_norm(offset, dim=1)
        return offset * (eps / length.clamp(min=1e-12)).clamp(max=1.0).unsqueeze(1)


class _L1(Norm):
    p, dual, avoids_edges = 1, math.inf, True

    def support(self, a, lower, upper, eps):
        return support_l1_box(a, lower, upper, eps)

    def steepest(self, gradient, stuck):
        """Move the steepest few coordinates; a single coordinate would need too many steps."""
        gradient = gradient if stuck is None else gradient.masked_fill(stuck, 0.0)
        count = max(1, math.ceil(_L1_SHARE * gradient.shape[1]))
        largest = gradient.abs().topk(count, dim=1).indices
        steps = gradient.gather(1, largest).sign() / count
        return torch.zeros_like(gradient).scatter(1, largest, steps)

    def project(self, offset, eps):
        """Euclidean projection by soft thresholding (Duchi et al. 2008)."""
        size = offset.abs()
        ordered = size.sort(dim=1, descending=True).values
        counts = torch.arange(1, size.shape[1] + 1, device=size.device)
        excess = (ordered.cumsum(1) - eps.unsqueeze(1)) / counts
        kept = (ordered > excess).sum(1, keepdim=True).clamp(min=1)
        threshold = excess.gather(1, kept - 1).clamp(min=0)
        return offset.sign() * (size - threshold).clamp(min=0)


for _norm in (_Linf(), _L2(), _L1()):
    register_norm(_norm)
