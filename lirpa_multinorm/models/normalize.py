"""Input normalisation as the first layer, so that radii stay in units of the [0, 1] image."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..errors import InvalidArgumentError


class Normalize(nn.Module):
    """Compute ``(x - mean) / std`` per channel.

    Args:
        mean: One number per channel.
        std: One positive number per channel.

    Raises:
        InvalidArgumentError: If the lengths differ or a number is not finite or a ``std`` not
            positive.

    Example:
        >>> Normalize([0.5], [0.25])(torch.ones(1, 1, 1, 2))
        tensor([[[[2., 2.]]]])
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        mean, std = [float(value) for value in mean], [float(value) for value in std]
        if len(mean) != len(std):
            raise InvalidArgumentError(
                f"std: {len(std)} numbers for {len(mean)} in mean. Pass one per channel each."
            )
        if not all(math.isfinite(value) for value in mean):
            raise InvalidArgumentError(
                f"mean: {mean} has a number that is not finite. Pass finite numbers."
            )
        if not all(math.isfinite(value) and value > 0 for value in std):
            raise InvalidArgumentError(
                f"std: {std} has a number that is not finite and positive. Pass 1 for no scaling."
            )
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise images (B, C, H, W)."""
        return (x - self.mean) / self.std

    def lipschitz_bound(self, norm: float) -> float:
        """Return how far outputs move at most where inputs move by 1, in any norm."""
        return 1 / float(self.std.min())

    def rounding_error(self, largest: Tensor, unit: float) -> Tensor:
        """Bound what rounding adds to outputs whose exact values are at most ``largest``."""
        return 4 * unit * largest

    def extra_repr(self) -> str:
        """Return the constants, which ``print(model)`` shows."""
        mean, std = (
            [round(value, 4) for value in buffer.flatten().tolist()]
            for buffer in (self.mean, self.std)
        )
        return f"mean={mean}, std={std}"
