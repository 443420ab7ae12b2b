"""Arithmetic that makes piecewise-linear operators out of affine operators and ReLUs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Callable

import torch
from torch import Tensor

from .values import is_moving

_aten = torch.ops.aten

#: A value that moves (:class:`.values.Moving`) or a constant.
Value = Any


class Builder:
    """Arithmetic on values of a graph that is being read.

    Args:
        reader: The reader; constants and values that move may be mixed.
    """

    def __init__(self, reader: Any) -> None:
        self._reader = reader

    def add(self, first: Value, second: Value) -> Value:
        """Return the sum."""
        if not is_moving(first):
            first, second = second, first
        if not is_tensor(second) and second == 0:
            return first
        function = _aten.add.Tensor if is_tensor(second) else _aten.add.Scalar
        return self._call(function, self=first, other=second)

    def sub(self, first: Value, second: Value) -> Value:
        """Return the difference."""
        if not is_tensor(first):  # a number less a value
            return self._call(_aten.rsub.Scalar, self=second, other=first)
        function = _aten.sub.Tensor if is_tensor(second) else _aten.sub.Scalar
        return self._call(function, self=first, other=second)

    def mul(self, value: Value, factor: float | Tensor) -> Value:
        """Return the product with a constant."""
        function = _aten.mul.Tensor if is_tensor(factor) else _aten.mul.Scalar
        return self._call(function, self=value, other=factor)

    def sum(self, value: Value, dim: Sequence[int] | None, keepdim: bool) -> Value:
        """Return a sum over dimensions."""
        return self._call(_aten.sum.dim_IntList, self=value, dim=dim, keepdim=keepdim)

    def cat(self, values: Sequence[Value]) -> Value:
        """Return values side by side in the last dimension."""
        return self._call(_aten.cat.default, tensors=list(values), dim=-1)

    def relu(self, value: Value) -> Value:
        """Return the ReLU of a value."""
        return self._reader.relu(value)

    def excess(self, first: Value, second: Value) -> Value:
        """Return ``ReLU(first - second)`` of values that move; the same step for the same pair."""
        return self._reader.excess(first, second, self)

    def chosen(self, value: Value, choose: Callable[[Tensor], Tensor]) -> Value:
        """Return elements of a value."""
        return self._reader.chosen(value, choose)

    def sample(self, value: Value) -> Tensor:
        """Return a value for the input that the graph is read with."""
        return self._reader.value(value)

    def refused(self, name: str) -> Exception:
        """Return the error that names an operator."""
        return self._reader.unsupported(name)

    def _call(self, function: torch._ops.OpOverload, /, **arguments: Any) -> Value:
        return self._reader.call(function, arguments)


def is_tensor(value: Value) -> bool:
    """Return whether a value is a constant tensor or depends on the input."""
    return isinstance(value, Tensor) or is_moving(value)


def maximum(build: Builder, self: Value, other: Value) -> Value:
    """Return ``a + ReLU(b - a)``, where a is the constant if there is one.

    The constant is then met without rounding.
    """
    base, other = _constant_first(self, other)
    if is_moving(base):
        return build.add(base, build.excess(other, base))
    return build.add(base, build.relu(build.sub(other, base)))


def minimum(build: Builder, self: Value, other: Value) -> Value:
    """Return ``a - ReLU(a - b)``; see :func:`maximum`.

    Of two values that move it is ``b - ReLU(b - a)``, with the ReLU of their maximum.
    """
    base, other = _constant_first(self, other)
    if is_moving(base):
        return build.sub(other, build.excess(other, base))
    return build.sub(base, build.relu(build.sub(base, other)))


def _constant_first(first: Value, second: Value) -> tuple[Value, Value]:
    return (second, first) if is_moving(first) and not is_moving(second) else (first, second)
