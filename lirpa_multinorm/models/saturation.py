"""A layer that hides small changes of dark and bright pixels from the network behind it."""

from __future__ import annotations

from numbers import Real

import torch
from torch import Tensor, nn

from ..errors import InvalidArgumentError


class Saturation(nn.Module):
    """Compute ``min(max((x - low) / (high - low), 0), 1)`` with ReLUs, which every method bounds.

    A pixel up to ``low`` becomes 0 and one from ``high`` on 1: the network behind sees no change of
    a black pixel by up to ``low``, nor of a white one by up to ``1 - high``. The price is a
    Lipschitz constant of ``1 / (high - low)``.

    Args:
        low: Largest value that becomes 0.
        high: Smallest value that becomes 1.

    Raises:
        InvalidArgumentError: If not ``0 <= low < high <= 1``.

    Example:
        >>> Saturation(0.25, 0.75)(torch.tensor([0.125, 0.5, 0.875]))
        tensor([0.0000, 0.5000, 1.0000])
    """

    low: Tensor
    width: Tensor
    one: Tensor

    def __init__(self, low: float, high: float) -> None:
        super().__init__()
        if not all(isinstance(value, Real) for value in (low, high)) or not 0 <= low < high <= 1:
            raise InvalidArgumentError(
                f"saturation: ({low!r}, {high!r}). Pass two numbers with 0 <= low < high <= 1."
            )
        for name, value in (("low", low), ("width", high - low), ("one", 1)):
            self.register_buffer(name, torch.tensor(float(value)))

    def forward(self, x: Tensor) -> Tensor:
        """Saturate images (B, C, H, W)."""
        return self.one - torch.relu(self.one - torch.relu((x - self.low) / self.width))

    def lipschitz_bound(self, norm: float) -> float:
        """Return how far outputs move at most where inputs move by 1, in any norm."""
        return 1 / float(self.width)

    def extra_repr(self) -> str:
        """Return the constants, which ``print(model)`` shows."""
        return f"low={float(self.low):.4g}, high={float(self.low + self.width):.4g}"
