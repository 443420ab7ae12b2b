"""What rounding can do to a network's outputs on a set, and to the bounds of them.

A network runs in floating point: each operator's sums are rounded, in an order that nobody promises. Let u be the unit
roundoff of the weights' type and gamma_k = k u / (1 - k u). A sum of n products, in any order, with or without fused
multiply-adds, is off by at most gamma_n times the sum of the products' absolute values (Higham 2002, section 3.1; one
more for a bias). So the error of an operator ``W a + b`` whose input is off by at most e is at most

    |W| e + gamma_(n+c) (|W| |a| + |b|),

element by element, where |a| is the largest absolute value on the set by interval arithmetic. ReLU and pooling by maxima
add nothing. This is ``forward``, the error of the network's own run.

``bound`` is the error of a lower bound of an output that is calculated in the same type. A backward pass multiplies
functionals by the same W with slopes from [0, 1] in between, so that the functional that arrives at a layer is at most
the product of the |W| behind it; what is rounded at the layer falls below ``gamma_(N+n+c) (|W| |a| + |b|)`` with N
summands where whole layers are added up, carried on through |W| as above. It relaxes a ReLU over an interval that is
itself off by at most ``bound``; since slopes lie in [0, 1], the relaxation is off by no more than that outside. So
``bound`` doubles at every ReLU. Interval arithmetic does less.

All of it is calculated in the weights' type, with factors that make good for the rounding here.

Source: Higham 2002, Accuracy and Stability of Numerical Algorithms, chapter 3.
"""

from __future__ import annotations

import math
from typing import Callable, Dict, List, NamedTuple, Optional, Sequence

import torch
from torch import Tensor

from .. import host
from ..errors import UnsupportedModelError
from ..perturbations import Region
from .traced import HOST_FAILURES, default_dtype, frozen, is_ours_or_memory

_MOVES = (*host.RESHAPES, "BoundSlice", "BoundPad", "BoundDropout", "BoundMaxPool")  # each value is one that was there
_MEANS = ("BoundAveragePool", "BoundGlobalAveragePool", "BoundReduceMean", "BoundReduceSum")
_EXTRA = 12  # roundings of an operator besides those of its sum
_LARGEST = 0.1  # k u, above which nothing is said


class RoundingError(NamedTuple):
    """How far rounding can move each output on a set.

    Args:
        forward: The network's own value from that of exact arithmetic, (R, K).
        bound: A calculated bound of it from one in exact arithmetic, (R, K).
    """

    forward: Tensor
    bound: Tensor

    def margins(self, y: Tensor) -> Tensor:
        """Return what a lower bound of ``f_y - f_k`` must exceed to hold for the network as it runs, (R, K)."""
        total = self.forward + self.bound
        return (total + total.gather(1, y.unsqueeze(1))) * 1.001


def rounding_error(bounded, regions: Sequence[Region]) -> RoundingError:
    """Bound the rounding errors of a network's outputs, and of bounds of them, on some sets.

    Args:
        bounded: A :class:`~lirpa_multinorm.BoundedModule` in eval mode.
        regions: (centre, set) pairs, together R examples.

    Returns:
        The errors, in the type of the centres; infinite where nothing can be said (sums too long for the type, overflow).

    Raises:
        UnsupportedModelError: Nothing is known of an operator's rounding; the message names it.

    Example:
        >>> from lirpa_multinorm import BoundedModule, PerturbationLinf
        >>> model = torch.nn.Linear(100, 2)
        >>> region = Region(torch.rand(1, 100), PerturbationLinf(0.1))
        >>> error = rounding_error(BoundedModule(model), [region])
        >>> bool((error.forward < 1e-4).all() and (error.bound > error.forward).all())
        True
    """
    centers = torch.cat([region.center for region in regions]).detach()
    ends = [region.perturbation.enclosing_box(region.center) for region in regions]
    lower, upper = (torch.cat(one).detach() for one in zip(*ends))
    step = 1 if bounded.trace_single(centers) else len(centers)
    module, found = bounded, []
    with torch.no_grad(), frozen(bounded.model), default_dtype(centers.dtype):
        for rows in torch.arange(len(centers), device=centers.device).split(step):
            try:
                found.append(_propagated(module, lower[rows], upper[rows]))
            except HOST_FAILURES as error:
                if is_ours_or_memory(error):
                    raise
                raise UnsupportedModelError(f"model: its graph cannot be run node by node ({type(error).__name__}: "
                                            f"{error}); its rounding is not bounded") from error
    forward, bound = (torch.cat(one).flatten(1) for one in zip(*found))
    return RoundingError(*[torch.where(one.isfinite(), one, math.inf) for one in (forward, bound)])


