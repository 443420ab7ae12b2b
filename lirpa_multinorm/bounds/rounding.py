"""What rounding can do to a network's outputs on a set.

A network runs in floating point: each operator's sums are rounded, in an order that nobody promises. Let u be the unit
roundoff of the weights' type and gamma_k = k u / (1 - k u). A sum of n products, in any order, with or without fused
multiply-adds, is off by at most gamma_n times the sum of the products' absolute values (Higham 2002, section 3.1; a
bias is one more). So the value of an operator ``W a + b``, whose input is off by e, is off by at most

    |W| |e| + d   with   d = gamma_(n+c) (|W| |a| + |b|),   and in l_2 by   ||W|| ||e|| + ||d||,

where |a| is the largest absolute value on the set. Both are carried along, element by element and in l_2, each as small as
the other makes it (an element of W e is at most the l_2 norm of its row of W times ||e||): absolute weights alone
overestimate what layers of thousands of neurons do by orders of magnitude. In the same way it is known how far a value
moves on the set from the one at the centre, and so how large it gets. ReLUs and maxima add nothing, and enlarge no
difference. An operator that adds up nothing (a reshape) only moves all this along.

This is **proved**, and seldom met: errors of one sum cancel, and so do those of different sums. If they are independent
with mean zero, as in the model of Higham and Mary, a sum of n products is off by at most lambda sqrt(n) u times the
absolute values, and errors of different neurons add up in squares, with the squares of the weights. That is **probable**,
with lambda = 8: no proof, but of short sums of huge numbers, which networks made to break verifiers by rounding are
built of, it says the same.

All of it is calculated in the weights' type; factors make good for what is rounded here.

Source: Higham 2002, Accuracy and Stability of Numerical Algorithms, chapter 3; Higham and Mary 2019, A New Approach to
Probabilistic Rounding Error Analysis.
"""

from __future__ import annotations

import math
from typing import Callable, Dict, List, NamedTuple, Optional, Sequence

import torch
from torch import Tensor

from .. import host
from ..errors import UnsupportedModelError
from ..perturbations import Region
from .operator_norms import step_norm
from .traced import HOST_FAILURES, default_dtype, frozen, is_ours_or_memory

_MOVES = (*host.RESHAPES, "BoundSlice", "BoundPad", "BoundDropout", "BoundMaxPool")  # each value is one that was there
_MEANS = ("BoundAveragePool", "BoundGlobalAveragePool", "BoundReduceMean", "BoundReduceSum")
_EXTRA = 12  # roundings of an operator besides those of its sum
_LARGEST = 0.1  # k u, above which nothing is said
_LAMBDA = 8  # standard deviations of the probable error
_NORMS = 1 + 1e-5  # what norms of matrices are enlarged by, for their own rounding


