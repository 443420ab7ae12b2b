"""Which torch operators are affine in which arguments, and their form in absolute coefficients."""

from __future__ import annotations

from typing import Any, Callable, NamedTuple

import torch
from torch import Tensor


class AffineRule(NamedTuple):
    """How an operator is affine.

    Args:
        moving: The arguments that it is affine in.
        joint: Whether it is in all of them together, not only in each while the others are
            constant.
        added: Arguments whose constants are added: zero where distances are carried.
        factors: Arguments whose constants are multiplied by: absolute there.
        run: What to run instead of torch's operator; None for that.
        spread: What to run with absolute coefficients instead; None for the same.
        signed: Whether it has negative coefficients of its own.
        by_matrix: Whether these are in none of its arguments, so that its matrix must be written
            out.
        products: Whether each coefficient is a product of factors, so that its square is that of
            their squares.
        holds: Whether the rule holds for all the other arguments.
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


#: Operators after which every value is one that was there before.
RESHAPES = (
    "view",
    "reshape",
    "flatten",
    "unflatten",
    "squeeze",
    "unsqueeze",
    "permute",
    "transpose",
    "t",
    "mT",
    "numpy_T",
    "matrix_H",
    "moveaxis",
    "movedim",
    "swapaxes",
    "swapdims",
    "clone",
    "contiguous",
    "detach",
    "alias",
    "lift_fresh_copy",
    "_unsafe_view",
    "view_as",
    "reshape_as",
    "positive",
    "atleast_1d",
    "atleast_2d",
    "atleast_3d",
    "ravel",
    "to",
    "_to_copy",
    "type_as",
)
#: Operators on each element alone.
ELEMENTWISE = ("add", "sub", "rsub", "mul", "div", "neg", "batch_norm")
COPIES = (
    "expand",
    "expand_as",
    "broadcast_to",
    "repeat",
    "tile",
    "repeat_interleave",
    "slice",
    "select",
    "narrow",
    "index",
    "index_select",
    "gather",
    "take",
    "take_along_dim",
    "flip",
    "fliplr",
    "flipud",
    "roll",
    "rot90",
    "unfold",
    "im2col",
    "diagonal",
    "tril",
    "triu",
    "pixel_shuffle",
    "pixel_unshuffle",
    "channel_shuffle",
    "native_channel_shuffle",
    "reflection_pad1d",
    "reflection_pad2d",
    "reflection_pad3d",
    "replication_pad1d",
    "replication_pad2d",
    "replication_pad3d",
    "chunk",
    "split",
    "split_with_sizes",
    "tensor_split",
    "unbind",
    "unsafe_chunk",
    "unsafe_split",
    "unsafe_split_with_sizes",
    "upsample_nearest1d",
    "upsample_nearest2d",
    "upsample_nearest3d",
    "_upsample_nearest_exact1d",
    "_upsample_nearest_exact2d",
    "_upsample_nearest_exact3d",
)
SUMS = (
    "mean",
    "sum",
    "cumsum",
    "col2im",
    "trace",
    "avg_pool1d",
    "avg_pool2d",
    "avg_pool3d",
    "adaptive_avg_pool1d",
    "adaptive_avg_pool2d",
    "adaptive_avg_pool3d",
    "_adaptive_avg_pool2d",
    "_adaptive_avg_pool3d",
    "upsample_linear1d",
    "upsample_bilinear2d",
    "upsample_trilinear3d",
    "grid_sampler",
    "grid_sampler_2d",
    "grid_sampler_3d",
)
DROPOUTS = ("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout")
CONVOLUTIONS = (
    "conv1d",
    "conv2d",
    "conv3d",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
)
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
    shape = (1, -1, *[1] * (input.ndim - 2))
    scale = batch_norm_scale(weight, running_var, options["eps"])
    value = (input - running_mean.view(shape)) * scale.view(shape)
    return value if bias is None else value + bias.view(shape)


def batch_norm_scale(weight: Tensor | None, running_var: Tensor, eps: float) -> Tensor:
    """Return what a BatchNorm in eval mode multiplies each channel by."""
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
    """What a difference is with absolute coefficients."""
    return self + abs(alpha) * other


def _sum_of_reversed(self: Any, other: Any, alpha: Any = 1) -> Tensor:
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
    places = torch.arange(self.shape[dim], device=src.device)[start:end:step]
    taken = torch.zeros(self.shape[dim], dtype=torch.long, device=src.device)
    taken[places] = torch.arange(1, len(places) + 1, device=src.device)
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
#: Operators that add and multiply nothing.
EXACT = frozenset(
    (
        *RESHAPES,
        *COPIES,
        *DROPOUTS,
        "pad",
        "constant_pad_nd",
        "masked_fill",
        "where",
        "cat",
        "stack",
        "concat",
        "concatenate",
        "hstack",
        "vstack",
        "column_stack",
        "slice_scatter",
        "select_scatter",
        "copy",
        "neg",
    )
)
#: Operators of which only a value's shape and type matter: constants.
SHAPES_ONLY = (
    "zeros_like",
    "ones_like",
    "full_like",
    "new_zeros",
    "new_ones",
    "new_full",
    "size",
    "sym_size",
)
