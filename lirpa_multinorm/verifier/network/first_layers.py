"""The layers of a graph that see the input through reshapes and arithmetic on each element only."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from .graph import ModelGraph, Step
from .operators import ELEMENTWISE, RESHAPES


class FirstLayer(NamedTuple):
    """A Linear or two-dimensional Conv step that sees the input through such steps only.

    Args:
        graph: The graph.
        step_index: The index of the step.
        chain: The indices of the steps between the input and it, in order.
    """

    graph: ModelGraph
    step_index: int
    chain: tuple[int, ...]

    @property
    def step(self) -> Step:
        """The step itself."""
        return self.graph.steps[self.step_index]

    def before(self, x: Tensor, reshapes_only: bool = False) -> Tensor:
        """Send inputs (B, ...) through the steps before the layer, or through their reshapes."""
        source, steps = self.step.sources[0], [self.graph.steps[index] for index in self.chain]

        def run(values: dict[int, Tensor]) -> list[Tensor]:
            value = values[0]
            for step in steps:
                if step.operator in RESHAPES or not reshapes_only:
                    value = step.run(value)
            return [value]

        return self.graph.batched(run, [source], {0: x})[0]


def first_layers(graph: ModelGraph) -> dict[int, FirstLayer]:
    """Return the first layers of a graph by the index of their step."""
    layers = {}
    for index, step in enumerate(graph.steps):
        if step.operator != "linear" and convolution_options(step) is None:
            continue
        chain, before = [], step.sources[0]
        while _passes_on(graph, before):
            chain.append(before)
            before = graph.steps[before].sources[0]
        if before == 0:
            layers[index] = FirstLayer(graph, index, tuple(reversed(chain)))
    return layers


def convolution_options(step: Step) -> dict[str, Any] | None:
    """Return stride, padding, dilation and groups of a two-dimensional convolution.

    The result is None for another step, and for a padding that is not the same on both sides.
    """
    if step.operator != "conv2d":
        return None
    given, kernel = step.arguments, step.arguments["weight"].shape[2:]
    stride, dilation = (list(given.get(name, [1, 1])) for name in ("stride", "dilation"))
    padding = given.get("padding", [0, 0])
    if isinstance(padding, str):
        missing = [
            steps * (side - 1) if padding == "same" else 0 for side, steps in zip(kernel, dilation)
        ]
        if any(total % 2 for total in missing):
            return None
        padding = [total // 2 for total in missing]
    pairs = {
        name: tuple(value) * (2 // len(value))
        for name, value in (("stride", stride), ("dilation", dilation), ("padding", list(padding)))
    }
    return {**pairs, "groups": given.get("groups", 1)}


def _passes_on(graph: ModelGraph, index: int) -> bool:
    """Whether a step is a reshape, or arithmetic on each element with constants, of one value."""
    step = graph.steps[index]
    if len(step.sources) != 1:
        return False
    before = graph.steps[step.sources[0]].shape
    return step.operator in RESHAPES or (step.operator in ELEMENTWISE and step.shape == before)