class RoundingErrors:
    """The rounding errors of a network's outputs; what depends on its weights alone is calculated once.

    Args:
        bounded: A :class:`~lirpa_multinorm.BoundedModule` in eval mode, whose weights stay as they are.
        probable: Whether to return probable errors instead of proved bounds.

    Example:
        >>> from lirpa_multinorm import BoundedModule, PerturbationLinf
        >>> region = Region(torch.rand(1, 100), PerturbationLinf(0.1))
        >>> error = RoundingErrors(BoundedModule(torch.nn.Linear(100, 2))).of([region])
        >>> error.shape, bool((error > 0).all() and (error < 1e-3).all())
        (torch.Size([1, 2]), True)
    """

    def __init__(self, bounded, probable: bool = False) -> None:
        self._bounded, self._probable, self._norms = bounded, probable, {}

    @torch.no_grad()
    def of(self, regions: Sequence[Region]) -> Tensor:
        """Bound how far outputs as they are computed can be from those of exact arithmetic, anywhere on some sets.

        Args:
            regions: (centre, set) pairs, together R examples.

        Returns:
            Bounds (R, K), in the type of the centres; infinite where nothing can be said (sums too long for the type,
            values too large for it).

        Raises:
            UnsupportedModelError: Nothing is known of an operator's rounding; the message names it.
        """
        centers = torch.cat([region.center for region in regions]).detach()
        ends = [region.perturbation.enclosing_box(region.center) for region in regions]
        reach = torch.cat([torch.maximum(upper - one.center, one.center - lower)
                           for one, (lower, upper) in zip(regions, ends)])
        move = torch.cat([region.perturbation.l2_radius(region.center) for region in regions])
        value = _Value(centers, reach, move, torch.zeros_like(centers), torch.zeros_like(move), self._probable)
        value = value._replace(reach=reach + 4 * value.unit * (centers.abs() + reach), move=move * _NORMS).tidied()
        single = self._bounded.trace_single(centers)
        with frozen(self._bounded.model), default_dtype(centers.dtype):
            try:
                parts = [self._propagated(value.rows(rows)) for rows in
                         torch.arange(len(centers), device=centers.device).split(1 if single else len(centers))]
            except HOST_FAILURES as error:
                if is_ours_or_memory(error):
                    raise
                raise UnsupportedModelError(f"model: its graph cannot be run node by node ({type(error).__name__}: "
                                            f"{error}); its rounding is not bounded") from error
        found = torch.cat(parts).flatten(1)
        return torch.where(found.isfinite(), found, math.inf)

    def _propagated(self, value: "_Value") -> Tensor:
        output = self._bounded[self._bounded.final_name]
        known: Dict[str, _Value] = {}
        for node in host.moving_nodes(output):
            known[node.name] = value if not node.inputs else _step(
                node, [known.get(one.name) for one in node.inputs], self._norm)
        return known[output.name].error

    def _norm(self, node) -> float:
        """Return the l_2 norm of an affine node; infinite where it is not known."""
        if node.name not in self._norms:
            try:
                step = host.affine_step(node)
                norm = 1.0 if step.weight is None else step_norm(step.kind, step.weight, step.options)
            except UnsupportedModelError:
                norm = math.inf
            self._norms[node.name] = norm * _NORMS if math.isfinite(norm) else math.inf
        return self._norms[node.name]


