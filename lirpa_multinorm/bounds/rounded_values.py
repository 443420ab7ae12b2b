"""How operators move a set of values, and their rounding errors; see :mod:`.rounding`."""

from __future__ import annotations

import math
from typing import Callable, List, NamedTuple, Optional

import torch
from torch import Tensor

from .. import host
from ..errors import UnsupportedModelError

_MOVES = (*host.RESHAPES, "BoundSlice", "BoundPad", "BoundDropout", "BoundMaxPool")  # each value is one that was there
_MEANS = ("BoundAveragePool", "BoundGlobalAveragePool", "BoundReduceMean", "BoundReduceSum")
_EXTRA = 12  # roundings of an operator besides those of its sum
_LARGEST = 0.1  # k u, above which nothing is said
_LAMBDA = 8  # standard deviations of the probable error
NORMS = 1 + 1e-5  # what norms of matrices are enlarged by, for their own rounding


class RoundedValue(NamedTuple):
    """A node on R sets.

    Args:
        value: At the centre, as computed.
        reach: How far exact values move on the set from the exact one at the centre, element by element.
        move: The same in l_2, (R,).
        error: How far computed values are from exact ones.
        drift: The same in l_2, (R,).
        probable: Whether errors are probable ones.
    """

    value: Tensor
    reach: Tensor
    move: Tensor
    error: Tensor
    drift: Tensor
    probable: bool = False

    @property
    def unit(self) -> float:
        """Return the unit roundoff."""
        return torch.finfo(self.value.dtype).eps / 2

    @property
    def largest(self) -> Tensor:
        """Return the largest absolute value that is met on the set, in exact arithmetic or as computed."""
        return (self.value.abs() + self.reach + 2 * self.error) * (1 + 8 * self.unit)

    def rows(self, index: Tensor) -> "RoundedValue":
        """Return the value on some of the sets."""
        return RoundedValue(*[part[index] for part in self[:5]], self.probable)

    def tidied(self) -> "RoundedValue":
        """Return the value with l_2 norms no larger than those of the elements."""
        slack = (1 + 2 * _gamma(self.value[0].numel() + _EXTRA, self.unit))
        lengths = [torch.linalg.vector_norm(part.flatten(1), dim=1) * slack for part in (self.reach, self.error)]
        # A NaN here would stand for infinity times zero: nothing is known then.
        return self._replace(move=torch.minimum(self.move, lengths[0]), drift=torch.minimum(self.drift, lengths[1]))

    def each(self, function: Callable[[Tensor], Tensor], norm: float = 1.0) -> "RoundedValue":
        """Return the value with a function applied to its elements, that lengthens differences so much at most."""
        return RoundedValue(function(self.value), function(self.reach), self.move * norm, function(self.error),
                      self.drift * norm, self.probable)


def _gamma(count: int, unit: float) -> float:
    """Return gamma_k, infinite where k u is no small number."""
    return count * unit / (1 - count * unit) if count * unit < _LARGEST else math.inf


def rounded_step(node, inputs: List[Optional[RoundedValue]], norm: Callable) -> RoundedValue:
    """Return a node's value from those of its inputs; None where an input does not move with the network's."""
    name, first = type(node).__name__, inputs[0]
    constants = [None if value is not None else host.constant_value(one) for one, value in zip(node.inputs, inputs)]
    alone, rest = first is not None and all(one is None for one in inputs[1:]), constants[1:]
    found = None
    if name == "BoundRelu":
        found = _relu(first)
    elif name in _MOVES and alone:
        found = _moved(node, first, rest, name)
    elif name in _MEANS and alone:
        found = _mean(node, first, rest, norm(node) if name != "BoundReduceSum" else math.inf)
    elif name in ("BoundConv", "BoundConvTranspose", "BoundLinear", "BoundMatMul") and alone:
        found = _layer(node, first, rest, norm(node))
    elif name == "BoundBatchNormalization" and alone and not node.training:
        found = _batch_norm(node, first, rest)
    elif name in ("BoundMul", "BoundDiv"):
        found = _scaled(name, inputs, constants)
    elif name in ("BoundAdd", "BoundSub", "BoundNeg", "BoundConcat"):
        found = _summed(node, inputs, constants, name)
    if found is None:
        raise UnsupportedModelError(f"model: what rounding does in {name[5:]} at {node.name} is not known")
    return found.tidied()


