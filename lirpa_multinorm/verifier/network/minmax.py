"""Pairs of a largest and a smallest value as one step, which enlarges no l_2 distance."""

from __future__ import annotations

from collections import defaultdict
from typing import NamedTuple

import torch
from torch import Tensor

from .graph import ModelGraph, Step


class _Pair(NamedTuple):
    """The steps of ``a + ReLU(b - a)`` and ``b - ReLU(b - a)``: the maximum and the minimum.

    Args:
        first: The index of the step a.
        second: The index of the step b.
        relu: The index of the ReLU.
        largest: The index of the step that is the maximum.
        smallest: The index of the step that is the minimum.
    """

    first: int
    second: int
    relu: int
    largest: int
    smallest: int


class PairedGraph(NamedTuple):
    """A graph whose MinMax are single steps, and where the layers of the other graph are in it.

    Args:
        graph: The graph; its "minmax" steps stand in for ReLUs, in the same order.
        layers: The indices in it of the first graph's layers.
    """

    graph: ModelGraph
    layers: list[int]


def paired(graph: ModelGraph) -> PairedGraph:
    """Return a graph in which each MinMax is one step "minmax" of a step "pair".

    ``(a, b) -> (max(a, b), min(a, b))`` puts values in order, and so enlarges no l_2 distance, as a
    ReLU does not; written as affine steps around a ReLU it would seem to. A ReLU belongs to a
    MinMax if it takes ``b - a`` and is used twice: ``a + ReLU(b - a)`` and ``b - ReLU(b - a)``.

    Args:
        graph: The graph of ReLUs.

    Returns:
        The graph and its former layers; the same graph where there is no MinMax.

    Source: Anil, Lucas and Grosse 2019, "Sorting Out Lipschitz Function Approximation" (GroupSort).

    Example:
        >>> from .export import model_graph
        >>> class Sorted(torch.nn.Module):
        ...     def forward(self, x):
        ...         a, b = x.split(2, 1)
        ...         return torch.cat([torch.maximum(a, b), torch.minimum(a, b)], 1)
        >>> [step.operator for step in paired(model_graph(Sorted(), torch.zeros(1, 4))).graph.steps]
        ['input', 'split', 'split', 'sub', 'pair', 'minmax', 'index', 'index', 'cat']
    """
    pairs = {pair.relu: pair for pair in _pairs(graph)}
    if not pairs:
        return PairedGraph(graph, graph.layers)
    outputs = {index: pair for pair in pairs.values() for index in (pair.largest, pair.smallest)}
    steps: list[Step] = []
    position: dict[int, int] = {}
    for index, step in enumerate(graph.steps):
        if index in pairs:
            pair = pairs[index]
            steps.append(_pair_step(graph, pair, [position[pair.first], position[pair.second]]))
            steps.append(_minmax_step(steps[-1], len(steps) - 1))
        elif index in outputs:
            pair = outputs[index]
            steps.append(_half_step(step, position[pair.relu], index == pair.smallest))
        else:
            steps.append(step._replace(sources=tuple(position[source] for source in step.sources)))
        position[index] = len(steps) - 1
    merged = ModelGraph(steps, position[graph.output], graph.like)
    return PairedGraph(merged, [position[layer] for layer in graph.layers])


def _pairs(graph: ModelGraph) -> list[_Pair]:
    """Return the MinMax of a graph."""
    users: dict[int, list[int]] = defaultdict(list)
    for index in graph.needed([graph.output], [0]):
        for source in graph.steps[index].sources:
            users[source].append(index)
    candidates = (_pair_at(graph, relu, users[relu]) for relu in graph.relus)
    return [pair for pair in candidates if pair is not None]


def _pair_at(graph: ModelGraph, relu: int, users: list[int]) -> _Pair | None:
    """Return the MinMax that a ReLU belongs to, if there is one."""
    difference = graph.steps[graph.steps[relu].sources[0]]
    if not _is_plain(difference, "sub") or len(users) != 2:
        return None
    second, first = difference.sources
    shapes = {graph.steps[index].shape for index in (first, second, relu, *users)}
    if len(shapes) != 1 or first == second:
        return None
    for largest, smallest in (users, users[::-1]):
        above, below = graph.steps[largest], graph.steps[smallest]
        is_maximum = _is_plain(above, "add") and set(above.sources) == {first, relu}
        if is_maximum and _is_plain(below, "sub") and below.sources == (second, relu):
            return _Pair(first, second, relu, largest, smallest)
    return None


def _is_plain(step: Step, operator: str) -> bool:
    """Return whether a step adds or subtracts two values that move."""
    is_scaled = step.arguments.get("alpha", 1) != 1
    return step.operator == operator and len(step.sources) == 2 and not is_scaled


def _pair_step(graph: ModelGraph, pair: _Pair, sources: list[int]) -> Step:
    """Return the step of the two values side by side, (1, 2 n)."""
    like = graph.steps[pair.relu]

    def run(first: Tensor, second: Tensor) -> Tensor:
        return torch.cat([first.reshape(1, -1), second.reshape(1, -1)], 1)

    shape = torch.Size([1, 2 * like.shape.numel()])
    return Step("pair", like.path, tuple(sources), run, run, shape)


def _minmax_step(pair: Step, index: int) -> Step:
    """Return the step of the larger values, and behind them the smaller ones, (1, 2 n)."""

    def run(value: Tensor) -> Tensor:
        first, second = value.chunk(2, 1)
        return torch.cat([torch.maximum(first, second), torch.minimum(first, second)], 1)

    def spread(radius: Tensor) -> Tensor:
        first, second = radius.chunk(2, 1)
        return torch.maximum(first, second).repeat(1, 2)

    return Step("minmax", pair.path, (index,), run, spread, pair.shape)


def _half_step(step: Step, minmax: int, is_second: bool) -> Step:
    """Return the step of the larger or the smaller values, in their own shape."""

    def run(value: Tensor) -> Tensor:
        return value.chunk(2, 1)[is_second].reshape(step.shape)

    return Step("index", step.path, (minmax,), run, run, step.shape)
