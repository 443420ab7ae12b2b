"""Piecewise-linear operators as affine ones and ReLUs."""

from __future__ import annotations

import itertools
import math
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple, Union

import torch
from torch import Tensor

from .pooling import adaptive_windows, strided_windows
from .values import Parts, is_moving

_aten = torch.ops.aten
_MAX_SORTED = 8  # values that are sorted by comparing neighbours

#: A value that moves (:class:`.values.Moving`) or a constant.
Value = Any


class Builder:
    """Arithmetic on values of a graph that is being read.

    Args:
        reader: The reader; constants and values that move may be mixed.
    """

    def __init__(self, reader) -> None:
        self._reader = reader

    def add(self, one: Value, other: Value) -> Value:
        """Return the sum."""
        if not is_moving(one):
            one, other = other, one
        return self._call(_aten.add.Tensor if _is_tensor(other) else _aten.add.Scalar, self=one, other=other)

    def sub(self, one: Value, other: Value) -> Value:
        """Return the difference."""
        if not _is_tensor(one):  # a number less a value
            return self._call(_aten.rsub.Scalar, self=other, other=one)
        return self._call(_aten.sub.Tensor if _is_tensor(other) else _aten.sub.Scalar, self=one, other=other)

    def mul(self, one: Value, factor: Union[float, Tensor]) -> Value:
        """Return the product with a constant."""
        return self._call(_aten.mul.Tensor if _is_tensor(factor) else _aten.mul.Scalar, self=one, other=factor)

    def sum(self, one: Value, dim: Optional[Sequence[int]], keepdim: bool) -> Value:
        """Return a sum over dimensions."""
        return self._call(_aten.sum.dim_IntList, self=one, dim=dim, keepdim=keepdim)

    def cat(self, parts: Sequence[Value]) -> Value:
        """Return values side by side in the last dimension."""
        return self._call(_aten.cat.default, tensors=list(parts), dim=-1)

    def relu(self, one: Value) -> Value:
        """Return the ReLU of a value."""
        return self._reader.relu(one)

    def chosen(self, one: Value, choose: Callable[[Tensor], Tensor]) -> Value:
        """Return elements of a value."""
        return self._reader.chosen(one, choose)

    def sample(self, one: Value) -> Tensor:
        """Return a value for the input that the graph is read with."""
        return self._reader.value(one)

    def refused(self, name: str) -> Exception:
        """Return the error that names an operator."""
        return self._reader.unsupported(name)

    def _call(self, function: torch._ops.OpOverload, /, **arguments: Any) -> Value:
        return self._reader.call(function, arguments)


def _is_tensor(value: Value) -> bool:
    return isinstance(value, Tensor) or is_moving(value)


# --- of one value ---------------------------------------------------------------------------------------------------


def _relu(build: Builder, self: Value) -> Value:
    return build.relu(self)


def _sloped(build: Builder, x: Value, slope: Union[float, Tensor]) -> Value:
    """``slope x + (1 - slope) ReLU(x)``."""
    return build.add(build.mul(x, slope), build.mul(build.relu(x), 1 - slope))


def _leaky_relu(build: Builder, self: Value, negative_slope: float = 0.01) -> Value:
    return _sloped(build, self, negative_slope)


def _rrelu(build: Builder, self: Value, lower: float = 1 / 8, upper: float = 1 / 3, training: bool = False,
           generator: Any = None) -> Value:
    if training:
        raise build.refused("rrelu in training mode")
    return _sloped(build, self, (lower + upper) / 2)


def _prelu(build: Builder, self: Value, weight: Tensor) -> Value:
    dims = build.sample(self).ndim
    return _sloped(build, self, weight if weight.numel() == 1 else weight.view(1, -1, *[1] * (dims - 2)))


def _abs(build: Builder, self: Value) -> Value:
    """``2 ReLU(x) - x``."""
    return build.sub(build.mul(build.relu(self), 2.0), self)


def _clamp(build: Builder, self: Value, min: Value = None, max: Value = None) -> Value:
    """``low + ReLU(x - low) - ReLU(x - high)``."""
    if is_moving(min) or is_moving(max):
        self = self if min is None else _maximum(build, self, min)
        return self if max is None else _minimum(build, self, max)
    if min is not None and max is not None:  # above a lower end that is higher, torch returns the upper one
        min = sorted((min, max))[0] if not (_is_tensor(min) or _is_tensor(max)) else torch.minimum(
            *[torch.as_tensor(end).to(build.sample(self)) for end in (min, max)])
    above = None if max is None else build.relu(build.sub(self, max))
    if min is None:
        return build.sub(self, above)
    found = build.relu(build.sub(self, min))
    found = found if above is None else build.sub(found, above)
    return found if not _is_tensor(min) and min == 0 else build.add(found, min)


def _clamp_min(build: Builder, self: Value, min: Value) -> Value:
    return _clamp(build, self, min)


