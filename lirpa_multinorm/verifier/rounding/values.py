"""How operators move a set of values, and their rounding errors; see :mod:`.errors`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .. import network
from .counts import summed_products

_EXTRA = 12  # roundings of an operator besides those of its sum
_LARGEST = 0.1  # k u, above which errors have no bound
_LAMBDA = 8  # standard deviations of the probable error
NORMS = 1 + 1e-5  # what norms of matrices are enlarged by, for their own rounding


class RoundedValue(NamedTuple):
    """The value of a step on R sets, with its rounding error.

    Args:
        value: The value at the centre, as computed.
        reach: How far exact values move on the set from the exact value at the centre, element by
            element.
        move: How far they move in l_2, (R,).
        error: How far computed values are from exact ones, element by element.
        drift: How far they are from exact ones in l_2, (R,).
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
        """Return the largest absolute value met on the set, in exact arithmetic or as computed."""
        return (self.value.abs() + self.reach + 2 * self.error) * (1 + 8 * self.unit)

    def rows(self, index: Tensor) -> RoundedValue:
        """Return the value on some of the sets."""
        return RoundedValue._make([*[tensor[index] for tensor in self[:5]], self.probable])

    def tidied(self) -> RoundedValue:
        """Return the value with l_2 norms no larger than those of the elements."""
        slack = 1 + 2 * _gamma(self.value[0].numel() + _EXTRA, self.unit)
        lengths = [
            torch.linalg.vector_norm(tensor.flatten(1), dim=1) * slack
            for tensor in (self.reach, self.error)
        ]
        # A NaN here would stand for infinity times zero: nothing is known then.
        move, drift = torch.minimum(self.move, lengths[0]), torch.minimum(self.drift, lengths[1])
        return self._replace(move=move, drift=drift)


def _gamma(count: int, unit: float) -> float:
    """Return gamma_k, infinite where k u is no small number."""
    return count * unit / (1 - count * unit) if count * unit < _LARGEST else math.inf


def rounded_step(
    step: network.Step, sources: Sequence[RoundedValue], norms: Sequence[float]
) -> RoundedValue:
    """Return a step's value from those of its sources.

    Args:
        step: The step, which is not the input.
        sources: The values of its sources.
        norms: How much the step lengthens l_2 distances of each source at most.

    Raises:
        UnsupportedModelError: The step's rounding is not known.
    """
    if step.operator == "relu":
        return _relu(sources[0]).tidied()
    if step.operator == "minmax":
        return _minmax(step, sources[0]).tidied()
    if step.operator in (*network.EXACT, "pair"):
        return _moved(step, sources, norms).tidied()
    if step.operator == "batch_norm":
        return _batch_norm(step, sources[0]).tidied()
    return _affine(step, sources, norms).tidied()


def _relu(value: RoundedValue) -> RoundedValue:
    center, far = value.value, value.reach * (1 + 4 * value.unit)
    reach = torch.maximum(
        (center + far).relu() - center.relu(), center.relu() - (center - far).relu()
    )
    # The exact centre is not the computed one: how far a value moves from it is known by the
    # input's reach alone.
    reach = torch.minimum(
        value.reach, reach + 2 * value.error + 4 * value.unit * (center.abs() + far)
    )
    dead = center + far + 2 * value.error <= -4 * value.unit * center.abs()
    return value._replace(value=center.relu(), reach=reach, error=value.error * ~dead)


def _minmax(step: network.Step, value: RoundedValue) -> RoundedValue:
    """Return ``a + ReLU(b - a)`` and ``b - ReLU(b - a)``, of which one is the larger value.

    Exact ones are no farther apart than their inputs are, and computed ones round twice: their
    difference, and then their sum.
    """
    spread, unit = torch.vmap(step.spread), value.unit
    first, second = value.largest.chunk(2, -1)
    local = (4 * unit * (first + second)).repeat(*[1] * (first.ndim - 1), 2)
    local = torch.where(local < unit * torch.finfo(local.dtype).max, local, math.inf)
    slack = 1 + 2 * _gamma(local[0].numel() + _EXTRA, unit)
    length = torch.linalg.vector_norm(local.flatten(1), dim=1) * slack
    return value._replace(
        value=torch.vmap(step.run)(value.value),
        reach=spread(value.reach),
        error=(spread(value.error) + local) * (1 + 8 * unit),
        drift=(value.drift + length) * (1 + 8 * unit),
    )


def _moved(
    step: network.Step, sources: Sequence[RoundedValue], norms: Sequence[float]
) -> RoundedValue:
    """Return a value made of elements of its sources, their negatives and constants."""
    spread = torch.vmap(step.spread)
    move, drift = _lengthened(sources, norms)
    return RoundedValue(
        torch.vmap(step.run)(*[source.value for source in sources]),
        spread(*[source.reach for source in sources]),
        move,
        spread(*[source.error for source in sources]),
        drift,
        sources[0].probable,
    )