class _Value(NamedTuple):
    """A node on R sets: exact arithmetic's interval as middle and radius, and the errors of its value and bounds."""

    middle: Tensor
    radius: Tensor
    forward: Tensor
    bound: Tensor

    @property
    def unit(self) -> float:
        """Return the unit roundoff."""
        return torch.finfo(self.middle.dtype).eps / 2

    @property
    def largest(self) -> Tensor:
        """Return the largest absolute value that can be met, rounding included."""
        return (self.middle.abs() + self.radius + self.forward) * (1 + 8 * self.unit)

    @classmethod
    def between(cls, lower: Tensor, upper: Tensor, forward: Tensor, bound: Tensor) -> "_Value":
        unit = torch.finfo(lower.dtype).eps / 2
        far = torch.maximum(lower.abs(), upper.abs())
        return cls((lower + upper) / 2, (upper - lower) / 2 + 4 * unit * far, forward, bound)

    def each(self, function: Callable[[Tensor], Tensor]) -> "_Value":
        """Return the value with a function applied to all its parts."""
        return _Value(*map(function, self))

    def ends(self, function: Callable[[Tensor], Tensor]) -> "_Value":
        """Return the value behind a rising function that enlarges no distance and does not round."""
        lower, upper = function(self.middle - self.radius), function(self.middle + self.radius)
        far = torch.maximum(lower.abs(), upper.abs())
        return _Value.between(lower, upper, self.forward, 2 * self.bound + 16 * self.unit * far)


def _propagated(module, lower: Tensor, upper: Tensor) -> RoundingError:
    output = module[module.final_name]
    moving = host.moving_nodes(output)
    known: Dict[str, _Value] = {}
    for node in moving:
        if not node.inputs:
            far = torch.maximum(lower.abs(), upper.abs())
            known[node.name] = _Value.between(lower, upper, torch.zeros_like(far),
                                              4 * torch.finfo(far.dtype).eps * far)
        else:
            known[node.name] = _step(node, [known.get(one.name) for one in node.inputs])
    last = known[output.name]
    return RoundingError(last.forward, last.bound)


def _step(node, inputs: List[Optional[_Value]]) -> _Value:
    """Return a node's value from those of its inputs; None where an input does not move with the network's."""
    name, first = type(node).__name__, inputs[0]
    constants = [None if value is not None else host.constant_value(one) for one, value in zip(node.inputs, inputs)]
    alone = first is not None and all(one is None for one in inputs[1:])
    if name == "BoundRelu":
        found = first.ends(torch.relu)
        dead = first.middle + first.radius * (1 + 8 * first.unit) + first.forward <= 0
        return found._replace(forward=found.forward.masked_fill(dead, 0))
    if name in _MOVES and alone:
        value = first._replace(bound=2 * first.bound) if name == "BoundMaxPool" else first
        return _moved(node, value, constants[1:], name)
    if name in _MEANS and alone:
        return _mean(node, first, constants[1:])
    if name in ("BoundConv", "BoundConvTranspose", "BoundLinear", "BoundMatMul") and alone:
        return _layer(node, first, constants[1:], name)
    if name == "BoundBatchNormalization" and alone and not node.training:
        return _batch_norm(node, first, constants[1:])
    if name in ("BoundAdd", "BoundSub", "BoundNeg", "BoundMul", "BoundDiv", "BoundConcat"):
        found = _arithmetic(node, inputs, constants, name)
        if found is not None:
            return found
    raise UnsupportedModelError(f"model: what rounding does in {name[5:]} at {node.name} is not known")


def _moved(node, value: _Value, constants: list, name: str) -> _Value:
    def run(part: Tensor) -> Tensor:
        return node.forward(part, *constants)

    if name == "BoundMaxPool":
        ends = value.ends(run)
        return ends._replace(forward=run(value.forward), bound=run(value.bound))
    found = value.each(run)
    if name == "BoundPad":  # what is put around is known exactly
        inside = run(torch.ones_like(value.middle)) - run(torch.zeros_like(value.middle))
        found = _Value(found.middle, *[part * (inside != 0) for part in found[1:]])
    return found


