"""Balls in which some pixels are fixed, or move by radii of their own."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from ..errors import InvalidArgumentError
from .lp_box import PerturbationLpBox


def restricted(
    perturbation: PerturbationLpBox,
    x: Tensor,
    mask: Tensor | None = None,
    radii: float | Tensor | None = None,
) -> PerturbationLpBox:
    """Return a set around given inputs of which some pixels are fixed or move less than others.

    ``{x' : ||x' - x||_p <= eps, |x'_i - x_i| <= radii_i, x'_i = x_i where mask_i is False}``, cut
    with the set's range. It is the ball cut with a range per pixel, so that every method, attack
    and loss that takes a ball takes it, with the same exactness.

    Args:
        perturbation: The ball; of an l_inf set with ``radii``, eps may be as large as the largest.
        x: The inputs that the set is around, (B, ...).
        mask: Which pixels may move, of bool, of a shape that broadcasts to x; None: all.
        radii: How far each pixel moves at most, >= 0, of a shape that broadcasts to x; None: as
            far as the ball lets it.

    Returns:
        A set for these inputs only: its range is one per example.

    Raises:
        InvalidArgumentError: The mask is not of bool, a radius is negative or no number, or a shape
            does not fit the inputs.

    Example:
        >>> from lirpa_multinorm import PerturbationLinf
        >>> x = torch.tensor([[0.5, 0.5, 0.5]])
        >>> moved = restricted(PerturbationLinf(0.2), x, torch.tensor([True, False, True]))
        >>> moved.enclosing_box(x)[1]
        tensor([[0.7000, 0.5000, 0.7000]])
    """
    lower, upper = perturbation.enclosing_box(x)
    if radii is not None:
        radius = _fitting("radii", torch.as_tensor(radii, dtype=x.dtype, device=x.device), x)
        if not bool((radius >= 0).all()):
            raise InvalidArgumentError("radii: each must be a number >= 0; 0 fixes a pixel")
        lower, upper = torch.maximum(lower, x - radius), torch.minimum(upper, x + radius)
    if mask is not None:
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
            kind = getattr(mask, "dtype", type(mask).__name__)
            raise InvalidArgumentError(
                f"mask is of {kind}; give a tensor of bool, True where a pixel may move"
            )
        free = _fitting("mask", mask.to(x.device), x)
        lower, upper = torch.where(free, lower, x), torch.where(free, upper, x)
    result = copy.copy(perturbation)
    # Rounding must not put the inputs outside.
    result.clip = torch.minimum(lower, x), torch.maximum(upper, x)
    return result


def _fitting(name: str, value: Tensor, x: Tensor) -> Tensor:
    """Return a tensor expanded to the shape of x."""
    try:
        return value.expand_as(x)
    except RuntimeError as error:
        raise InvalidArgumentError(
            f"{name} has the shape {tuple(value.shape)}, which does not broadcast to the inputs' "
            f"{tuple(x.shape)}"
        ) from error
