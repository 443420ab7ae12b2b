"""Losses between an adversarial point and a bound: MTL-IBP, CC-IBP and Exp-IBP."""

from __future__ import annotations

from typing import Callable

import torch
from torch import Tensor

from .margin import margin_cross_entropy

_TINY = -40.0


def mtl(bound: Tensor, point: Tensor, alpha: float) -> Tensor:
    """Return ``alpha L(bound) + (1 - alpha) L(point)`` per example (MTL-IBP).

    Args:
        bound: Lower margin bounds on a region, shape (B, K - 1).
        point: Margins at the adversarial point, same shape.
        alpha: Weight of the bound.

    Returns:
        Tensor of shape (B,).

    Source: De Palma et al. 2024, "Expressive Losses for Verified Robustness via Convex
        Combinations".
    """
    return alpha * margin_cross_entropy(bound) + (1 - alpha) * margin_cross_entropy(point)


def cc(bound: Tensor, point: Tensor, alpha: float) -> Tensor:
    """Return ``L(alpha bound + (1 - alpha) point)`` per example (CC-IBP); see :func:`mtl`."""
    return margin_cross_entropy(alpha * bound + (1 - alpha) * point)


def exp(bound: Tensor, point: Tensor, alpha: float) -> Tensor:
    """Return ``L(bound)^alpha L(point)^(1 - alpha)`` per example (Exp-IBP); see :func:`mtl`."""
    return (alpha * _log_loss(bound) + (1 - alpha) * _log_loss(point)).exp()


def _log_loss(margins: Tensor) -> Tensor:
    """Return the logarithm of the margins' cross-entropy, exact also where ``1 + e^t`` rounds."""
    total = torch.logsumexp(-margins, dim=1)
    loss = torch.logaddexp(total.clamp(min=_TINY), torch.zeros_like(total))
    return torch.where(total < _TINY, total, loss.log())  # log(1 + e^t) = e^t for small e^t


#: The functions from a term's bound and adversarial point to a loss per example.
MIXES: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {"mtl": mtl, "cc": cc, "exp": exp}
