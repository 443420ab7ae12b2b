"""Arithmetic from which piecewise-linear operators are made of affine ones and ReLUs."""

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

    def __init__(self, reader) -> None:
        self._reader = reader

    def add(self, one: Value, other: Value) -> Value:
        """Return the sum."""
        if not is_moving(one):
            one, other = other, one
        if not is_tensor(other) and other == 0:
            return one
        return self._call(
            _aten.add.Tensor if is_tensor(other) else _aten.add.Scalar, self=one, other=other
        )

    def sub(self, one: Value, other: Value) -> Value:
        """Return the difference."""
        if not is_tensor(one):  # a number less a value
            return self._call(_aten.rsub.Scalar, self=other, other=one)
        return self._call(
            _aten.sub.Tensor if is_tensor(other) else _aten.sub.Scalar, self=one, other=other
        )

    def mul(self, one: Value, factor: float | Tensor) -> Value:
        """Return the product with a constant."""
        return self._call(
            _aten.mul.Tensor if is_tensor(factor) else _aten.mul.Scalar, self=one, other=factor
        )

    def sum(self, one: Value, dim: Sequence[int] | None, keepdim: bool) -> Value:
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


def is_tensor(value: Value) -> bool:
    """Whether a value is a constant tensor or depends on the input."""
    return isinstance(value, Tensor) or is_moving(value)


def maximum(build: Builder, self: Value, other: Value) -> Value:
    """``a + ReLU(b - a)``, where a is the constant if there is one.

    It is then met without rounding.
    """
    base, other = _constant_first(self, other)
    return build.add(base, build.relu(build.sub(other, base)))


def minimum(build: Builder, self: Value, other: Value) -> Value:
    """``a - ReLU(a - b)``; see :func:`maximum`."""
    base, other = _constant_first(self, other)
    return build.sub(base, build.relu(build.sub(base, other)))


def _constant_first(one: Value, other: Value) -> tuple[Value, Value]:
    return (other, one) if is_moving(one) and not is_moving(other) else (one, other)
