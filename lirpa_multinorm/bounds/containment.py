"""Checks of bounds: they contain the model's own output, and no NaN made them infinite."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from ..errors import InvalidArgumentError, NaNBoundError, UnsupportedModelError
from ..tracing.comparison import ROUNDING, rounding_noise
from ..utils.modes import tensor_float_32

NAN_REMEDY = "; check the model's weights for NaN or infinite values, or use float64"


@torch.no_grad()
def check_contained(
    model: nn.Module,
    x: Sequence[Tensor],
    C: Tensor | None,
    lower: Tensor | None,
    upper: Tensor | None,
    method: str,
) -> None:
    """Raise unless bounds contain the model's own output at the centre of their set.

    Args:
        model: The plain model, in eval mode.
        x: Its inputs, (B, ...) each.
        C: Specification (B, S, K), or None.
        lower: Lower bounds (B, S), or of the output's shape without C; or None.
        upper: Upper bounds; or None.
        method: The method that made them.

    Raises:
        UnsupportedModelError: An output lies outside by more than rounding.
    """
    with tensor_float_32(False):
        output = model(*x)
    specified = partial(_specified, C)
    value = specified(output)
    size = (
        output.flatten(1).abs()
        if C is None
        else C.abs().matmul(output.flatten(1).abs().unsqueeze(-1)).squeeze(-1)
    )
    allowed = 10 * ROUNDING * torch.finfo(value.dtype).eps * size.flatten(1).amax(1)
    excess = [
        (bound.detach() - value if sign > 0 else value - bound.detach()).flatten(1).amax(1)
        for bound, sign in ((lower, 1), (upper, -1))
        if bound is not None and bound.shape == value.shape
    ]
    for gap in excess:
        wrong = gap > allowed  # False for NaN, which is reported elsewhere
        if bool(wrong.any()):
            with tensor_float_32(False):
                wrong = gap > allowed + 1000 * rounding_noise(model, x, specified).squeeze(1)
        if bool(wrong.any()):
            raise UnsupportedModelError(
                f"model: the bounds by {method} leave out the model's own output at the centre "
                f"of the set, by {float(gap[wrong].max()):.3g}: the graph computes another "
                "function than the model, or the host bounds an operator wrongly. If the "
                "model was changed after its first use, call BoundedModule(model) anew; "
                "otherwise try another method"
            )


def check_infinite(
    model: nn.Module, bounds: Sequence[Tensor], C: Tensor | None, method: str
) -> None:
    """Raise where bounds are NaN, or infinite because the newer host has replaced a NaN.

    Args:
        model: The network.
        bounds: Lower and upper bounds, of which some are not finite.
        C: Their specification, or None.
        method: The method that made them.

    Raises:
        InvalidArgumentError: C is not finite.
        NaNBoundError: A bound is NaN, or infinite and a weight is NaN.
    """
    if C is not None and not bool(torch.isfinite(C).all()):
        raise InvalidArgumentError("C contains NaN or infinite values; clean it first")
    broken = any(
        bool(torch.isnan(tensor).any())
        for tensor in model.state_dict().values()
        if isinstance(tensor, Tensor)
    )
    infinite = any(not bool(torch.isfinite(bound).all()) for bound in bounds)
    if infinite and (broken or any(bool(torch.isnan(bound).any()) for bound in bounds)):
        raise NaNBoundError(f"the bounds by {method} contain NaN{NAN_REMEDY}")


def refuse_nodes(names: Sequence[str], broken: Tensor, method: str) -> None:
    """Raise NaNBoundError for the first node whose bounds are NaN.

    Args:
        names: The nodes.
        broken: Which of them have NaN, bool of shape (nodes,).
        method: The method that made the bounds.
    """
    node = next(name for name, wrong in zip(names, broken.tolist()) if wrong)
    raise NaNBoundError(f"the bounds of node {node} by {method} contain NaN{NAN_REMEDY}")


def _specified(C: Tensor | None, output: Tensor) -> Tensor:
    """Return the linear forms C (B, S, K) of an output, or the output itself."""
    return output if C is None else C.matmul(output.flatten(1).unsqueeze(-1)).squeeze(-1)
