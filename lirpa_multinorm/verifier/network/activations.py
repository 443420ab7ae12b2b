"""Piecewise-linear activations as affine operators and ReLUs."""

from __future__ import annotations

from typing import Any, Callable

from torch import Tensor

from .builder import Builder, Value, maximum, minimum


def _relu(build: Builder, self: Value) -> Value:
    return build.relu(self)


def _sloped(build: Builder, x: Value, slope: float | Tensor) -> Value:
    """Return ``slope x + (1 - slope) ReLU(x)``."""
    return build.add(build.mul(x, slope), build.mul(build.relu(x), 1 - slope))


def _leaky_relu(build: Builder, self: Value, negative_slope: float = 0.01) -> Value:
    return _sloped(build, self, negative_slope)


def _rrelu(
    build: Builder,
    self: Value,
    lower: float = 1 / 8,
    upper: float = 1 / 3,
    training: bool = False,
    generator: Any = None,
) -> Value:
    if training:
        raise build.refused("rrelu in training mode")
    return _sloped(build, self, (lower + upper) / 2)


def _prelu(build: Builder, self: Value, weight: Tensor) -> Value:
    dims = build.sample(self).ndim
    slope = weight if weight.numel() == 1 else weight.view(1, -1, *[1] * (dims - 2))
    return _sloped(build, self, slope)


def absolute(build: Builder, self: Value) -> Value:
    """Return ``2 ReLU(x) - x``."""
    return build.sub(build.mul(build.relu(self), 2.0), self)


def _clamp(build: Builder, self: Value, min: Value = None, max: Value = None) -> Value:
    """Return the smaller of ``max`` and the larger of ``min`` and x, as torch does if they cross.

    ``min + ReLU(x - min) - ReLU(x - max)`` would need one layer, but cancels where x is large.
    """
    self = self if min is None else maximum(build, min, self)
    return self if max is None else minimum(build, max, self)


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
    """Return ``ReLU(x - lambda) - ReLU(-x - lambda)``."""
    return build.sub(build.relu(build.sub(self, lambd)), build.relu(build.sub(-lambd, self)))


def _threshold(build: Builder, self: Value, threshold: float, value: float) -> Value:
    if threshold != value:
        raise build.refused("threshold with a jump")
    return _clamp(build, self, threshold)


def _lerp(build: Builder, self: Value, end: Value, weight: float | Tensor) -> Value:
    return build.add(self, build.mul(build.sub(end, self), weight))


#: By torch's name of the operator: functions of a builder and of torch's arguments.
ACTIVATIONS: dict[str, Callable] = {
    "relu": _relu,
    "leaky_relu": _leaky_relu,
    "rrelu": _rrelu,
    "prelu": _prelu,
    "abs": absolute,
    "clamp": _clamp,
    "clip": _clamp,
    "clamp_min": _clamp_min,
    "clamp_max": _clamp_max,
    "hardtanh": _hardtanh,
    "relu6": _relu6,
    "hardsigmoid": _hardsigmoid,
    "softshrink": _softshrink,
    "threshold": _threshold,
    "maximum": maximum,
    "minimum": minimum,
    "fmax": maximum,
    "fmin": minimum,
    "lerp": _lerp,
}
