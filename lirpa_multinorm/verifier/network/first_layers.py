"""The layers of a graph that see the input through reshapes and arithmetic on each element only."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from .affine_operators import ELEMENTWISE, RESHAPES
from .graph import ModelGraph, Step


class FirstLayer(NamedTuple):
    """A Linear or two-dimensional Conv step that sees the input through such steps only.

    Args:
        graph: The graph.
        place: Of the step.
        chain: Places of the steps between the input and it, in order.
    """

    graph: ModelGraph
    place: int
    chain: tuple

    @property
    def step(self) -> Step:
        """The step itself."""
        return self.graph.steps[self.place]

    def before(self, x: Tensor, reshapes_only: bool = False) -> Tensor:
        """Send inputs (B, ...) through the steps before the layer, or through their reshapes."""
        source, steps = self.step.sources[0], [self.graph.steps[place] for place in self.chain]

        def run(values: dict[int, Tensor]) -> list[Tensor]:
            value = values[0]
            for step in steps:
                value = (
                    value if reshapes_only and step.operator not in RESHAPES else step.run(value)
                )
            return [value]

        return self.graph.batched(run, [source], {0: x})[0]


def first_layers(graph: ModelGraph) -> dict[int, FirstLayer]:
    """Return {place: FirstLayer} of a graph."""
    found = {}
    for place, step in enumerate(graph.steps):
        if step.operator != "linear" and convolution_options(step) is None:
            continue
        chain, before = [], step.sources[0]
        while _passes_on(graph, before):
            chain.append(before)
            before = graph.steps[before].sources[0]
        if before == 0:
            found[place] = FirstLayer(graph, place, tuple(reversed(chain)))
    return found


def convolution_options(step: Step) -> dict[str, Any] | None:
    """Return stride, padding, dilation and groups of a two-dimensional convolution.

    None of another step.

    Of a padding "same" that is not the same on both sides, None as well.
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
        if any(one % 2 for one in missing):
            return None
        padding = [one // 2 for one in missing]
    pairs = {
        name: tuple(value) * (2 // len(value))
        for name, value in (("stride", stride), ("dilation", dilation), ("padding", list(padding)))
    }
    return {**pairs, "groups": given.get("groups", 1)}


def _passes_on(graph: ModelGraph, place: int) -> bool:
    """Whether a step is a reshape, or arithmetic on each element with constants, of one value."""
    step = graph.steps[place]
    if len(step.sources) != 1:
        return False
    before = graph.steps[step.sources[0]].shape
    return step.operator in RESHAPES or (step.operator in ELEMENTWISE and step.shape == before)