def _clamp_max(build: Builder, self: Value, max: Value) -> Value:
    return _clamp(build, self, None, max)


def _hardtanh(build: Builder, self: Value, min_val: float = -1, max_val: float = 1) -> Value:
    return _clamp(build, self, min_val, max_val)


def _relu6(build: Builder, self: Value) -> Value:
    return _clamp(build, self, 0, 6)


def _hardsigmoid(build: Builder, self: Value) -> Value:
    return _clamp(build, build.add(build.mul(self, 1 / 6), 0.5), 0, 1)


def _softshrink(build: Builder, self: Value, lambd: float = 0.5) -> Value:
    """``ReLU(x - lambda) - ReLU(-x - lambda)``."""
    return build.sub(build.relu(build.sub(self, lambd)), build.relu(build.sub(-lambd, self)))


def _threshold(build: Builder, self: Value, threshold: float, value: float) -> Value:
    if threshold != value:
        raise build.refused("threshold with a jump")
    return _clamp(build, self, threshold)


# --- of two values and of many ----------------------------------------------------------------------------------------


def _maximum(build: Builder, self: Value, other: Value) -> Value:
    """``a + ReLU(b - a)``."""
    return build.add(self, build.relu(build.sub(other, self)))


def _minimum(build: Builder, self: Value, other: Value) -> Value:
    """``a - ReLU(a - b)``."""
    return build.sub(self, build.relu(build.sub(self, other)))


def _largest(build: Builder, x: Value, smallest: bool = False) -> Value:
    """Return the largest of the values in the last dimension, which stays with size 1: a tree of pairs."""
    better = _minimum if smallest else _maximum
    count = build.sample(x).shape[-1]
    while count > 1:
        half = count // 2
        pairs = better(build, build.chosen(x, lambda v, half=half: v[..., :half]),
                       build.chosen(x, lambda v, half=half: v[..., half:2 * half]))
        x = pairs if count == 2 * half else build.cat([pairs, build.chosen(x, lambda v, half=half: v[..., 2 * half:])])
        count -= half
    return x


def _extreme(build: Builder, x: Value, dim: Optional[Sequence[int]], keepdim: bool, smallest: bool) -> Value:
    """Return the largest or smallest values over dimensions; None or none of them: over all."""
    shape = build.sample(x).shape
    dims = sorted({one % len(shape) for one in dim}) if dim else list(range(len(shape)))
    rest = [place for place in range(len(shape)) if place not in dims]
    side_by_side = build.chosen(x, lambda v: v.permute(*rest, *dims).flatten(len(rest)) if len(dims) else v)
    kept = torch.Size([1 if place in dims else side for place, side in enumerate(shape)])
    wanted = kept if keepdim else torch.Size([shape[place] for place in rest])
    return build.chosen(_largest(build, side_by_side, smallest), lambda v: v.reshape(wanted))


def _amax(build: Builder, self: Value, dim: Sequence[int] = (), keepdim: bool = False) -> Value:
    return _extreme(build, self, dim, keepdim, False)


def _amin(build: Builder, self: Value, dim: Sequence[int] = (), keepdim: bool = False) -> Value:
    return _extreme(build, self, dim, keepdim, True)


def _max(build: Builder, self: Value, dim: Any = None, keepdim: bool = False, other: Value = None,
         smallest: bool = False) -> Value:
    """Return torch's ``max``, which is three functions: of two values, of all, or (values, places) of a dimension."""
    if other is not None:
        return (_minimum if smallest else _maximum)(build, self, other)
    if dim is None:
        return _extreme(build, self, None, False, smallest)
    return _values_only(build, _extreme(build, self, [dim], keepdim, smallest), "the place of a largest value")


def _min(build: Builder, self: Value, **options: Any) -> Value:
    return _max(build, self, smallest=True, **options)


def _sorted_values(build: Builder, x: Value, dim: int, descending: bool) -> Value:
    """Sort by comparing neighbours in turn, as many times as there are values."""
    count = build.sample(x).shape[dim]
    if count > _MAX_SORTED:
        raise build.refused(f"sorting of more than {_MAX_SORTED} values")
    x = build.chosen(x, lambda v: v.movedim(dim, -1))
    for turn in range(count if count > 2 else count - 1):
        first = list(range(turn % 2, count - 1, 2))
        second = [place + 1 for place in first]
        low, high = (second, first) if descending else (first, second)
        one, other = (build.chosen(x, lambda v, places=places: v[..., places]) for places in (low, high))
        excess = build.relu(build.sub(one, other))
        rest = [place for place in range(count) if place not in (*first, *second)]
        parts = [build.sub(one, excess), build.add(other, excess)]
        parts += [build.chosen(x, lambda v, rest=rest: v[..., rest])] if rest else []
        order = sorted(range(count), key=[*low, *high, *rest].__getitem__)
        x = build.chosen(build.cat(parts), lambda v, order=order: v[..., order])
    return build.chosen(x, lambda v: v.movedim(-1, dim))