def _relu(value: RoundedValue) -> RoundedValue:
    center, far = value.value, value.reach * (1 + 4 * value.unit)
    reach = torch.maximum((center + far).relu() - center.relu(), center.relu() - (center - far).relu())
    # The exact centre is not the computed one: how far a value moves from it is known by the input's reach alone.
    reach = torch.minimum(value.reach, reach + 2 * value.error + 4 * value.unit * (center.abs() + far))
    dead = center + far + 2 * value.error <= -4 * value.unit * center.abs()
    return value._replace(value=center.relu(), reach=reach, error=value.error.masked_fill(dead, 0))


def _moved(node, value: RoundedValue, constants: list, name: str) -> RoundedValue:
    def run(part: Tensor) -> Tensor:
        return node.forward(part, *constants)

    found = value.each(run, 1.0 if name != "BoundMaxPool" else math.inf)
    if name == "BoundPad":  # what is put around is known exactly
        inside = run(torch.ones_like(value.value)) != run(torch.zeros_like(value.value))
        found = found._replace(reach=found.reach * inside, error=found.error * inside)
    return found


def _affine(value: RoundedValue, count: int, signed: Callable[[Tensor], Tensor], absolute: Callable[[Tensor], Tensor],
            bias: Optional[Tensor], norm: float = math.inf, lengths: Optional[Tensor] = None,
            lost: Optional[Tensor] = None, squared: Optional[Callable[[Tensor], Tensor]] = None) -> RoundedValue:
    """Return the value behind ``W a + b``.

    Args:
        value: Of a.
        count: How many products are summed up for one number.
        signed: ``a -> W a``.
        absolute: ``a -> |W| a``.
        bias: b, in a shape that can be added; None for zero.
        norm: ``||W||``, infinite where it is not known.
        lengths: The l_2 norms of the rows of W, in a shape that can be multiplied; None: not known.
        lost: What the bias itself is off by at most.
        squared: ``a -> W^2 a``, with the squares of the elements; None: errors do not cancel.
    """
    rows, unit, limits = len(value.value), value.unit, torch.finfo(value.value.dtype)
    sizes = absolute(torch.cat([value.largest, value.reach, value.error]))
    largest, reach, error = (sizes * (1 + 2 * _gamma(count + _EXTRA, unit))).split(rows)  # rounded here, too
    center = signed(value.value)
    if bias is not None:
        center, largest = center + bias, (largest + bias.abs()) * (1 + 4 * unit)
    if lengths is not None:
        column = (rows, *[1] * (center.ndim - 1))
        reach = torch.fmin(reach, lengths * value.move.view(column))
        error = torch.fmin(error, lengths * value.drift.view(column))
    share = _gamma(count + 4, unit)
    share = min(share, _LAMBDA * math.sqrt(count + 4) * unit) if value.probable and share < math.inf else share
    local = share * largest * (1 + 8 * unit) + (count + _EXTRA) * limits.tiny
    local = local if lost is None else local + lost
    local = torch.where(largest < limits.max / 4, local, math.inf)
    length = torch.linalg.vector_norm(local.flatten(1), dim=1) * (1 + 2 * _gamma(local[0].numel() + _EXTRA, unit))
    wider, before = 1 + 8 * unit, value.error
    if value.probable and squared is not None:
        scale = before.amax().clamp(min=limits.tiny)  # squares of small numbers are zero
        error = torch.fmin(error, squared((before / scale).square()).clamp(min=0).sqrt() * scale)
        both = torch.hypot(error, local)
        return RoundedValue(center, reach * wider, value.move * norm * wider, both * wider,
                      torch.full_like(length, math.inf), True)
    return RoundedValue(center, reach * wider, value.move * norm * wider, (error + local) * wider,
                  (value.drift * norm + length) * wider, value.probable)


