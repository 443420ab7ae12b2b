"""Radii and ranges in shapes that broadcast beside a batch."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import InvalidArgumentError


def as_tensor(value: float | Tensor) -> Tensor:
    """Return a tensor as it is, on its device, and a number as a tensor on the CPU."""
    return value if isinstance(value, Tensor) else torch.tensor(value, device="cpu")


def column(values: Tensor, x: Tensor) -> Tensor:
    """Return values of shape (B,) in a shape that broadcasts beside x (B, ...)."""
    return values.view(-1, *[1] * (x.ndim - 1))


def beside(bound: float | Tensor, x: Tensor) -> Tensor:
    """Return a bound of clip in a shape that broadcasts beside x; a vector counts per channel.

    Raises:
        InvalidArgumentError: The bound has another shape.
    """
    bound = torch.as_tensor(bound, dtype=x.dtype, device=x.device)
    if bound.ndim == 0:
        return bound
    if bound.ndim == 1 and x.ndim > 2 and bound.shape[0] == x.shape[1]:
        bound = bound.view(-1, *[1] * (x.ndim - 2))
    try:
        if torch.broadcast_shapes(bound.shape, x.shape) == x.shape:
            return bound
    except RuntimeError:
        pass
    raise InvalidArgumentError(
        f"clip has shape {tuple(bound.shape)}, which fits neither the channels nor the shape of "
        f"an input {tuple(x.shape)}"
    )


def is_per_example(bound: Tensor, x: Tensor) -> bool:
    """Whether a bound of clip has values for each example of x."""
    return bound.ndim == x.ndim and bound.shape[0] > 1


def extent(values: float | Tensor, between: str) -> str:
    """Return the least and the largest value as a text; a single number where they agree."""
    extremes = {float(value) for value in torch.aminmax(as_tensor(values))}
    return between.join(f"{value:.6g}" for value in sorted(extremes))
