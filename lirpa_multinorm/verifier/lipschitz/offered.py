"""Lipschitz constants that a model's layers offer, and bounds of its outputs by them.

A layer offers constants by a method ``lipschitz_bound(norm)``: an upper bound of how far its output
moves in the norm (inf, 2 or 1) where its input moves by 1 in it, infinity where none is known.
Common layers of torch need no such method. Layer by layer a set's reach is carried along in all
three norms, and each norm's reach is made as small as the others make it: in d dimensions
``||z||_inf <= ||z||_2 <= ||z||_1``, ``||z||_2 <= sqrt(d) ||z||_inf`` and ``||z||_1 <= sqrt(d)
||z||_2``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Callable

import torch
from torch import Tensor, nn

from ...errors import UnsupportedModelError
from ...perturbations import Region
from .constants import l1_radius, l2_radius
from .output_bounds import rounded_down

NORMS = (math.inf, 2.0, 1.0)
_DUAL = {math.inf: 1.0, 2.0: 2.0, 1.0: math.inf}
_OUTWARD = 1 + 1e-9  # of products and sums in float64
_RADIUS = 1 + 4 * torch.finfo(torch.float32).eps  # of boxes in float32
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
MEANS = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
_POOLS = (*MEANS, nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)
DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
_ONE = (nn.Flatten, nn.ReLU, nn.Identity)

#: How far a value moves on each of B sets, (B,) in float64, by norm.
Reaches = dict[float, Tensor]


def offers(model: nn.Module) -> bool:
    """Return whether a layer of a model has a method ``lipschitz_bound`` of its own."""
    return any(callable(getattr(layer, "lipschitz_bound", None)) for layer in model.modules())


def offered_layers(model: nn.Module) -> list[nn.Module]:
    """Return the layers of a ``nn.Sequential``, those of nested ones in its place.

    Raises:
        UnsupportedModelError: The model is no ``nn.Sequential``, or a layer's constant is infinite
            in every norm; the message names it.
    """
    if type(model) is not nn.Sequential and not callable(getattr(model, "lipschitz_bound", None)):
        raise UnsupportedModelError(
            f"model: a {type(model).__name__} offers no Lipschitz constants; use a nn.Sequential of"
            " layers that do, or define lipschitz_bound(norm) on it"
        )
    layers = list(flat_layers(model))
    for layer in layers:
        if all(layer_constant(layer, norm) == math.inf for norm in NORMS):
            mode = ", which is in training mode," if layer.training else ""
            name = type(layer).__name__ if any(layer.children()) else str(layer)
            raise UnsupportedModelError(
                f"model: {name}{mode} offers no finite Lipschitz constant; call eval() on it, or"
                " define lipschitz_bound(norm)"
            )
    return layers


def flat_layers(model: nn.Module) -> Iterator[nn.Module]:
    """Yield a model's layers, those of nested ``nn.Sequential`` in their place."""
    if type(model) is nn.Sequential and not is_altered(model):
        for child in model:
            yield from flat_layers(child)
    else:
        yield model


def is_altered(layer: nn.Module) -> bool:
    """Return whether a hook, or a ``forward`` of the object, can change what a layer computes."""
    every = torch.nn.modules.module  # where hooks of all modules stand
    hooks = (
        layer._forward_hooks,
        layer._forward_pre_hooks,
        every._global_forward_hooks,
        every._global_forward_pre_hooks,
    )
    return any(map(bool, hooks)) or "forward" in vars(layer)


def computes_as(layer: nn.Module, kinds: tuple[type[nn.Module], ...]) -> bool:
    """Return whether a layer computes what one of torch's classes does, and no subclass's own.

    Example:
        >>> class Scaled(nn.Linear):
        ...     def forward(self, x):
        ...         return 10 * super().forward(x)
        >>> computes_as(nn.Linear(2, 1), (nn.Linear,)), computes_as(Scaled(2, 1), (nn.Linear,))
        (True, False)
    """
    kind = next((kind for kind in kinds if isinstance(layer, kind)), None)
    return kind is not None and all(
        getattr(type(layer), name, None) is getattr(kind, name, None)
        for name in ("__call__", "forward", "_conv_forward")
    )