class _Value(NamedTuple):
    """A node on R sets.

    Args:
        value: At the centre, as computed.
        reach: How far from it the exact value moves on the set, element by element.
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

    def rows(self, index: Tensor) -> "_Value":
        """Return the value on some of the sets."""
        return _Value(*[part[index] for part in self[:5]], self.probable)

    def tidied(self) -> "_Value":
        """Return the value with l_2 norms no larger than those of the elements."""
        slack = (1 + 2 * _gamma(self.value[0].numel() + _EXTRA, self.unit))
        lengths = [torch.linalg.vector_norm(part.flatten(1), dim=1) * slack for part in (self.reach, self.error)]
        # A NaN here would stand for infinity times zero: nothing is known then.
        return self._replace(move=torch.minimum(self.move, lengths[0]), drift=torch.minimum(self.drift, lengths[1]))

    def each(self, function: Callable[[Tensor], Tensor], norm: float = 1.0) -> "_Value":
        """Return the value with a function applied to its elements, that lengthens differences so much at most."""
        return _Value(function(self.value), function(self.reach), self.move * norm, function(self.error),
                      self.drift * norm, self.probable)


def _gamma(count: int, unit: float) -> float:
    """Return gamma_k, infinite where k u is no small number."""
    return count * unit / (1 - count * unit) if count * unit < _LARGEST else math.inf


def _step(node, inputs: List[Optional[_Value]], norm: Callable) -> _Value:
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


def _relu(value: _Value) -> _Value:
    center, far = value.value, value.reach * (1 + 4 * value.unit)
    reach = torch.maximum((center + far).relu() - center.relu(), center.relu() - (center - far).relu())
    # The exact centre is not the computed one: how far a value moves from it is known by the input's reach alone.
    reach = torch.minimum(value.reach, reach + 2 * value.error + 4 * value.unit * (center.abs() + far))
    dead = center + far + 2 * value.error <= -4 * value.unit * center.abs()
    return value._replace(value=center.relu(), reach=reach, error=value.error.masked_fill(dead, 0))


def _moved(node, value: _Value, constants: list, name: str) -> _Value:
    def run(part: Tensor) -> Tensor:
        return node.forward(part, *constants)

    found = value.each(run, 1.0 if name != "BoundMaxPool" else math.inf)
    if name == "BoundPad":  # what is put around is known exactly
        inside = run(torch.ones_like(value.value)) != run(torch.zeros_like(value.value))
        found = found._replace(reach=found.reach * inside, error=found.error * inside)
    return found


def _affine(value: _Value, count: int, signed: Callable[[Tensor], Tensor], absolute: Callable[[Tensor], Tensor],
            bias: Optional[Tensor], norm: float = math.inf, lengths: Optional[Tensor] = None,
            lost: Optional[Tensor] = None, squared: Optional[Callable[[Tensor], Tensor]] = None) -> _Value:
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
        return _Value(center, reach * wider, value.move * norm * wider, both * wider,
                      torch.full_like(length, math.inf), True)
    return _Value(center, reach * wider, value.move * norm * wider, (error + local) * wider,
                  (value.drift * norm + length) * wider, value.probable)


def _layer(node, value: _Value, constants: list, norm: float) -> Optional[_Value]:
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


def _mean(node, value: _Value, constants: list, norm: float) -> _Value:
    count = value.value[0].numel()
    if type(node).__name__ == "BoundAveragePool":
        size = node.kernel_size if isinstance(node.kernel_size, (tuple, list)) else (node.kernel_size,) * 2
        count = math.prod(size)

    def run(part: Tensor) -> Tensor:
        return node.forward(part, *constants)
    return _affine(value, count, run, run, None, norm)


def _batch_norm(node, value: _Value, constants: list) -> _Value:
    weight, bias, mean, variance = constants
    shape = (1, -1, *[1] * (value.value.ndim - 2))
    factor = weight / torch.sqrt(variance + node.eps)
    size = (factor.abs() * (1 + 16 * value.unit)).view(shape)
    # Mean and bias can cancel in the shift, and the factor is itself rounded.
    lost = (mean.abs() * size.flatten() + bias.abs()).view(shape) * _gamma(2 * _EXTRA, value.unit)
    return _affine(value, _EXTRA, lambda part: part * factor.view(shape), lambda part: part * size,
                   (bias - mean * factor).view(shape), float(size.max()), size, lost, squared=lambda part: part * size.square())


def _scaled(name: str, inputs: List[Optional[_Value]], constants: list) -> Optional[_Value]:
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


def _summed(node, inputs: List[Optional[_Value]], constants: list, name: str) -> Optional[_Value]:
    """Return a sum, a difference, a negative, or values side by side."""
    moving = [one for one in inputs if one is not None]
    like, unit = moving[0], moving[0].unit
    if name == "BoundNeg":
        return like._replace(value=-like.value)
    still = torch.zeros_like(like.move)
    values = [one if one is not None else
              _Value(fixed.to(like.value), torch.zeros_like(fixed.to(like.value)), still,
                     torch.zeros_like(fixed.to(like.value)), still) for one, fixed in zip(inputs, constants)]
    if name == "BoundConcat":
        if len(moving) != len(values):
            return None
        joined = [node.forward(*[getattr(one, part) for one in values]) for part in ("value", "reach", "error")]
        return _Value(joined[0], joined[1], sum(one.move for one in values), joined[2],
                      sum(one.drift for one in values), like.probable)
    one, other = values
    center = one.value + other.value if name == "BoundAdd" else one.value - other.value
    alike = all(part.value.shape == center.shape for part in moving)
    local = (one.largest + other.largest) * 2 * unit
    length = torch.linalg.vector_norm(local.expand_as(center).flatten(1), dim=1) * _NORMS
    far = 1 + 8 * unit
    move, drift = ((one.move + other.move) * far, (one.drift + other.drift + length) * far)
    nothing = torch.full_like(move, math.inf)
    return _Value(center, (one.reach + other.reach).expand_as(center) * far, move if alike else nothing,
                  (one.error + other.error + local).expand_as(center) * far, drift if alike else nothing, like.probable)
