"""Forward propagation of linear forms of a few parameters, with an interval remainder.

Every value is ``center + sum over p of generators_p kappa_p + [-radius, radius]`` for kappa_p in
[-1, 1], and lies in an interval, which interval arithmetic carries beside the form. An affine
operator maps center and generators exactly, and the radius by its absolute coefficients; a ReLU is
replaced by DeepZ's chord, or by its interval where the chord's remainder is no narrower. No bound
is worse than interval arithmetic's.

Source: Singh et al. 2018, Fast and Effective Robustness Certification (DeepZ); one generator per
parameter and one interval for all the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
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


@torch.no_grad()
def zonotope_bounds(graph: ModelGraph, pixels: LinearForms, C: Tensor) -> ZonotopeBounds:
    """Bound linear forms of a network's output from below by DeepZ and interval arithmetic.

    Args:
        graph: The network.
        pixels: The inputs of S examples.
        C: Linear forms of the output, (S, R, K).
    """
    with tensor_float_32(False):
        *layers, output = propagated_forward(graph, pixels, graph.layers)
    flat = output.flat()
    value = _product(C, flat.center)
    return ZonotopeBounds(value, minimum(flat, C), layers)


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
    size = C.abs()
    by_form = _product(C, zonotope.center) - _product(size, zonotope.radius)
    by_form = by_form - torch.matmul(C, zonotope.generators.transpose(1, 2)).abs().sum(2)
    box = Interval(zonotope.lower, zonotope.upper)
    return torch.maximum(by_form, _product(C, box.middle()) - _product(size, box.half()))


def propagated_forward(
    graph: ModelGraph, pixels: LinearForms, wanted: Sequence[int]
) -> list[LinearForms]:
    """Return the values of some steps as linear forms, from the input's."""
    values = {0: pixels}
    for index in graph.needed(wanted, values):
        step = graph.steps[index]
        sources = [values[source] for source in step.sources]
        relu = step.operator == "relu"
        values[index] = _relu(sources[0]) if relu else _affine(graph, index, sources)
    return [values[index] for index in wanted]


def _affine(graph: ModelGraph, index: int, sources: Sequence[LinearForms]) -> LinearForms:
    """Return an affine step's value."""
    count, parameters = sources[0].generators.shape[:2]
    boxes = [Interval(source.lower, source.upper) for source in sources]
    points = [
        torch.cat(
            [
                source.center,
                box.middle(),
                torch.zeros_like(source.center[:1]),
                source.generators.flatten(0, 1),
            ]
        )
        for source, box in zip(sources, boxes)
    ]
    distances = [torch.cat([source.radius, box.half()]) for source, box in zip(sources, boxes)]
    step = graph.steps[index]
    center, middle, zero, generators = _applied(graph, index, step.run, points).split(
        [count, count, 1, count * parameters]
    )
    radius, half = _applied(graph, index, step.spread, distances).split(count)
    generators = (generators - zero).unflatten(0, (count, parameters))
    return LinearForms(
        center, generators, radius, *_within(center, generators, radius, middle, half)
    )


def _within(
    center: Tensor, generators: Tensor, radius: Tensor, middle: Tensor, half: Tensor
) -> Interval:
    """Return the intersection of the intervals of a form and of interval arithmetic."""
    spread = generators.abs().sum(1) + radius
    return Interval(middle - half, middle + half).intersected(
        Interval(center - spread, center + spread)
    )


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