def layer_constant(layer: nn.Module, norm: float) -> float:
    """Return an upper bound of a layer's Lipschitz constant in a norm; infinity if not known.

    It is not known of a layer with a hook, nor of a subclass with a ``forward`` of its own, unless
    it offers a constant.

    Raises:
        UnsupportedModelError: The constant that the layer offers is negative or NaN.

    Example:
        >>> layer = nn.Linear(2, 1)
        >>> _ = layer.weight.data.copy_(torch.tensor([[3.0, -4.0]]))
        >>> [round(layer_constant(layer, norm), 6) for norm in (math.inf, 1)]
        [7.0, 4.0]
    """
    offered: Callable[[float], float] | None = getattr(layer, "lipschitz_bound", None)
    if is_altered(layer):
        constant = math.inf
    elif callable(offered):
        constant = float(offered(norm))
        if not constant >= 0:
            raise UnsupportedModelError(
                f"model: {layer}.lipschitz_bound({norm:g}) is {constant}; return an upper bound of"
                " at least 0, or infinity"
            )
    elif computes_as(layer, _ONE) or (computes_as(layer, DROPOUTS) and not layer.training):
        constant = 1.0
    elif computes_as(layer, (nn.Linear, *_CONVOLUTIONS)):
        constant = _between(norm, *_weight_sums(layer))
    elif computes_as(layer, _POOLS):
        constant = _between(norm, *_pool_sums(layer))
    else:
        constant = math.inf
    return constant if constant == 1 else constant * _OUTWARD


def _between(norm: float, rows: float, columns: float) -> float:
    """Return a norm of a matrix by its largest row and column sums; l_2 by Schur's bound."""
    return {math.inf: rows, 1.0: columns}.get(norm, math.sqrt(rows * columns))


def _weight_sums(layer: nn.Module) -> tuple[float, float]:
    """Return the largest row and column sums of absolute weights, for a Conv at any place."""
    weight = layer.weight.detach().double().abs()  # type: ignore[operator]
    groups = getattr(layer, "groups", 1)
    if getattr(layer, "padding_mode", "zeros") != "zeros":
        return math.inf, math.inf
    of_inputs = weight.flatten(2).sum(2) if weight.ndim > 2 else weight
    columns = of_inputs.unflatten(0, (groups, -1)).sum(1)
    return float(of_inputs.sum(1).max()), float(columns.max())


