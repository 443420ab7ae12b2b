"""Values that belong to groups."""

from __future__ import annotations

import torch
from torch import Tensor


def ranks(group: Tensor, value: Tensor) -> Tensor:
    """Return each value's rank among those of its group, 0 for the lowest, (R,).

    Args:
        group: Number of each value's group, (R,).
        value: (R,).

    Example:
        >>> ranks(torch.tensor([0, 1, 0, 0]), torch.tensor([5., 1., 3., 4.]))
        tensor([2, 0, 0, 1])
    """
    order = value.argsort(stable=True)
    order = order[group[order].argsort(stable=True)]
    count = torch.bincount(group)
    first = count.cumsum(0) - count
    rank = torch.empty_like(group)
    rank[order] = torch.arange(len(group), device=group.device) - first[group[order]]
    return rank
