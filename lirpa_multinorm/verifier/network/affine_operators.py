"""The affine operators of torch: their arguments, and their form with absolute coefficients."""

from __future__ import annotations

from typing import Any, Callable, NamedTuple

import torch
from torch import Tensor

from .operators import CONVOLUTIONS, COPIES, DROPOUTS, RESHAPES, SUMS


class AffineRule(NamedTuple):
    """The arguments that an operator is affine in, and what becomes of the others.

    Args:
        moving: The arguments that the operator is affine in.
        joint: Whether it is affine in all of them together, not only in each while the others are
            constant.
        added: Arguments whose constants are added: zero where distances are carried.
        factors: Arguments whose constants are multiplied by: absolute where distances are carried.
        run: A function to run instead of torch's operator; None for the operator.
        spread: A function to run with absolute coefficients; None for the same as ``run``.
        signed: Whether the operator has negative coefficients besides those in its arguments.
        by_matrix: Whether coefficients are in none of its arguments, so that its matrix must be
            written out.
        products: Whether each coefficient is a product of factors, so that its square is the
            product of their squares.
        holds: Whether the rule holds for the other arguments.
    """

    moving: tuple[str, ...]
    joint: bool = False
    added: tuple[str, ...] = ()
    factors: tuple[str, ...] = ()
    run: Callable | None = None
    spread: Callable | None = None
    signed: bool = False
    by_matrix: bool = False
    products: bool = False
    holds: Callable[[dict[str, Any]], bool] = lambda arguments: True


#: Operators whose coefficients have both signs and are in none of their arguments.
_BY_MATRIX = ("upsample_bicubic2d", "diff")


def _batch_norm(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    **options,
) -> Tensor:
    """Normalise by running statistics; torch's own operator is slow under vmap."""
    assert running_mean is not None and running_var is not None  # as _has_running_statistics says
    shape = (1, -1, *[1] * (input.ndim - 2))
    scale = batch_norm_scale(weight, running_var, options["eps"])
    value = (input - running_mean.view(shape)) * scale.view(shape)
    return value if bias is None else value + bias.view(shape)


def batch_norm_scale(weight: Tensor | None, running_var: Tensor, eps: float) -> Tensor:
    """Return the factor of each channel in a BatchNorm in eval mode."""
    scale = torch.rsqrt(running_var + eps)
    return scale if weight is None else scale * weight


def _has_running_statistics(arguments: dict[str, Any]) -> bool:
    uses_batch = arguments.get("training", False) or arguments.get("use_input_stats", False)
    return (
        not uses_batch
        and arguments.get("running_mean") is not None
        and arguments.get("running_var") is not None
    )


def _sum_of(self: Any, other: Any, alpha: Any = 1) -> Tensor:
    """Return ``self - alpha other`` with absolute coefficients."""
    return self + abs(alpha) * other


def _sum_of_reversed(self: Any, other: Any, alpha: Any = 1) -> Tensor:
    """Return ``other - alpha self`` with absolute coefficients."""
    return other + abs(alpha) * self


def _slice_scatter(
    self: Tensor,
    src: Tensor,
    dim: int = 0,
    start: int | None = None,
    end: int | None = None,
    step: int = 1,
) -> Tensor:
    """Return ``self`` with ``src`` written into a slice; torch's own operator fails under vmap."""
    targets = torch.arange(self.shape[dim], device=src.device)[start:end:step]
    taken = torch.zeros(self.shape[dim], dtype=torch.long, device=src.device)
    taken[targets] = torch.arange(1, len(targets) + 1, device=src.device)
    column = [1] * self.ndim
    column[dim] = -1
    return torch.where(
        (taken > 0).view(column), src.index_select(dim, (taken - 1).clamp(min=0)), self
    )


def _select_scatter(self: Tensor, src: Tensor, dim: int, index: int) -> Tensor:
    index %= self.shape[dim]
    return _slice_scatter(self, src.unsqueeze(dim), dim, index, index + 1)


_FIRST = AffineRule(("self", "input"))
_FACTORS = ("self", "other", "input", "mat2", "vec", "tensor", "tensors")
_CONVOLUTION = AffineRule(("input",), added=("bias",), factors=("weight",), products=True)
_BATCH_NORM = AffineRule(
    ("input",),
    added=("bias", "running_mean"),
    factors=("weight",),
    run=_batch_norm,
    holds=_has_running_statistics,
)

#: By torch's name of the operator, whatever its overload.
AFFINE: dict[str, AffineRule] = {
    **dict.fromkeys((*RESHAPES, *COPIES, *SUMS), _FIRST),
    **dict.fromkeys(
        ("avg_pool2d", "avg_pool3d"), AffineRule(("self",), factors=("divisor_override",))
    ),
    **dict.fromkeys(
        DROPOUTS, AffineRule(("input",), holds=lambda arguments: not arguments["train"])
    ),
    "pad": AffineRule(("self",), added=("value",)),
    "constant_pad_nd": AffineRule(("self",), added=("value",)),
    "masked_fill": AffineRule(("self",), added=("value",)),
    "where": AffineRule(("self", "other"), joint=True, added=("self", "other")),
    **{
        name: AffineRule(("self", "src"), joint=True, added=("self", "src"), run=run)
        for name, run in (("slice_scatter", _slice_scatter), ("select_scatter", _select_scatter))
    },
    "copy": AffineRule(
        ("self", "src"), joint=True, run=lambda self, src, **options: src.expand(self.shape)
    ),
    **dict.fromkeys(
        ("cat", "stack", "concat", "concatenate", "hstack", "vstack", "column_stack"),
        AffineRule(("tensors",), joint=True, added=("tensors",)),
    ),
    "add": AffineRule(("self", "other"), joint=True, added=("self", "other"), factors=("alpha",)),
    "sub": AffineRule(
        ("self", "other"), joint=True, added=("self", "other"), signed=True, spread=_sum_of
    ),
    "rsub": AffineRule(
        ("self", "other"), joint=True, added=("self", "other"), signed=True, spread=_sum_of_reversed
    ),
    "neg": AffineRule(("self",), signed=True, spread=lambda self: self),
    "mul": AffineRule(("self", "other"), factors=_FACTORS, products=True),
    "div": AffineRule(
        ("self",),
        factors=("other",),
        products=True,
        holds=lambda arguments: arguments.get("rounding_mode") is None,
    ),
    "linear": _CONVOLUTION,
    **dict.fromkeys(CONVOLUTIONS, _CONVOLUTION),
    **dict.fromkeys(
        ("matmul", "mm", "bmm", "mv", "dot", "inner"),
        AffineRule(_FACTORS, factors=_FACTORS, products=True),
    ),
    "einsum": AffineRule(("tensors",), factors=("tensors",)),
    "addmm": AffineRule(
        ("mat1", "mat2"), added=("self",), factors=("mat1", "mat2", "alpha"), products=True
    ),
    "batch_norm": _BATCH_NORM,
    "instance_norm": _BATCH_NORM,
    **dict.fromkeys(_BY_MATRIX, AffineRule(("self", "input"), signed=True, by_matrix=True)),
}
