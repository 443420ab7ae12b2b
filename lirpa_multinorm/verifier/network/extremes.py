"""Largest and smallest values, sorting and max pooling as affine operators and ReLUs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, Callable

import torch
from torch import Tensor

from .activations import absolute
from .builder import Builder, Value, maximum, minimum
from .pooling import adaptive_windows, strided_windows
from .values import Results

_MAX_SORTED = 8  # values that are sorted by comparing neighbours


def _largest(build: Builder, x: Value, smallest: bool = False) -> Value:
    """Return the largest value in the last dimension, which keeps size 1, by a tree of pairs."""
    better = minimum if smallest else maximum
    count = build.sample(x).shape[-1]
    while count > 1:
        half = count // 2
        first = build.chosen(x, _in_last_dimension(slice(half)))
        second = build.chosen(x, _in_last_dimension(slice(half, 2 * half)))
        pairs = better(build, first, second)
        if count > 2 * half:
            pairs = build.cat([pairs, build.chosen(x, _in_last_dimension(slice(2 * half, None)))])
        x = pairs
        count -= half
    return x


def _in_last_dimension(index: slice | list[int]) -> Callable[[Tensor], Tensor]:
    """Return the function that indexes the last dimension of a tensor."""
    return lambda v: v[..., index]


def _extreme(
    build: Builder, x: Value, dim: Sequence[int] | None, keepdim: bool, smallest: bool
) -> Value:
    """Return the largest or smallest values over dimensions; None or no dimension: over all."""
    shape = build.sample(x).shape
    dims = sorted({index % len(shape) for index in dim}) if dim else list(range(len(shape)))
    rest = [index for index in range(len(shape)) if index not in dims]
    side_by_side = build.chosen(
        x, lambda v: v.permute(*rest, *dims).flatten(len(rest)) if len(dims) else v
    )
    kept = torch.Size([1 if index in dims else side for index, side in enumerate(shape)])
    wanted = kept if keepdim else torch.Size([shape[index] for index in rest])
    return build.chosen(_largest(build, side_by_side, smallest), lambda v: v.reshape(wanted))


def _amax(build: Builder, self: Value, dim: Sequence[int] = (), keepdim: bool = False) -> Value:
    return _extreme(build, self, dim, keepdim, False)


def _amin(build: Builder, self: Value, dim: Sequence[int] = (), keepdim: bool = False) -> Value:
    return _extreme(build, self, dim, keepdim, True)


def _max(
    build: Builder,
    self: Value,
    dim: Any = None,
    keepdim: bool = False,
    other: Value = None,
    smallest: bool = False,
) -> Value:
    """Return torch's ``max``: of two values, of all elements, or of a dimension (with indices)."""
    if other is not None:
        return (minimum if smallest else maximum)(build, self, other)
    if dim is None:
        return _extreme(build, self, None, False, smallest)
    return _values_only(
        build, _extreme(build, self, [dim], keepdim, smallest), "the place of a largest value"
    )


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
        second = [index + 1 for index in first]
        lower_index, upper_index = (second, first) if descending else (first, second)
        lower = build.chosen(x, _in_last_dimension(lower_index))
        upper = build.chosen(x, _in_last_dimension(upper_index))
        excess = build.relu(build.sub(lower, upper))
        rest = [index for index in range(count) if index not in (*first, *second)]
        pieces = [build.sub(lower, excess), build.add(upper, excess)]
        if rest:
            pieces.append(build.chosen(x, _in_last_dimension(rest)))
        order = sorted(range(count), key=[*lower_index, *upper_index, *rest].__getitem__)
        x = build.chosen(build.cat(pieces), _in_last_dimension(order))
    return build.chosen(x, lambda v: v.movedim(-1, dim))


def _sort(
    build: Builder, self: Value, dim: int = -1, descending: bool = False, stable: Any = None
) -> Value:
    return _values_only(
        build, _sorted_values(build, self, dim, descending), "the places of sorted values"
    )