def _sort(build: Builder, self: Value, dim: int = -1, descending: bool = False, stable: Any = None) -> Value:
    return _values_only(build, _sorted_values(build, self, dim, descending), "the places of sorted values")


def _topk(build: Builder, self: Value, k: int, dim: int = -1, largest: bool = True, sorted: bool = True) -> Value:
    found = _sorted_values(build, self, dim, largest)
    return _values_only(build, build.chosen(found, lambda v: v.narrow(dim, 0, k)), "the places of sorted values")


def _values_only(build: Builder, values: Value, rest: str) -> Value:
    def part(index: int) -> Value:
        """Return the values; where they stood is no piecewise-linear function."""
        if index:
            raise build.refused(rest)
        return values

    return Parts(part)


def _vector_norm(build: Builder, self: Value, ord: float = 2, dim: Any = None, keepdim: bool = False,
                 dtype: Any = None) -> Value:
    dim = [dim] if isinstance(dim, int) else dim
    if ord == 1:
        return build.sum(_abs(build, self), dim, keepdim)
    if ord == math.inf:
        return _extreme(build, _abs(build, self), dim, keepdim, False)
    raise build.refused(f"a norm of order {ord}")


def _lerp(build: Builder, self: Value, end: Value, weight: Union[float, Tensor]) -> Value:
    return build.add(self, build.mul(build.sub(end, self), weight))


# --- pooling ----------------------------------------------------------------------------------------------------------


def _pooled(build: Builder, x: Value, windows: Optional[List[Tensor]], name: str) -> Value:
    """Return the largest values of windows, (places, side) for each of the last dimensions."""
    if windows is None:
        raise build.refused(f"{name} with a window in the padding")
    shape = build.sample(x).shape[:-len(windows)]
    sides = build.sample(x).shape[-len(windows):]
    counts, index = [len(one) for one in windows], torch.zeros((), dtype=torch.long)
    for place, (one, side) in enumerate(zip(windows, sides)):
        view = [1] * (2 * len(windows))
        view[place], view[place + len(windows)] = one.shape
        index = index * side + one.view(view)
    index = index.flatten(0, len(windows) - 1).flatten(1).to(build.sample(x).device)
    seen = build.chosen(x, lambda v: v.flatten(-len(windows))[..., index])
    return build.chosen(_largest(build, seen), lambda v: v.reshape(*shape, *counts))


def _max_pool(dims: int) -> Callable:
    def rewritten(build: Builder, self: Value, kernel_size: Sequence[int], stride: Sequence[int] = (),
                  padding: Sequence[int] = 0, dilation: Sequence[int] = 1, ceil_mode: bool = False) -> Value:
        """Return torch's max pooling."""
        kernel, padding, dilation = (_each(one, dims) for one in (kernel_size, padding, dilation))
        stride = _each(stride, dims) if stride else kernel
        sides = build.sample(self).shape[-dims:]
        windows = [strided_windows(*one, ceil_mode) for one in zip(sides, kernel, stride, padding, dilation)]
        return _pooled(build, self, None if any(one is None for one in windows) else windows, f"max_pool{dims}d")

    return rewritten


def _adaptive_max_pool(dims: int) -> Callable:
    def rewritten(build: Builder, self: Value, output_size: Sequence[int]) -> Value:
        """Return torch's adaptive max pooling."""
        sides = build.sample(self).shape[-dims:]
        windows = [adaptive_windows(*one) for one in zip(sides, _each(output_size, dims))]
        return _values_only(build, _pooled(build, self, windows, "adaptive_max_pool"), "the places of largest values")

    return rewritten


def _each(value: Union[int, Sequence[int]], dims: int) -> Tuple[int, ...]:
    values = [value] if isinstance(value, int) else list(value)
    return tuple(itertools.islice(itertools.cycle(values), dims))


#: By torch's name of the operator: functions of a builder and of torch's arguments.
FUNCTIONS: Dict[str, Callable] = {
    "relu": _relu, "leaky_relu": _leaky_relu, "rrelu": _rrelu, "prelu": _prelu, "abs": _abs, "clamp": _clamp,
    "clip": _clamp, "clamp_min": _clamp_min, "clamp_max": _clamp_max, "hardtanh": _hardtanh, "relu6": _relu6,
    "hardsigmoid": _hardsigmoid, "softshrink": _softshrink, "threshold": _threshold, "maximum": _maximum,
    "minimum": _minimum, "fmax": _maximum, "fmin": _minimum, "amax": _amax, "amin": _amin, "max": _max, "min": _min,
    "sort": _sort, "topk": _topk, "linalg_vector_norm": _vector_norm, "lerp": _lerp,
    **{f"max_pool{dims}d": _max_pool(dims) for dims in (1, 2, 3)},
        **{f"adaptive_max_pool{dims}d": _adaptive_max_pool(dims) for dims in (1, 2, 3)}}
