"""Losses per example from margin bounds."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def robust_logits(lower_margins: Tensor) -> Tensor:
    """Return the worst-case logits relative to the true class, which stands first.

    ``o = (0, -lb_1, ..., -lb_{K-1})``

    Args:
        lower_margins: Lower bounds of ``f_y - f_k``, shape (B, K - 1).

    Returns:
        Tensor of shape (B, K).

    Source: CURE and SABR (the vector both compute the loss and the alignment from).
    """
    return torch.cat([torch.zeros_like(lower_margins[:, :1]), -lower_margins], dim=1)


def margin_cross_entropy(lower_margins: Tensor) -> Tensor:
    """Return the cross-entropy of the worst-case logits, one value per example.

    ``log(1 + sum_k exp(-lb_k))``

    Args:
        lower_margins: Lower bounds of ``f_y - f_k``, shape (B, K - 1).

    Returns:
        Tensor of shape (B,).

    Source: Müller et al. 2023 (SABR), section 4; Jiang and Singh 2024 (CURE), section 3.3.

    Example:
        >>> round(margin_cross_entropy(torch.zeros(1, 1)).item(), 4)
        0.6931
    """
    true_class = torch.zeros(len(lower_margins), dtype=torch.long, device=lower_margins.device)
    return F.cross_entropy(robust_logits(lower_margins), true_class, reduction="none")
