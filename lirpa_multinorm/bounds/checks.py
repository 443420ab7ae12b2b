"""Checks of what users pass to the bounds, before the host sees it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ..errors import InvalidArgumentError
from ..perturbations import Region


def check_input(x, weight: Tensor | None) -> None:
    """Raise InvalidArgumentError unless x is a batch with the type and device of the weights."""
    if not isinstance(x, Tensor) or x.ndim < 2:
        found = f"shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise InvalidArgumentError(
            f"x must be a tensor (B, ...) with a batch dimension, found {found}"
        )
    if not x.shape[0]:
        raise InvalidArgumentError("x is an empty batch; give at least one input")
    dtype, device = (x.dtype, x.device) if weight is None else (weight.dtype, weight.device)
    if x.dtype != dtype or not x.is_floating_point():
        raise InvalidArgumentError(
            f"x has dtype {x.dtype}, the model {dtype}; convert with x.to({dtype})"
        )
    if x.device != device:
        raise InvalidArgumentError(
            f"x is on {x.device}, the model on {device}; move it with x.to('{device}')"
        )


def check_weights(model: nn.Module) -> None:
    """Raise InvalidArgumentError where a weight is NaN or infinite, or a buffer holds NaN.

    Buffers are, for example, BatchNorm's statistics.
    """
    for name, value in model.named_parameters():
        if not is_lazy(value) and not bool(torch.isfinite(value).all()):
            kind = "NaN" if bool(torch.isnan(value).any()) else "infinite values"
            raise InvalidArgumentError(
                f"model: its parameter {name} holds {kind}; nothing can be said of such a "
                "network. Load weights that are finite, or train it again"
            )
    for name, value in model.named_buffers():  # a mask's buffer may well be infinite
        if not is_lazy(value) and bool(torch.isnan(value).any()):
            raise InvalidArgumentError(
                f"model: its buffer {name} holds NaN; nothing can be said of such a network. "
                "Load weights that are finite, or train it again"
            )


def check_shape(x: Tensor, traced: Tensor) -> None:
    """Raise InvalidArgumentError unless x has the shape the model was traced for."""
    if x.shape[1:] != traced.shape[1:]:
        raise InvalidArgumentError(
            f"x has shape {tuple(x.shape)}; the model was traced for inputs "
            f"(B, {', '.join(map(str, traced.shape[1:]))})"
        )


def stacked_specification(
    C: None | Tensor | Sequence[Tensor], regions: Sequence[Region], outputs: int | None
) -> Tensor | None:
    """Return the specification of the stacked batch, (sum of B, S, K), or None.

    Args:
        C: One specification for all regions, one per region, or None.
        regions: The regions it belongs to.
        outputs: K; None does not check it.

    Raises:
        InvalidArgumentError: A wrong count, shape, type, device or value.
    """
    if C is None:
        return None
    every = [C] * len(regions) if isinstance(C, Tensor) else list(C)
    if len(every) != len(regions):
        raise InvalidArgumentError(
            f"C: {len(every)} specifications for {len(regions)} regions; give one for all or "
            "one each"
        )
    for one, region in zip(every, regions):
        _check_specification(one, region.center, outputs)
    return torch.cat(every)


def _check_specification(C, x: Tensor, outputs: int | None) -> None:
    if not isinstance(C, Tensor) or C.ndim != 3 or C.shape[0] != x.shape[0]:
        found = f"shape {tuple(C.shape)}" if isinstance(C, Tensor) else type(C).__name__
        raise InvalidArgumentError(
            f"C must be a tensor (B, S, K) with B = {x.shape[0]}, found {found}"
        )
    if outputs is not None and C.shape[2] != outputs:
        raise InvalidArgumentError(f"C has K = {C.shape[2]}; the model has {outputs} outputs")
    if C.dtype != x.dtype or C.device != x.device:
        raise InvalidArgumentError(
            f"C is {C.dtype} on {C.device}, x is {x.dtype} on {x.device}; use C.to(x)"
        )
