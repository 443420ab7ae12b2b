"""A traced graph cut in two: a node that every path passes, and what stands behind it."""

from __future__ import annotations

from torch import Tensor

from ._load import BoundActivation, HostModule
from .nodes import perturbed_inputs

_PRODUCTS = ("BoundLinear", "BoundMatMul", "BoundMul", "BoundDiv")


def latent_nodes(module: HostModule) -> list[tuple[object, int]]:
    """Return (node, number of activations behind it) where a graph can be cut in two.

    They come in order from the input to the output.

    Every path from the input to the output passes such a node, and an activation stands in front of
    it and another one behind it. Of nodes with as many activations behind them there is only the
    first one: right behind an activation.
    """
    output = module[module.final_name]
    order = _moving(output)
    every, passed = {node for node in order if _bends(node)}, {}
    before: dict[object, set] = {}
    for node in order:
        previous = [node.inputs[place] for place in perturbed_inputs(node)]
        passed[node] = {node}.union(
            set.intersection(*[passed[one] for one in previous]) if previous else ()
        )
        before[node] = {node}.union(*[before[one] for one in previous])
    found = {}
    for node in [node for node in order if node in passed[output]]:
        behind = len(every - before[node])
        if 0 < behind < len(every):
            found.setdefault(behind, node)
    return [(node, behind) for behind, node in sorted(found.items(), key=lambda pair: -pair[0])]


def nodes_behind(module: HostModule, node) -> list:
    """Return a node and all the output needs behind it, ordered so that inputs come first."""
    return _moving(module[module.final_name], node)


def run_behind(module: HostModule, nodes: list, value: Tensor) -> Tensor:
    """Return the graph's output for any N values (N, ...) of the first of :func:`nodes_behind`."""
    values = {nodes[0]: value}
    for node in nodes[1:]:
        values[node] = node.forward(
            *[
                values[one] if one in values else module.get_forward_value(one)
                for one in node.inputs
            ]
        )
    return values[nodes[-1]]


def node_interval(node) -> tuple[Tensor, Tensor]:
    """Return (lower, upper) of a node from the last interval pass."""
    return node.interval[:2]


def _bends(node) -> bool:
    """Whether a node is not affine in the input; the new host calls every product an activation."""
    if type(node).__name__ in _PRODUCTS:
        return len(perturbed_inputs(node)) > 1
    return isinstance(node, BoundActivation)


def _moving(output, start=None) -> list:
    """Return the nodes that depend on the input, or on ``start``, with their inputs first."""
    order, seen = [], set()

    def visit(node) -> None:
        """Note a node behind its inputs."""
        if node in seen:
            return
        seen.add(node)
        for place in [] if node is start else perturbed_inputs(node):
            visit(node.inputs[place])
        order.append(node)

    visit(output)
    return order
