"""Lipschitz constants of the steps of a graph, one after the other."""

from __future__ import annotations

import math
from collections.abc import Container, Sequence

import torch
from torch import Tensor

from .. import network
from .effective_layers import EffectiveLayer, effective_layer
from .operator_norms import column_norm, layer_norm, step_norm

#: How far the values of steps move where the input moves by 1, by the step's index.
Lengths = dict[int, float]


def step_rows(
    graph: network.ModelGraph, index: int, lengths: Lengths, first: Lengths
) -> tuple[float, Tensor]:
    """Return how far a step's value moves in l_2, and each of its elements.

    Args:
        graph: The graph.
        index: The index of the step.
        lengths: Those of the input and of earlier ReLUs; more are filled in on the way.
        first: What :func:`first_lengths` returns for an input that moves in l_1, else nothing.

    Returns:
        (length, lengths of elements in float64, flat).
    """
    length, step = step_length(graph, index, lengths, first), graph.steps[index]
    layer = effective_layer(graph, index, _without(lengths, index))
    if layer is None:
        count, device = step.shape.numel(), graph.like.device
        return length, torch.full((count,), length, dtype=torch.float64, device=device)
    weight = layer.weight.flatten(1)
    if layer.layer in first:
        rows = weight.abs().amax(1) * first[layer.layer]
    else:
        rows = torch.linalg.vector_norm(weight, dim=1) * lengths[layer.source]
    # The neurons of a Linear layer are in the last dimension.
    shape, is_linear = step.example_shape, graph.steps[layer.layer].operator == "linear"
    rows = rows.view(-1, *[1] * (0 if is_linear else len(shape) - 1)).expand(shape)
    return min(length, float(torch.linalg.vector_norm(rows))), rows.clamp(max=length).flatten()


def first_lengths(graph: network.ModelGraph) -> Lengths:
    """Return how far l_1 distances grow in front of each first layer, by the layer's index.

    First layers see the input through steps on each element only.
    """
    return {
        index: math.prod(step_norm(graph, before, 0) for before in layer.chain)
        for index, layer in network.first_layers(graph).items()
    }


def step_length(graph: network.ModelGraph, index: int, lengths: Lengths, first: Lengths) -> float:
    """Return how far a step's value moves in l_2; see :func:`step_rows`."""
    if index in lengths:
        return lengths[index]
    layer, step = effective_layer(graph, index, lengths), graph.steps[index]
    if layer is not None:
        lengths[index] = _layer_length(graph, layer, lengths, first)
        return lengths[index]
    length = sum(
        step_length(graph, source, lengths, first) * step_norm(graph, index, number)
        for number, source in enumerate(step.sources)
    )
    if len(step.sources) > 1:
        length = min(length, _joint_length(graph, index, lengths, first))
    lengths[index] = length
    return length


def _layer_length(
    graph: network.ModelGraph, layer: EffectiveLayer, lengths: Lengths, first: Lengths
) -> float:
    if layer.layer in first:
        return first[layer.layer] * column_norm(graph.steps[layer.layer], layer.weight)
    before = step_length(graph, layer.source, lengths, first)
    return before * layer_norm(graph, layer.layer, layer.weight)


def _joint_length(graph: network.ModelGraph, index: int, lengths: Lengths, first: Lengths) -> float:
    """Return how far a step of several values moves by those that they are all made of.

    Of halves of one value, which are put together again, this is what the value moves by.
    """
    bases: list[int] = []
    stack = [index]
    while stack:
        step = stack.pop()
        for source in graph.steps[step].sources:
            is_base = not graph.steps[source].sources or _is_activation(graph, source)
            if is_base or effective_layer(graph, source, ()) is not None:
                bases.append(source)
            else:
                stack.append(source)
    total = 0.0
    for base in set(bases):
        rows, columns = spread_norms(graph, index, base, bases)
        total += step_length(graph, base, lengths, first) * math.sqrt(rows * columns)
    return total


def _is_activation(graph: network.ModelGraph, index: int) -> bool:
    return index in graph.relus


def spread_norms(
    graph: network.ModelGraph, target: int, source: int, given: Sequence[int]
) -> tuple[float, float]:
    """Return the largest row and column sums of the absolute values between two steps.

    They are those of the product of the absolute values of the steps between, whose l_2 norm is at
    most the root of their product (I. Schur).

    Args:
        graph: The graph.
        target: The index of the later step.
        source: The index of the earlier step.
        given: The indices of all steps that the target's value is looked at as a function of.
    """
    if target == source:
        return 1.0, 1.0
    moves = {index: graph.like.new_zeros(graph.steps[index].shape) for index in given}
    moves[source] = torch.ones_like(moves[source]).requires_grad_()
    with torch.enable_grad():
        [rows] = graph.single_moves([target], moves)
        if not rows.requires_grad:
            return 0.0, 0.0
        (columns,) = torch.autograd.grad(rows.sum(), moves[source])
    return float(rows.detach().max()) * 1.0001, float(columns.max()) * 1.0001


def _without(lengths: Lengths, index: int) -> Container[int]:
    return [key for key in lengths if key != index]