def _layer(node, value: RoundedValue, constants: list, norm: float) -> Optional[RoundedValue]:
    name, weight = type(node).__name__, constants[0]
    if weight.ndim != 2 and name in ("BoundLinear", "BoundMatMul"):
        return None
    counts = {"BoundConv": weight[0].numel(), "BoundConvTranspose": weight.shape[0] * weight[0, 0].numel()}
    count = counts.get(name, value.value.shape[-1])
    none, one = [torch.zeros_like(bias) for bias in constants[1:]], torch.ones_like(value.value[:1])
    shift = node.forward(torch.zeros_like(one), *constants)  # the operator knows how its bias is added
    lengths = node.forward(one, weight.square(), *none).clamp(min=0).sqrt() + torch.finfo(one.dtype).tiny ** 0.5
    return _affine(value, count, lambda part: node.forward(part, weight, *none),
                   lambda part: node.forward(part, weight.abs(), *none), shift, norm,
                   lengths * (1 + _gamma(count + _EXTRA, value.unit)),
                   squared=lambda part: node.forward(part, weight.square(), *none))


def _mean(node, value: RoundedValue, constants: list, norm: float) -> RoundedValue:
    count = value.value[0].numel()
    if type(node).__name__ == "BoundAveragePool":
        size = node.kernel_size if isinstance(node.kernel_size, (tuple, list)) else (node.kernel_size,) * 2
        count = math.prod(size)

    def run(part: Tensor) -> Tensor:
        return node.forward(part, *constants)
    return _affine(value, count, run, run, None, norm)


def _batch_norm(node, value: RoundedValue, constants: list) -> RoundedValue:
    weight, bias, mean, variance = constants
    shape = (1, -1, *[1] * (value.value.ndim - 2))
    factor = weight / torch.sqrt(variance + node.eps)
    size = (factor.abs() * (1 + 16 * value.unit)).view(shape)
    # Mean and bias can cancel in the shift, and the factor is itself rounded.
    lost = (mean.abs() * size.flatten() + bias.abs()).view(shape) * _gamma(2 * _EXTRA, value.unit)
    return _affine(value, _EXTRA, lambda part: part * factor.view(shape), lambda part: part * size,
                   (bias - mean * factor).view(shape), float(size.max()), size, lost,
                   squared=lambda part: part * size.square())


def _scaled(name: str, inputs: List[Optional[RoundedValue]], constants: list) -> Optional[RoundedValue]:
    """Return a product with a constant, or a quotient by one."""
    moving = [one for one in inputs if one is not None]
    if len(moving) != 1 or (name == "BoundDiv" and inputs[0] is None):
        return None
    factor = next(one for one in constants if one is not None)
    factor = factor if name == "BoundMul" else 1 / factor
    size = factor.abs() * (1 + 4 * moving[0].unit)
    alike = (moving[0].value[:1] * factor).shape == moving[0].value[:1].shape
    return _affine(moving[0], 2, lambda part: part * factor, lambda part: part * size, None,
                   float(size.max()) if alike else math.inf)


def _summed(node, inputs: List[Optional[RoundedValue]], constants: list, name: str) -> Optional[RoundedValue]:
    """Return a sum, a difference, a negative, or values side by side."""
    moving = [one for one in inputs if one is not None]
    like, unit = moving[0], moving[0].unit
    if name == "BoundNeg":
        return like._replace(value=-like.value)
    still = torch.zeros_like(like.move)
    values = [one if one is not None else
              RoundedValue(fixed.to(like.value), torch.zeros_like(fixed.to(like.value)), still,
                     torch.zeros_like(fixed.to(like.value)), still) for one, fixed in zip(inputs, constants)]
    if name == "BoundConcat":
        if len(moving) != len(values):
            return None
        joined = [node.forward(*[getattr(one, part) for one in values]) for part in ("value", "reach", "error")]
        return RoundedValue(joined[0], joined[1], sum(one.move for one in values), joined[2],
                      sum(one.drift for one in values), like.probable)
    one, other = values
    center = one.value + other.value if name == "BoundAdd" else one.value - other.value
    alike = all(part.value.shape == center.shape for part in moving)
    local = (one.largest + other.largest) * 2 * unit
    length = torch.linalg.vector_norm(local.expand_as(center).flatten(1), dim=1) * NORMS
    far = 1 + 8 * unit
    move, drift = ((one.move + other.move) * far, (one.drift + other.drift + length) * far)
    nothing = torch.full_like(move, math.inf)
    return RoundedValue(center, (one.reach + other.reach).expand_as(center) * far, move if alike else nothing,
                  (one.error + other.error + local).expand_as(center) * far, drift if alike else nothing, like.probable)