def _pool_sums(layer: nn.Module) -> tuple[float, float]:
    """Return the largest row and column sums of a pooling, whose weights add up to at most 1."""
    if getattr(layer, "divisor_override", None) is not None:
        return math.inf, math.inf
    dims = _POOLS.index(next(kind for kind in _POOLS if isinstance(layer, kind))) % 3 + 1
    sides, steps = _sizes(layer.kernel_size, dims), _sizes(layer.stride, dims)
    dilations = _sizes(getattr(layer, "dilation", 1), dims)
    # Windows that see a number: dilated ones may all meet it, whatever the stride.
    windows = math.prod(
        side if dilation > 1 else -(-side // step)
        for side, step, dilation in zip(sides, steps, dilations)
    )
    padded = any(_sizes(getattr(layer, "padding", 0), dims)) or bool(layer.ceil_mode)
    is_mean = isinstance(layer, MEANS) and not padded
    return 1.0, windows / math.prod(sides) if is_mean else float(windows)


def _sizes(value: Any, dims: int) -> tuple[int, ...]:
    """Return an option for every side; a single number is that of all."""
    return tuple(value) if isinstance(value, (tuple, list)) else (value,) * dims


def offered_constant(model: nn.Module, norm: float) -> float:
    """Return the product of the layers' constants in one norm, an upper bound of the model's.

    Raises:
        UnsupportedModelError: As :func:`offered_layers`.

    Example:
        >>> offered_constant(nn.Sequential(nn.Flatten(), nn.ReLU()), math.inf)
        1.0
    """
    product = math.prod(layer_constant(layer, norm) for layer in offered_layers(model))
    return product if product == 1 else product * _OUTWARD


def reaches_of(regions: Sequence[Region]) -> Reaches:
    """Return how far sets reach from their centres, rounded up."""
    centers = torch.cat([region.center for region in regions])
    boxes = [region.perturbation.enclosing_box(region.center) for region in regions]
    lower, upper = (torch.cat(ends).flatten(1).double() for ends in zip(*boxes))
    center = centers.flatten(1).double()
    # An end of a box is rounded in float32, by a share of its own size.
    size = torch.maximum(lower.abs(), upper.abs()).amax(1)
    unit = torch.finfo(centers.dtype).eps
    in_box = torch.maximum(upper - center, center - lower).amax(1) + unit * size
    reaches = {
        math.inf: in_box * _RADIUS,
        2.0: l2_radius(regions).double() * _OUTWARD,
        1.0: l1_radius(regions).double() * _OUTWARD,
    }
    return _tidied(reaches, center.shape[1])


def moved(reaches: Reaches, layer: nn.Module, features: int) -> Reaches:
    """Return how far a layer's value moves where its input moves as far as ``reaches``.

    Args:
        reaches: Those of the input.
        layer: The layer.
        features: Numbers in its value for one example.
    """
    behind: Reaches = {}
    for norm, reach in reaches.items():
        constant = layer_constant(layer, norm)
        # Where nothing moves, nothing behind does, whatever the constant.
        behind[norm] = reach if constant == 1 else torch.where(reach == 0, reach, reach * constant)
    return _tidied(behind, features)


def _tidied(reaches: Reaches, features: int) -> Reaches:
    """Return reaches of values of d numbers, each as small as the others make it."""
    root = math.sqrt(features) * _OUTWARD
    in_linf, in_l2, in_l1 = (reaches[norm] for norm in NORMS)
    in_l2 = torch.minimum(torch.minimum(in_l2, in_l1), root * in_linf)
    in_linf, in_l1 = torch.minimum(in_linf, in_l2), torch.minimum(in_l1, root * in_l2)
    in_l1 = torch.minimum(in_l1, features * _OUTWARD * in_linf)
    return {math.inf: in_linf, 2.0: in_l2, 1.0: in_l1}


@torch.no_grad()
def offered_output_bounds(model: nn.Module, regions: Sequence[Region], v: Tensor) -> Tensor:
    """Return ``v . f(x)`` less the least that the constants of some norm allow it to fall.

    With m the reach of the last value, ``|v . (f(x') - f(x))| <= m_q ||v||_q*`` for every norm q
    and its dual q*; of a Linear layer at the end, ``m_q ||v W||_q*`` with m that of its input. A
    ball of radius r in l_2 lies in the l_inf box of radius r, and so on.

    Args:
        model: A ``nn.Sequential`` in eval mode.
        regions: (centre, set) pairs, together B examples.
        v: Linear forms of the output, (B, S, K).

    Returns:
        Lower bounds, (B, S), but for the rounding errors of the model's own value.

    Raises:
        UnsupportedModelError: As :func:`offered_layers`.

    Source: Tsuzuku et al. 2018, "Lipschitz-Margin Training"; for distance networks Zhang et al.
        2021, section 3 (a margin above 2 eps).
    """
    layers = offered_layers(model)
    x = torch.cat([region.center for region in regions]).detach()
    reaches, value, forms = reaches_of(regions), x, v.double()
    for index, layer in enumerate(layers):
        value = layer(value)
        is_last = index == len(layers) - 1 and value.ndim == 2
        if is_last and computes_as(layer, (nn.Linear,)) and not hasattr(layer, "lipschitz_bound"):
            forms = forms @ layer.weight.detach().double()  # type: ignore[operator]
        else:
            reaches = moved(reaches, layer, value[0].numel())
    falls = [
        reaches[norm].unsqueeze(1) * torch.linalg.vector_norm(forms, _DUAL[norm], dim=2) * _OUTWARD
        for norm in NORMS
    ]
    fall = torch.stack(falls).nan_to_num(math.inf, posinf=math.inf).amin(0)
    clean = (v.double() * value.flatten(1).double().unsqueeze(1)).sum(2)
    return rounded_down(clean - fall, v)
