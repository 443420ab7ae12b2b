"""The maximum of a linear form on a ball cut with a box, straight from its definition."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def dual_norm(rows: Tensor, norm: float) -> Tensor:
    """The norm of rows (..., d) that is dual to the ball's."""
    return torch.linalg.vector_norm(rows, {math.inf: 1, 2: 2, 1: math.inf}[norm], dim=-1)


def farthest(rows: Tensor, low: Tensor, high: Tensor, eps, norm: float) -> Tensor:
    """max a.d over |d|_p <= eps, low <= d <= high of rows (..., d), with gradients in the rows.

    The maximiser may be held fixed: the envelope theorem.
    """
    low, high = low.expand_as(rows), high.expand_as(rows)
    eps = torch.as_tensor(eps, dtype=rows.dtype).expand(rows.shape[:-1]).unsqueeze(-1)
    with torch.no_grad():
        if norm == math.inf:
            offset = torch.where(rows > 0, torch.minimum(high, eps), torch.maximum(low, -eps))
        elif norm == 1:
            offset = greedy(rows, low, high, eps)
        else:  # d = clip(t a); t by bisection
            least, most = torch.zeros_like(rows[..., :1]), torch.full_like(rows[..., :1], 1e9)
            for _ in range(100):
                t = (least + most) / 2
                long = (rows * t).clamp(low, high).norm(dim=-1, keepdim=True) > eps
                least, most = torch.where(long, least, t), torch.where(long, t, most)
            offset = (rows * least).clamp(low, high)
    return (rows * offset).sum(-1)


def greedy(rows: Tensor, low: Tensor, high: Tensor, eps: Tensor) -> Tensor:
    """The l_1 maximiser.

    The coordinate of the largest coefficient moves as far as it can, then the next one.
    """
    left, offset = eps.clone(), torch.zeros_like(rows)
    order = rows.abs().argsort(dim=-1, descending=True)
    for place in range(rows.shape[-1]):
        chosen = order[..., place : place + 1]
        towards = rows.gather(-1, chosen).sign()
        room = torch.where(towards > 0, high.gather(-1, chosen), -low.gather(-1, chosen))
        moved = torch.minimum(room, left)
        offset.scatter_(-1, chosen, towards * moved)
        left = left - moved
    return offset
