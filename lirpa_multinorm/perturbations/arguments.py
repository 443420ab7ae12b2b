"""Checks of a set's radius and range."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor

from ..errors import InvalidArgumentError
from ..utils.deferred import require
from .broadcast import as_tensor

_TOLERANCE = 1e-6  # how far outside `clip` rounding may put an input, in units of its size


def checked_eps(eps) -> float | Tensor:
    """Return a radius as a float or a tensor of one value per example.

    Raises:
        InvalidArgumentError: It is no such radius.
    """
    if isinstance(eps, (int, float)) and 0 <= eps < 1e300:
        return float(eps)
    try:
        values = eps
        if not isinstance(eps, Tensor):
            values = torch.as_tensor(eps, dtype=torch.float64, device="cpu")
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
    if all(isinstance(bound, float) for bound in bounds) and -math.inf < lower <= upper < math.inf:
        return bounds
    lower, upper = (as_tensor(bound) for bound in bounds)
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
    if isinstance(bound, (int, float)) and abs(bound) < 1e300:
        return float(bound)
    values = torch.tensor(bound, dtype=torch.float64, device="cpu")
    return values if values.ndim else float(values)


def check_values(x: Tensor, clip: tuple[Tensor, Tensor] | None, name: str) -> None:
    """Raise InvalidArgumentError where x is NaN, infinite or outside ``clip``, if there is one.

    Args:
        x: Inputs, (B, ...), without gradients.
        clip: Tensors that broadcast beside x.
        name: Of x, in the message.
    """
    lower, upper = torch.aminmax(x)
    passed, outside = torch.isfinite(lower) & torch.isfinite(upper), None
    if clip is not None:
        if clip[0].ndim == clip[1].ndim == 0:
            outside = torch.maximum(clip[0] - lower, upper - clip[1])
        else:
            outside = torch.maximum(clip[0] - x, x - clip[1]).max()
        size = torch.maximum(lower.abs(), upper.abs()).clamp(min=1)
        passed = passed & (outside <= _TOLERANCE * size)
    require(passed, partial(_refuse_values, lower, upper, outside, name))


def _refuse_values(lower: Tensor, upper: Tensor, outside: Tensor | None, name: str) -> None:
    """Raise the error of inputs that :func:`check_values` refuses."""
    least, most = float(lower), float(upper)
    if outside is None or not (math.isfinite(least) and math.isfinite(most)):
        raise InvalidArgumentError(
            f"{name} contains NaN or infinite values; clean the inputs first"
        )
    raise InvalidArgumentError(
        f"{name} lies outside clip by up to {float(outside):.3g} (range {least:.3g} to"
        f" {most:.3g}). Scale the inputs into clip, give clip as the range of the"
        " normalised inputs (one tensor value per channel), or clip=None for the plain ball"
    )
