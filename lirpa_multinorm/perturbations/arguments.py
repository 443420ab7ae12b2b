"""Checks of a set's radius and range."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import InvalidArgumentError


def checked_eps(eps) -> float | Tensor:
    """Return a radius as a float or a tensor of one value per example.

    Raises:
        InvalidArgumentError: It is no such radius.
    """
    try:
        values = torch.as_tensor(eps, dtype=None if isinstance(eps, Tensor) else torch.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidArgumentError(
            f"eps={eps!r} is neither a number nor one number per example"
        ) from error
    if values.is_complex():
        raise InvalidArgumentError(f"eps={eps!r} must be real")
    if values.ndim > 1:
        raise InvalidArgumentError(
            f"eps has shape {tuple(values.shape)}; give a float or one value per example"
        )
    if not values.numel() or not bool(torch.isfinite(values).all()) or bool((values < 0).any()):
        raise InvalidArgumentError(f"eps={eps!r} must be finite and not negative")
    return float(values) if values.ndim == 0 and not values.requires_grad else values


def checked_clip(clip) -> tuple[float | Tensor, float | Tensor] | None:
    """Return a range as a pair of floats or tensors, or None, or raise InvalidArgumentError."""
    if clip is None:
        return None
    try:
        lower, upper = clip
    except (TypeError, ValueError) as error:
        raise InvalidArgumentError(
            f"clip={clip!r} must be a pair (lower, upper) or None"
        ) from error
    try:
        bounds = _clip_bound(lower), _clip_bound(upper)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidArgumentError(f"clip={clip!r} must hold numbers or tensors") from error
    lower, upper = (torch.as_tensor(bound) for bound in bounds)
    try:
        ordered = bool((lower <= upper).all())  # also False for NaN
    except RuntimeError as error:
        raise InvalidArgumentError(
            f"clip: shapes {tuple(lower.shape)} and {tuple(upper.shape)} do not fit"
        ) from error
    if not ordered or not bool(torch.isfinite(lower).all() and torch.isfinite(upper).all()):
        raise InvalidArgumentError(f"clip={clip!r} must be finite, with lower <= upper everywhere")
    return bounds


def _clip_bound(bound) -> float | Tensor:
    if isinstance(bound, Tensor):
        return bound.detach().clone()
    values = torch.tensor(bound, dtype=torch.float64)
    return values if values.ndim else float(values)
