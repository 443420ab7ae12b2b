"""Checks of inputs, weights and specifications before a call of the host."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ..errors import InvalidArgumentError, UnsupportedModelError
from ..perturbations import Region


def check_input(x, weight: Tensor | None) -> None:
    """Raise InvalidArgumentError unless x is a batch with the type and device of the weights."""
    if not isinstance(x, Tensor) or x.ndim < 2:
        actual = f"shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise InvalidArgumentError(
            f"x must be a tensor (B, ...) with a batch dimension, found {actual}"
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
    """Raise InvalidArgumentError where a weight is NaN or infinite, or a buffer holds NaN."""
    for name, parameter in model.named_parameters():
        if not is_lazy(parameter) and not bool(torch.isfinite(parameter).all()):
            kind = "NaN" if bool(torch.isnan(parameter).any()) else "infinite values"
            raise InvalidArgumentError(
                f"model: its parameter {name} holds {kind}; nothing can be said of such a "
                "network. Load weights that are finite, or train it again"
            )
    for name, buffer in model.named_buffers():  # a mask's buffer may well be infinite
        if not is_lazy(buffer) and bool(torch.isnan(buffer).any()):
            raise InvalidArgumentError(
                f"model: its buffer {name} holds NaN; nothing can be said of such a network. "
                "Load weights that are finite, or train it again"
            )


def check_usable_weights(model: nn.Module) -> None:
    """Raise UnsupportedModelError where bounds cannot use the weights.

    Weights of half precision round more than bounds cover, and torch traces no model with weights
    that were made in inference mode.
    """
    half = next(
        (
            parameter.dtype
            for parameter in model.parameters()
            if parameter.dtype in (torch.float16, torch.bfloat16)
        ),
        None,
    )
    if half is not None:
        raise UnsupportedModelError(
            f"model has weights of {half}, whose rounding bounds do not cover; bound "
            "model.float() or model.double()"
        )
    if any(
        tensor.is_inference()
        for tensor in (*model.parameters(), *model.buffers())
        if not is_lazy(tensor)
    ):
        raise UnsupportedModelError(
            "model has weights that were made in torch.inference_mode, which nothing can be "
            "traced with; make the model outside of it, or copy.deepcopy it there"
        )


def check_fixed_weights(model: nn.Module, method: str) -> None:
    """Raise UnsupportedModelError where weights are perturbed, which a method takes for fixed."""
    if any(getattr(parameter, "ptb", None) is not None for parameter in model.parameters()):
        raise UnsupportedModelError(
            f"model: {method} takes the weights for fixed, and some are perturbed "
            "(BoundedParameter); use IBP, CROWN-IBP or CROWN"
        )


def check_batch(x: Sequence) -> None:
    """Raise InvalidArgumentError unless several inputs have the same batch size."""
    shapes = [tuple(torch.as_tensor(tensor).shape) for tensor in x]
    if len({shape[:1] for shape in shapes}) > 1:
        raise InvalidArgumentError(
            f"x: inputs of shapes {', '.join(map(str, shapes))} are no batch; give every input the"
            " same batch dimension in front, for example by expand"
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
        regions: The regions that C belongs to.
        outputs: K; None does not check it.

    Raises:
        InvalidArgumentError: A wrong count, shape, type, device or value.
    """
    if C is None:
        return None
    specifications = [C] * len(regions) if isinstance(C, Tensor) else list(C)
    if len(specifications) != len(regions):
        raise InvalidArgumentError(
            f"C: {len(specifications)} specifications for {len(regions)} regions; give one for all"
            " or one each"
        )
    for specification, region in zip(specifications, regions):
        _check_specification(specification, region.center, outputs)
    return torch.cat(specifications)


def _check_specification(C, x: Tensor, outputs: int | None) -> None:
    if not isinstance(C, Tensor) or C.ndim != 3 or C.shape[0] != x.shape[0]:
        actual = f"shape {tuple(C.shape)}" if isinstance(C, Tensor) else type(C).__name__
        raise InvalidArgumentError(
            f"C must be a tensor (B, S, K) with B = {x.shape[0]}, found {actual}"
        )
    if outputs is not None and C.shape[2] != outputs:
        raise InvalidArgumentError(f"C has K = {C.shape[2]}; the model has {outputs} outputs")
    if C.dtype != x.dtype or C.device != x.device:
        raise InvalidArgumentError(
            f"C is {C.dtype} on {C.device}, x is {x.dtype} on {x.device}; use C.to(x)"
        )


def checked_norms(norm_in: float | str, norm_out: float | str) -> tuple[float, float]:
    """Return the norms of a Lipschitz constant as numbers.

    Raises:
        InvalidArgumentError: One of them is not 1, 2 or inf.
    """
    norms = []
    for name, norm in (("norm_in", norm_in), ("norm_out", norm_out)):
        try:
            number = float(norm)
        except (TypeError, ValueError):
            number = math.nan
        if number not in (1, 2, math.inf):
            raise InvalidArgumentError(f"{name}={norm!r} must be 1, 2 or inf")
        norms.append(number)
    return norms[0], norms[1]