def _lengthened(sources: Sequence[RoundedValue], norms: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Return how far an affine step's value moves, and how far it is off, in l_2."""
    zero = torch.zeros_like(sources[0].move)
    move = sum((source.move * norm for source, norm in zip(sources, norms)), start=zero)
    drift = sum((source.drift * norm for source, norm in zip(sources, norms)), start=zero)
    return move, drift


def _affine(
    step: network.Step, sources: Sequence[RoundedValue], norms: Sequence[float]
) -> RoundedValue:
    """Return the value behind ``W a + b``, summed up in any order."""
    shapes = [source.value.shape[1:] for source in sources]
    count, like = summed_products(step, shapes), sources[0]
    spread, unit = torch.vmap(step.spread), like.unit
    rounded = 1 + 2 * _gamma(count + _EXTRA, unit)  # here as well
    largest, reach = (
        spread(*[getattr(source, name) for source in sources]) * rounded
        for name in ("largest", "reach")
    )
    shift = step.run(*[torch.zeros_like(source.value[0]) for source in sources])
    lengths = None
    if step.squared is not None:
        squares = step.squared(*[torch.ones_like(source.value[0]) for source in sources])
        lengths = squares.clamp(min=0).sqrt()
        lengths = lengths + torch.finfo(lengths.dtype).tiny ** 0.5
        lengths = lengths * (1 + _gamma(count + _EXTRA, unit))
    return _summed(
        sources,
        norms,
        torch.vmap(step.run)(*[source.value for source in sources]),
        (largest, reach, _carried_errors(step, sources) * rounded),
        count,
        shift.abs(),
        lengths,
        cancels=_cancels(step, like),
    )


def _cancels(step: network.Step, source: RoundedValue) -> bool:
    """Return whether errors that a step adds up are taken to cancel."""
    return source.probable and step.squared is not None


def _carried_errors(step: network.Step, sources: Sequence[RoundedValue]) -> Tensor:
    """Return how far an affine step's value is off because its sources' values are.

    ``|W| e``, or its smaller probable size, the root of ``W^2 e^2``.
    """
    first = sources[0]
    if step.squared is None or not _cancels(step, first):
        return torch.vmap(step.spread)(*[source.error for source in sources])
    scale = first.error.flatten(1).amax(1)  # squares of small numbers are zero
    scale = scale.clamp(min=torch.finfo(scale.dtype).tiny)
    column = (len(scale), *[1] * (first.value.ndim - 1))
    shares = (first.error / scale.view(column)).square()
    squares = torch.vmap(step.squared)(shares).clamp(min=0)
    return squares.sqrt() * scale.view(len(scale), *[1] * (squares.ndim - 1))


def _batch_norm(step: network.Step, value: RoundedValue) -> RoundedValue:
    options, shape = step.arguments, (1, -1, *[1] * (value.value.ndim - 3))
    factor = network.batch_norm_scale(options["weight"], options["running_var"], options["eps"])
    size = (factor.abs() * (1 + 16 * value.unit)).view(shape)
    bias = torch.zeros_like(factor) if options["bias"] is None else options["bias"]
    # Mean and bias can cancel in the shift, and the factor is itself rounded.
    shift = (options["running_mean"].abs() * size.flatten() + bias.abs()).view(shape)
    return _summed(
        [value],
        [float(size.max())],
        torch.vmap(step.run)(value.value),
        (value.largest * size, value.reach * size, value.error * size),
        _EXTRA,
        shift,
        size,
        shift * _gamma(2 * _EXTRA, value.unit),
        cancels=value.probable,
    )


def _summed(
    sources: Sequence[RoundedValue],
    norms: Sequence[float],
    center: Tensor,
    sizes: tuple[Tensor, Tensor, Tensor],
    count: int,
    shift: Tensor,
    lengths: Tensor | None = None,
    lost: Tensor | None = None,
    cancels: bool = False,
) -> RoundedValue:
    """Return a value ``W a + b`` from norms of W and sums with its absolute values.

    Args:
        sources: The values a that it is affine in.
        norms: ``||W||`` in each.
        center: ``W a + b`` at the centre.
        sizes: ``|W|`` times the largest absolute values, how far values move, and how far they are
            off.
        count: How many products are summed up for one number.
        shift: ``|b|``.
        lengths: The l_2 norms of the rows of W; None: not known.
        lost: How far the shift itself is off at most.
        cancels: Whether errors of its sums are taken to cancel.
    """
    (largest, reach, error), first = sizes, sources[0]
    unit, limits = first.unit, torch.finfo(center.dtype)
    largest = (largest + shift) * (1 + 4 * unit)
    column = (len(center), *[1] * (center.ndim - 1))
    if lengths is not None:
        reach = _least(reach, lengths * first.move.view(column))
        if not cancels:
            error = _least(error, lengths * first.drift.view(column))
    share = _rounding_share(count, unit, first.probable)
    local = (share * (1 + 8 * unit)) * largest + (count + _EXTRA) * limits.tiny
    local = local if lost is None else local + lost
    overflows = ~(largest.flatten(1).amax(1) < limits.max / 4)
    local = local + torch.where(overflows, math.inf, 0.0).to(local).view(column)
    slack = 1 + 2 * _gamma(local[0].numel() + _EXTRA, unit)
    length = torch.linalg.vector_norm(local.flatten(1), dim=1) * slack
    wider = 1 + 8 * unit
    move, drift = _lengthened(sources, norms)
    move, reach = move * wider, reach * wider
    if cancels:
        drift = torch.full_like(length, math.inf)
        return RoundedValue(center, reach, move, torch.hypot(error, local) * wider, drift, True)
    drift = drift + length
    return RoundedValue(center, reach, move, (error + local) * wider, drift * wider, first.probable)


def _least(first: Tensor, second: Tensor) -> Tensor:
    """Return the smaller elements; NaN in the second is infinity times zero, and no bound."""
    return torch.minimum(first, second.nan_to_num(nan=math.inf, posinf=math.inf))


def _rounding_share(count: int, unit: float, probable: bool) -> float:
    """Return the rounding error of a sum of products, as a share of their absolute values."""
    share = _gamma(count + 4, unit)
    if probable and share < math.inf:
        return min(share, _LAMBDA * math.sqrt(count + 4) * unit)
    return share
