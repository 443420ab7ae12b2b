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
from .values import Parts

_MAX_SORTED = 8  # values that are sorted by comparing neighbours


def _largest(build: Builder, x: Value, smallest: bool = False) -> Value:
    """Return the largest of the values in the last dimension, which stays with size 1.

    A tree of pairs.
    """
    better = minimum if smallest else maximum
    count = build.sample(x).shape[-1]
    while count > 1:
        half = count // 2
        pairs = better(
            build,
            build.chosen(x, lambda v, half=half: v[..., :half]),
            build.chosen(x, lambda v, half=half: v[..., half : 2 * half]),
        )
        x = (
            pairs
            if count == 2 * half
            else build.cat([pairs, build.chosen(x, lambda v, half=half: v[..., 2 * half :])])
        )
        count -= half
    return x


def _extreme(
    build: Builder, x: Value, dim: Sequence[int] | None, keepdim: bool, smallest: bool
) -> Value:
    """Return the largest or smallest values over dimensions; None or none of them: over all."""
    shape = build.sample(x).shape
    dims = sorted({one % len(shape) for one in dim}) if dim else list(range(len(shape)))
    rest = [place for place in range(len(shape)) if place not in dims]
    side_by_side = build.chosen(
        x, lambda v: v.permute(*rest, *dims).flatten(len(rest)) if len(dims) else v
    )
    kept = torch.Size([1 if place in dims else side for place, side in enumerate(shape)])
    wanted = kept if keepdim else torch.Size([shape[place] for place in rest])
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
    """Return torch's ``max``, which is three functions.

    Of two values, of all, or (values, places) of a dimension.
    """
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
        second = [place + 1 for place in first]
        low, high = (second, first) if descending else (first, second)
        one, other = (
            build.chosen(x, lambda v, places=places: v[..., places]) for places in (low, high)
        )
        excess = build.relu(build.sub(one, other))
        rest = [place for place in range(count) if place not in (*first, *second)]
        parts = [build.sub(one, excess), build.add(other, excess)]
        parts += [build.chosen(x, lambda v, rest=rest: v[..., rest])] if rest else []
        order = sorted(range(count), key=[*low, *high, *rest].__getitem__)
        x = build.chosen(build.cat(parts), lambda v, order=order: v[..., order])
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
    found = _sorted_values(build, self, dim, largest)
    return _values_only(
        build, build.chosen(found, lambda v: v.narrow(dim, 0, k)), "the places of sorted values"
    )


def _values_only(build: Builder, values: Value, rest: str) -> Value:
    def part(index: int) -> Value:
        """Return the values; where they stood is no piecewise-linear function."""
        if index:
            raise build.refused(rest)
        return values

    return Parts(part)


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


def _pooled(build: Builder, x: Value, windows: list[Tensor] | None, name: str) -> Value:
    """Return the largest values of windows, (places, side) for each of the last dimensions."""
    if windows is None:
        raise build.refused(f"{name} with a window in the padding")
    shape = build.sample(x).shape[: -len(windows)]
    sides = build.sample(x).shape[-len(windows) :]
    counts, index = [len(one) for one in windows], torch.zeros((), dtype=torch.long)
    for place, (one, side) in enumerate(zip(windows, sides)):
        view = [1] * (2 * len(windows))
        view[place], view[place + len(windows)] = one.shape
        index = index * side + one.view(view)
    index = index.flatten(0, len(windows) - 1).flatten(1).to(build.sample(x).device)
    seen = build.chosen(x, lambda v: v.flatten(-len(windows))[..., index])
    return build.chosen(_largest(build, seen), lambda v: v.reshape(*shape, *counts))


def _max_pool(dims: int) -> Callable:
    def rewritten(
        build: Builder,
        self: Value,
        kernel_size: Sequence[int],
        stride: Sequence[int] = (),
        padding: Sequence[int] = 0,
        dilation: Sequence[int] = 1,
        ceil_mode: bool = False,
    ) -> Value:
        """Return torch's max pooling."""
        kernel, padding, dilation = (_each(one, dims) for one in (kernel_size, padding, dilation))
        stride = _each(stride, dims) if stride else kernel
        sides = build.sample(self).shape[-dims:]
        windows = [
            strided_windows(*one, ceil_mode)
            for one in zip(sides, kernel, stride, padding, dilation)
        ]
        return _pooled(
            build,
            self,
            None if any(one is None for one in windows) else windows,
            f"max_pool{dims}d",
        )

    return rewritten


def _adaptive_max_pool(dims: int) -> Callable:
    def rewritten(build: Builder, self: Value, output_size: Sequence[int]) -> Value:
        """Return torch's adaptive max pooling."""
        sides = build.sample(self).shape[-dims:]
        windows = [adaptive_windows(*one) for one in zip(sides, _each(output_size, dims))]
        return _values_only(
            build,
            _pooled(build, self, windows, "adaptive_max_pool"),
            "the places of largest values",
        )

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