def _affine(value: _Value, count: int, signed: Callable[[Tensor], Tensor], absolute: Callable[[Tensor], Tensor],
            bias: Optional[Tensor]) -> _Value:
    """Return the value behind ``W a + b``.

    Args:
        value: Of a.
        count: How many products are summed up for one number.
        signed: ``a -> W a``.
        absolute: ``a -> |W| a``.
        bias: b, in a shape that can be added; None for zero.
    """
    rows, unit, limits = len(value.middle), value.unit, torch.finfo(value.middle.dtype)
    sizes = absolute(torch.cat([value.largest, value.radius, value.forward, value.bound]))
    sizes = sizes * (1 + 2 * _gamma(count + _EXTRA, unit))  # of what is calculated here
    largest, radius, forward, bound = sizes.split(rows)
    middle = signed(value.middle)
    if bias is not None:
        middle, largest = middle + bias, (largest + bias.abs()) * (1 + 4 * unit)
    wide = max(value.middle[0].numel(), middle[0].numel())
    underflow = (count + _EXTRA) * limits.tiny
    local = _gamma(count + _EXTRA, unit) * largest + underflow
    around = _gamma(wide + count + _EXTRA, unit) * largest + wide * underflow
    around = torch.where(largest < limits.max / 4, around, math.inf)
    return _Value(middle, (radius + local) * (1 + 4 * unit), forward + local, bound + around)


def _gamma(count: int, unit: float) -> float:
    """Return gamma_k, infinite where k u is no small number."""
    return count * unit / (1 - count * unit) if count * unit < _LARGEST else math.inf


def _layer(node, value: _Value, constants: list, name: str) -> _Value:
    weight = constants[0]
    if weight.ndim != 2 and name in ("BoundLinear", "BoundMatMul"):
        raise UnsupportedModelError(f"model: what rounding does in {name[5:]} at {node.name} is not known")
    summed = {"BoundConv": weight[0].numel(), "BoundConvTranspose": weight.shape[0] * weight[0, 0].numel()}
    none = [torch.zeros_like(one) for one in constants[1:]]
    shift = None
    if len(constants) > 1:  # the operator knows how its bias is added
        shift = node.forward(torch.zeros_like(value.middle[:1]), *constants)
    return _affine(value, summed.get(name, value.middle.shape[-1]), lambda part: node.forward(part, weight, *none),
                   lambda part: node.forward(part, weight.abs(), *none), shift)


def _mean(node, value: _Value, constants: list) -> _Value:
    zeros = torch.zeros_like(value.middle[:1])
    shift = node.forward(zeros, *constants)
    count = value.middle[0].numel()
    if type(node).__name__ == "BoundAveragePool":
        size = node.kernel_size if isinstance(node.kernel_size, (tuple, list)) else (node.kernel_size,) * 2
        count = math.prod(size)
    return _affine(value, count, lambda part: node.forward(part, *constants),
                   lambda part: node.forward(part, *constants), shift)


def _batch_norm(node, value: _Value, constants: list) -> _Value:
    weight, bias, mean, variance = constants
    factor = weight / torch.sqrt(variance + node.eps)
    shape = (1, -1, *[1] * (value.middle.ndim - 2))
    factor, size = factor.view(shape), (factor.abs() * (1 + 16 * value.unit)).view(shape)
    shift = (bias - mean * factor.flatten()).view(shape)
    found = _affine(value, 1, lambda part: part * factor, lambda part: part * size, shift)
    # Mean and bias can cancel in the shift.
    lost = (mean.abs() * size.flatten() + bias.abs()).view(shape) * _gamma(2 * _EXTRA, value.unit)
    return found._replace(radius=found.radius + lost, forward=found.forward + lost, bound=found.bound + 2 * lost)


def _arithmetic(node, inputs: List[Optional[_Value]], constants: list, name: str) -> Optional[_Value]:
    """Return sums, and products and quotients with constants; None where there is another thing to do."""
    moving = [one for one in inputs if one is not None]
    unit = moving[0].unit
    if name == "BoundNeg":
        return moving[0]._replace(middle=-moving[0].middle)
    if name in ("BoundMul", "BoundDiv"):
        if len(moving) != 1 or (name == "BoundDiv" and inputs[0] is None):
            return None
        factor = next(one for one in constants if one is not None)
        factor = 1 / factor if name == "BoundDiv" else factor
        return _affine(moving[0], 2, lambda part: part * factor, lambda part: part * factor.abs(), None)
    like = moving[0].middle
    values = [one if one is not None else _Value(fixed.to(like), *[torch.zeros_like(fixed.to(like))] * 3)
              for one, fixed in zip(inputs, constants)]
    if name == "BoundConcat":
        return _Value(*[node.forward(*[part.expand(len(like), *part.shape[1:]) for part in parts])
                        for parts in zip(*values)])
    one, other = values
    middle = one.middle + other.middle if name == "BoundAdd" else one.middle - other.middle
    local = 4 * unit * (one.largest + other.largest)
    wide = _gamma(middle[0].numel() + _EXTRA, unit) * (one.largest + other.largest)
    return _Value(middle, one.radius + other.radius + local, one.forward + other.forward + local,
                  one.bound + other.bound + wide)
