"""Cuts of a traced graph: nodes that every path passes, and the nodes behind them."""

from __future__ import annotations

from torch import Tensor

from ._load import BoundActivation, HostModule
from .nodes import Node, perturbed_inputs

_PRODUCTS = ("BoundLinear", "BoundMatMul", "BoundMul", "BoundDiv")


def latent_nodes(module: HostModule) -> list[tuple[Node, int]]:
    """Return the nodes at which a graph can be cut in two, with their numbers of activations.

    Every path from the input to the output passes such a node, with an activation before it and
    another behind it. The number is that of the activations behind the node; of nodes with the same
    number only the first counts, right behind an activation. The nodes are in order from the input
    to the output.
    """
    output = module[module.final_name]
    order = _dependent(output)
    activations = {node for node in order if _is_nonlinear(node)}
    passed: dict[Node, set] = {}  # the nodes on all paths from the input to a node
    before: dict[Node, set] = {}  # the nodes on any path
    for node in order:
        previous = [node.inputs[index] for index in perturbed_inputs(node)]
        on_all_paths = set.intersection(*[passed[inner] for inner in previous]) if previous else ()
        passed[node] = {node}.union(on_all_paths)
        before[node] = {node}.union(*[before[inner] for inner in previous])
    cuts: dict[int, Node] = {}
    for node in [node for node in order if node in passed[output]]:
        behind = len(activations - before[node])
        if 0 < behind < len(activations):
            cuts.setdefault(behind, node)
    return [(node, behind) for behind, node in sorted(cuts.items(), key=lambda pair: -pair[0])]


def nodes_behind(module: HostModule, node) -> list:
    """Return a node and all nodes that depend on it, ordered so that inputs come first."""
    return _dependent(module[module.final_name], node)


def run_behind(module: HostModule, nodes: list, value: Tensor) -> Tensor:
    """Return the graph's output for any N values (N, ...) of the first of :func:`nodes_behind`."""
    values = {nodes[0]: value}
    for node in nodes[1:]:
        arguments = [
            values[previous] if previous in values else module.get_forward_value(previous)
            for previous in node.inputs
        ]
        values[node] = node.forward(*arguments)
    return values[nodes[-1]]


def node_interval(node) -> tuple[Tensor, Tensor]:
    """Return (lower, upper) of a node from the last interval pass."""
    return node.interval[:2]


def _is_nonlinear(node) -> bool:
    """Whether a node is not affine in the input; the newer host calls products activations."""
    if type(node).__name__ in _PRODUCTS:
        return len(perturbed_inputs(node)) > 1
    return isinstance(node, BoundActivation)


def _dependent(output: Node, start: Node | None = None) -> list[Node]:
    """Return the nodes that depend on the input, or on ``start``, with their inputs first."""
    order: list[Node] = []
    visited: set[Node] = set()

    def visit(node: Node) -> None:
        """Add a node behind its inputs."""
        if node in visited:
            return
        visited.add(node)
        for index in [] if node is start else perturbed_inputs(node):
            visit(node.inputs[index])
        order.append(node)

    visit(output)
    return order
