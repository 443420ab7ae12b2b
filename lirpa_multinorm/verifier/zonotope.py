"""Forward propagation of linear forms of a few parameters, with an interval remainder.

Every value is ``center + sum over p of generators_p kappa_p + [-radius, radius]`` for kappa_p in
[-1, 1], and lies in an interval, which interval arithmetic has found before. An affine operator
maps center and generators exactly, and the radius by its absolute coefficients; a ReLU is replaced
by DeepZ's chord, or by its interval where the chord's remainder is no narrower. No bound is worse
than interval arithmetic's.

Source: Singh et al. 2018, Fast and Effective Robustness Certification (DeepZ); one generator per
parameter and one interval for all the rest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..transforms.forms import LinearForms, relu_form
from ..transforms.interval import Interval
from ..utils.modes import tensor_float_32
from .network import ModelGraph, Step
from .relaxations.crown import CrownSlopes
from .relu_network import ReluNetwork, propagated_backward


class ZonotopeBounds(NamedTuple):
    """Bounds of a network's output on S zonotopes.

    Args:
        value: The linear forms' values at the middle of the forms, (S, R); no bound.
        lower: Lower bounds of the linear forms, (S, R).
        layers: The layers in front of the ReLUs, with their intervals.
    """

    value: Tensor
    lower: Tensor
    layers: list[LinearForms]


class IntervalBounds(NamedTuple):
    """Bounds of a network's output on S boxes, by interval arithmetic.

    Args:
        lower: Lower bounds of linear forms of it, (S, R).
        steps: The intervals of the input and of the affine steps, by index.
    """

    lower: Tensor
    steps: dict[int, Interval]

    def rows(self, index: Tensor) -> IntervalBounds:
        """Return the bounds on some boxes."""
        steps = {
            step: Interval(*(end.index_select(0, index) for end in interval))
            for step, interval in self.steps.items()
        }
        return IntervalBounds(self.lower.index_select(0, index), steps)


@torch.no_grad()
def interval_bounds(graph: ModelGraph, box: Interval, C: Tensor) -> IntervalBounds:
    """Bound linear forms of a network's output from below by interval arithmetic.

    Args:
        graph: The network.
        box: The inputs of S examples.
        C: Linear forms of the output, (S, R, K).
    """
    affine = [step for step in graph.needed([graph.output], [0]) if step not in graph.relus]
    with tensor_float_32(False):
        ends = graph.interval(affine, {0: box.lower}, {0: box.upper})
    steps = {0: box, **{step: Interval(*interval) for step, interval in zip(affine, ends)}}
    output = Interval(*(end.flatten(1) for end in steps[graph.output]))
    return IntervalBounds(_interval_minimum(output, C), steps)


@torch.no_grad()
def zonotope_bounds(
    graph: ModelGraph, pixels: LinearForms, C: Tensor, intervals: IntervalBounds
) -> ZonotopeBounds:
    """Bound linear forms of a network's output from below by DeepZ.

    Args:
        graph: The network.
        pixels: The inputs of S examples.
        C: Linear forms of the output, (S, R, K).
        intervals: What interval arithmetic has found for them.
    """
    with tensor_float_32(False):
        *layers, output = propagated_forward(graph, pixels, graph.layers, intervals.steps)
    flat = output.flat()
    return ZonotopeBounds(_product(C, flat.center), minimum(flat, C), layers)


@torch.no_grad()
def zonotope_crown(
    network: ReluNetwork, pixels: LinearForms, layers: Sequence[LinearForms], v: Tensor
) -> Tensor:
    """Bound linear forms of the output from below by CROWN, on the zonotopes' intervals.

    Args:
        network: The network.
        pixels: The inputs of R examples.
        layers: The layers in front of the ReLUs.
        v: A linear form for each example, (R, K).

    Returns:
        Lower bounds, (R,).
    """
    intervals = [(layer.lower.flatten(1), layer.upper.flatten(1)) for layer in layers]
    slopes = CrownSlopes.on(intervals)
    maps = network.maps(len(v), v, len(layers))
    value, at_input = propagated_backward(maps, network.shapes, v, slopes.relax)
    if at_input is None:
        return value
    return value + minimum(pixels.flat(), at_input.flatten(1).unsqueeze(1)).squeeze(1)


def slack_by_parameter(pixels: LinearForms, layers: Sequence[LinearForms]) -> Tensor:
    """Return how much of the ReLUs' slack falls to each parameter, (S, P).

    A ReLU's slack ``-u l / (2 (u - l))`` is shared in the proportions of the interval's width.
    Where no ReLU has any, it is how far each parameter moves the pixels.
    """
    moved = pixels.flat().generators.abs().sum(2)
    shares = [torch.zeros_like(moved)]
    for layer in map(LinearForms.flat, layers):
        lower, upper = layer.lower.clamp(max=0), layer.upper.clamp(min=0)
        width = (upper - lower).clamp(min=torch.finfo(upper.dtype).tiny)
        slack = -upper * lower / width**2
        shares.append(torch.matmul(layer.generators.abs(), slack.unsqueeze(2)).squeeze(2))
    slack = torch.stack(shares).sum(0)
    return torch.where((slack > 0).any(1, keepdim=True), slack, moved)


def minimum(zonotope: LinearForms, C: Tensor) -> Tensor:
    """Return lower bounds of linear forms (S, R, n) on flat zonotopes, (S, R).

    The larger of two: the minimum on the form, and that on the interval.
    """
    by_form = _product(C, zonotope.center) - _product(C.abs(), zonotope.radius)
    by_form = by_form - torch.matmul(C, zonotope.generators.transpose(1, 2)).abs().sum(2)
    return torch.maximum(by_form, _interval_minimum(Interval(zonotope.lower, zonotope.upper), C))


def _interval_minimum(box: Interval, C: Tensor) -> Tensor:
    """Return the minimum of linear forms (S, R, n) on flat boxes, (S, R)."""
    return _product(C, box.middle()) - _product(C.abs(), box.half())


def propagated_forward(
    graph: ModelGraph, pixels: LinearForms, wanted: Sequence[int], intervals: Mapping[int, Interval]
) -> list[LinearForms]:
    """Return the values of some steps as linear forms, from the input's.

    Args:
        graph: The network.
        pixels: The input.
        wanted: The indices of the steps.
        intervals: Of the affine steps, by index.
    """
    values = {0: pixels}
    for index in graph.needed(wanted, values):
        sources = [values[source] for source in graph.steps[index].sources]
        if graph.steps[index].operator == "relu":
            values[index] = _relu(sources[0])
        else:
            values[index] = _affine(graph, index, sources, intervals[index])
    return [values[index] for index in wanted]


def _affine(
    graph: ModelGraph, index: int, sources: Sequence[LinearForms], interval: Interval
) -> LinearForms:
    """Return an affine step's value, which lies in an interval too."""
    step, parameters = graph.steps[index], sources[0].generators.shape[1]
    center = _applied(graph, index, step.run, [source.center for source in sources])
    zeros = [torch.zeros_like(source.center[:1]) for source in sources]
    slopes = [source.generators.flatten(0, 1) for source in sources]
    moved = _applied(graph, index, step.run, slopes) - _applied(graph, index, step.run, zeros)
    generators = moved.unflatten(0, (-1, parameters))
    radius = _applied(graph, index, step.spread, [source.radius for source in sources])
    spread = generators.abs().sum(1) + radius
    ends = interval.intersected(Interval(center - spread, center + spread))
    return LinearForms(center, generators, radius, *ends)


def _applied(graph: ModelGraph, index: int, function, inputs: Sequence[Tensor]) -> Tensor:
    """Apply a function of a step's sources to a batch of examples."""
    step: Step = graph.steps[index]
    shapes = [graph.steps[source].shape for source in step.sources]

    def single(*values: Tensor) -> Tensor:
        """Apply the function to one example, in the shapes of a batch of one."""
        shaped = [value.reshape(shape) for value, shape in zip(values, shapes)]
        return function(*shaped).reshape(step.example_shape)

    return torch.vmap(single)(*inputs)


def _relu(source: LinearForms) -> LinearForms:
    """Return a ReLU's value."""
    ends = Interval(source.lower, source.upper)
    form = relu_form(source.center, source.generators, source.radius, ends)
    return LinearForms(*form, ends.lower.clamp(min=0), ends.upper.clamp(min=0)).tightened()


def _product(C: Tensor, values: Tensor) -> Tensor:
    """Return linear forms (S, R, K) of values (S, K)."""
    return torch.matmul(C, values.unsqueeze(2)).squeeze(2)
