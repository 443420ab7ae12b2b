"""How many products an operator sums up for a number, which its rounding error grows with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Callable

import torch

from ...errors import UnsupportedModelError
from .. import network


def summed_products(step: network.Step, sources: Sequence[torch.Size]) -> int:
    """Return how many products are summed up at most for one number of a step's value.

    Args:
        step: An affine step.
        sources: The shapes of its sources, of one set.

    Raises:
        UnsupportedModelError: The operator's rounding is not known.
    """
    if step.operator not in _COUNTS:
        raise UnsupportedModelError(f"model: what rounding does in {step} is not known")
    return _COUNTS[step.operator](step, sources)


def _all_elements(step: network.Step, sources: Sequence[torch.Size]) -> int:
    return sum(shape.numel() for shape in sources)


def _matrix_side(step: network.Step, sources: Sequence[torch.Size]) -> int:
    return max(sources[0][-2:])


def _window(step: network.Step, sources: Sequence[torch.Size]) -> int:
    kernel, dims = step.arguments["kernel_size"], len(sources[0]) - 2
    kernel = [kernel] if isinstance(kernel, int) else kernel
    return math.prod(kernel) ** (dims // len(kernel))


def _kernel(step: network.Step, sources: Sequence[torch.Size]) -> int:
    weight = step.arguments["weight"]
    if "transpose" in step.operator:
        return weight.shape[0] * weight[0, 0].numel()
    return weight[0].numel()


_COUNTS: dict[str, Callable[[network.Step, Sequence[torch.Size]], int]] = {
    **dict.fromkeys(("linear", *network.CONVOLUTIONS), _kernel),
    **dict.fromkeys(("matmul", "mm", "bmm", "mv", "dot", "inner", "addmm"), _matrix_side),
    **dict.fromkeys(("avg_pool1d", "avg_pool2d", "avg_pool3d"), _window),
    **dict.fromkeys(
        (
            "mean",
            "sum",
            "cumsum",
            "col2im",
            "trace",
            "einsum",
            "adaptive_avg_pool1d",
            "adaptive_avg_pool2d",
            "adaptive_avg_pool3d",
            "_adaptive_avg_pool2d",
            "_adaptive_avg_pool3d",
        ),
        _all_elements,
    ),
    **dict.fromkeys(("mul", "div", "add", "sub", "rsub"), lambda step, sources: 2),
}
