"""Margins by an estimate of the Lipschitz constant, without an attack or propagation."""

from __future__ import annotations

import torch
from torch import Tensor

_SMALLEST_SHARE = 0.01  # of the fall that EMMA subtracts


def lipschitz_margins(
    logits: Tensor, falls: Tensor, reach: Tensor, C: Tensor, emma: bool = True
) -> tuple[Tensor, Tensor]:
    """Return the margins at the inputs less their largest fall on a set.

    ``m_k = f_y - f_k - r F_yk``; for the loss ``f_y - f_k - e_k r F_yk`` with EMMA's share ``e_k =
    clip((f_y - f_k) / (r F_yk), 0.01, 1)``, without gradient: no more is taken off than what makes
    a margin zero.

    Args:
        logits: f at the inputs, (B, K).
        falls: F: how far ``f_i - f_k`` falls where the input moves by 1 in some norm, (K, K).
        reach: r: how far the set reaches from each input in that norm, (B,).
        C: Specification ``f_y - f_k``, (B, K - 1, K).
        emma: Whether the loss's margins are EMMA's; otherwise they are m.

    Returns:
        (m, margins for the loss), each (B, K - 1). Estimates, as F is one.

    Source: Hu et al. 2023, "Unlocking Deterministic Robustness Certification on ImageNet" (EMMA);
        Tsuzuku et al. 2018.

    Example:
        >>> C = torch.tensor([[[1., -1.]]])
        >>> falls = torch.tensor([[0., 4.], [4., 0.]])
        >>> lipschitz_margins(torch.tensor([[3., 1.]]), falls, torch.tensor([1.]), C)
        (tensor([[-2.]]), tensor([[0.]]))
    """
    gap = C.matmul(logits.unsqueeze(-1)).squeeze(-1)
    true_class = C.sum(1).argmax(1)
    fall = reach.unsqueeze(1) * C.abs().matmul(falls[true_class].unsqueeze(-1)).squeeze(-1)
    if not emma:
        return gap - fall, gap - fall
    tiny = torch.finfo(fall.dtype).tiny
    share = (gap / fall.clamp(min=tiny)).clamp(_SMALLEST_SHARE, 1).detach()
    return gap - fall, gap - share * fall