def _topk(
    build: Builder, self: Value, k: int, dim: int = -1, largest: bool = True, sorted: bool = True
) -> Value:
    ordered = _sorted_values(build, self, dim, largest)
    values = build.chosen(ordered, lambda v: v.narrow(dim, 0, k))
    return _values_only(build, values, "the places of sorted values")


def _values_only(build: Builder, values: Value, refused: str) -> Value:
    """Return the results (values, indices) of an operator, of which the indices are refused."""

    def result(index: int) -> Value:
        """Return the values; their indices are no piecewise-linear function."""
        if index:
            raise build.refused(refused)
        return values

    return Results(result)


def _vector_norm(
    build: Builder,
    self: Value,
    ord: float = 2,
    dim: Any = None,
    keepdim: bool = False,
    dtype: Any = None,
) -> Value:
    dim = [dim] if isinstance(dim, int) else dim
    if ord == 1:
        return build.sum(absolute(build, self), dim, keepdim)
    if ord == math.inf:
        return _extreme(build, absolute(build, self), dim, keepdim, False)
    raise build.refused(f"a norm of order {ord}")


def _pooled(build: Builder, x: Value, windows: list[Tensor]) -> Value:
    """Return the largest values of windows, (windows, side) for each of the last dimensions."""
    shape = build.sample(x).shape[: -len(windows)]
    sides = build.sample(x).shape[-len(windows) :]
    counts = [len(window) for window in windows]
    index = torch.zeros((), dtype=torch.long, device="cpu")
    for axis, (window, side) in enumerate(zip(windows, sides)):
        view = [1] * (2 * len(windows))
        view[axis], view[axis + len(windows)] = window.shape
        index = index * side + window.view(view)
    index = index.flatten(0, len(windows) - 1).flatten(1).to(build.sample(x).device)
    elements = build.chosen(x, lambda v: v.flatten(-len(windows))[..., index])
    return build.chosen(_largest(build, elements), lambda v: v.reshape(*shape, *counts))


def _max_pool(dims: int) -> Callable:
    """Return torch's max pooling in some dimensions."""

    def rewritten(
        build: Builder,
        self: Value,
        kernel_size: Sequence[int],
        stride: int | Sequence[int] = (),
        padding: int | Sequence[int] = 0,
        dilation: int | Sequence[int] = 1,
        ceil_mode: bool = False,
    ) -> Value:
        """Return the largest values of the windows of an image."""
        name, kernel = f"max_pool{dims}d", _each(kernel_size, dims)
        options = zip(
            build.sample(self).shape[-dims:],
            kernel,
            _each(stride, dims) if stride else kernel,
            _each(padding, dims),
            _each(dilation, dims),
        )
        windows = []
        for side, size, step, pad, gap in options:
            window = strided_windows(side, size, step, pad, gap, ceil_mode)
            if window is None:
                raise build.refused(f"{name} with a window in the padding")
            windows.append(window)
        return _pooled(build, self, windows)

    return rewritten


def _adaptive_max_pool(dims: int) -> Callable:
    """Return torch's adaptive max pooling in some dimensions."""

    def rewritten(build: Builder, self: Value, output_size: Sequence[int]) -> Value:
        """Return the largest values of the windows of an image."""
        counts = zip(build.sample(self).shape[-dims:], _each(output_size, dims))
        windows = [adaptive_windows(side, count) for side, count in counts]
        return _values_only(build, _pooled(build, self, windows), "the places of largest values")

    return rewritten


def _each(value: int | Sequence[int], dims: int) -> tuple[int, ...]:
    values = [value] if isinstance(value, int) else list(value)
    return tuple(itertools.islice(itertools.cycle(values), dims))


#: By torch's name of the operator: functions of a builder and of torch's arguments.
EXTREMES: dict[str, Callable] = {
    "amax": _amax,
    "amin": _amin,
    "max": _max,
    "min": _min,
    "sort": _sort,
    "topk": _topk,
    "linalg_vector_norm": _vector_norm,
    **{f"max_pool{dims}d": _max_pool(dims) for dims in (1, 2, 3)},
    **{f"adaptive_max_pool{dims}d": _adaptive_max_pool(dims) for dims in (1, 2, 3)},
}
