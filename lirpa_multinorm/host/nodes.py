"""Nodes of a traced graph: their dependence on the input, and the layers next to it."""

from __future__ import annotations

import inspect
from typing import Any, NamedTuple

from torch import Tensor

from ._load import BoundConv, BoundInput, BoundLinear, BoundMatMul, HostModule

#: A node of the host's graph; the host has no types.
Node = Any
#: Operators that act on each element alone, and those that only move elements.
ELEMENTWISE = ("BoundAdd", "BoundSub", "BoundMul", "BoundDiv", "BoundNeg")
RESHAPES = (
    "BoundReshape",
    "BoundFlatten",
    "BoundUnsqueeze",
    "BoundSqueeze",
    "BoundTranspose",
    "BoundIdentity",
)


class FirstLayer(NamedTuple):
    """A Linear or Conv node with only element-wise affine and reshaping nodes before it."""

    node: Node
    chain: tuple[Node, ...]  # the nodes between the input and ``node``, in order
    root: Node  # the input node

    @property
    def is_conv(self) -> bool:
        """Whether the layer is a convolution."""
        return isinstance(self.node, BoundConv)


def sees_input(node) -> bool:
    """Whether a node depends on the network's input.

    The old host's ``from_input`` is True for buffers as well.
    """
    return type(node) is BoundInput or (
        node.from_input and any(sees_input(previous) for previous in node.inputs)
    )


def perturbed_inputs(node) -> list[int]:
    """Return the indices of a node's inputs that depend on the network's input."""
    return [i for i, previous in enumerate(node.inputs) if sees_input(previous)]


def _is_chain_node(node) -> bool:
    name = type(node).__name__
    if name == "BoundBatchNormalization":
        return not node.training and perturbed_inputs(node) == [0]
    if name == "BoundDiv":
        return perturbed_inputs(node) == [0]
    return (name in ELEMENTWISE and len(perturbed_inputs(node)) == 1) or (
        name in RESHAPES and perturbed_inputs(node)[:1] == [0]
    )


def has_perturbed_weights(module: HostModule) -> bool:
    """Return whether a parameter of a traced module is perturbed (a ``BoundedParameter``)."""
    return any(
        getattr(parameter, "ptb", None) is not None
        for node in module._modules.values()
        for parameter in node._parameters.values()
    )


def first_layers(module: HostModule) -> dict[str, FirstLayer]:
    """Return the first layers of a traced module by node name; none where weights are perturbed."""
    layers: dict[str, FirstLayer] = {}
    if has_perturbed_weights(module):
        return layers
    for node in module._modules.values():
        if type(node) not in (BoundLinear, BoundMatMul, BoundConv) or perturbed_inputs(node) != [0]:
            continue
        if type(node) is BoundConv and node.inputs[1].forward().ndim != 4:
            continue
        chain, previous = [], node.inputs[0]
        while _is_chain_node(previous):
            chain.append(previous)
            previous = previous.inputs[perturbed_inputs(previous)[0]]
        if type(previous) is BoundInput:
            layers[node.name] = FirstLayer(node, tuple(reversed(chain)), previous)
    return layers


def run_chain(
    module: HostModule, layer: FirstLayer, value: Tensor, reshapes_only: bool = False
) -> Tensor:
    """Send a tensor of the input's shape through the nodes before a first layer.

    Args:
        module: The traced module the layer belongs to.
        layer: One of :func:`first_layers`.
        value: Tensor of the input's shape for all of the stacked batch, whose size a reshape may
            hold.
        reshapes_only: If True the tensor is carried to the layer's input coordinates, unscaled and
            unshifted.

    Returns:
        The tensor in the layer's input coordinates.
    """
    for node in layer.chain:
        if reshapes_only and type(node).__name__ not in RESHAPES:
            continue
        moving = perturbed_inputs(node)[0]
        arguments = [
            value if i == moving else module.get_forward_value(previous)
            for i, previous in enumerate(node.inputs)
        ]
        value = node.forward(*arguments)
    return value


def chain_kinds(layer: FirstLayer) -> tuple:
    """Return (has reshapes, has element-wise arithmetic) of the nodes before a first layer."""
    reshapes = [type(node).__name__ in RESHAPES for node in layer.chain]
    return any(reshapes), not all(reshapes)


def layer_constants(module: HostModule, layer: FirstLayer) -> list:
    """Return the values of a first layer's weight and bias nodes, as its ``forward`` takes them."""
    return [module.get_forward_value(node) for node in layer.node.inputs[1:]]


def layer_weight(layer: FirstLayer, constants: list) -> Tensor:
    """Return a Conv's kernel, or a Linear's weight as (out, in), from :func:`layer_constants`."""
    if layer.is_conv:
        return constants[0]
    return _linear_weight(layer.node, constants[0])


def _linear_weight(node, value: Tensor) -> Tensor:
    if type(node) is BoundMatMul:  # a Linear without bias, with a transposed weight
        return value.transpose(-2, -1)
    return node._preprocess(None, value)[1]


def kernel_options(layer: FirstLayer) -> dict:
    """Return stride, padding, dilation and groups of a Conv."""
    node = layer.node
    return {
        "stride": node.stride,
        "padding": node.padding,
        "dilation": node.dilation,
        "groups": node.groups,
    }


def propagate_box(layer: FirstLayer, box: tuple, constants: list, C: Tensor | None) -> tuple:
    """Return the interval of a first layer's output for a box in the layer's input coordinates."""
    if C is not None:
        return _merged_interval(layer.node, box, constants, C)
    return layer.node.interval_propagate(box, *[(value, value) for value in constants])


def refuses_specification(node) -> bool:
    """Whether the host would merge C into a last layer that cannot take it (MatMul, old host)."""
    return (
        type(node) is BoundMatMul
        and not node.inputs[1].perturbed
        and "C" not in inspect.signature(node.interval_propagate).parameters
    )


def merge_specification(module: HostModule, node, C: Tensor) -> tuple:
    """Bound C times the output of a last MatMul by its input's interval."""
    constants = [module.get_forward_value(node.inputs[1])]
    return _merged_interval(node, node.inputs[0].interval, constants, C)


def _merged_interval(node, box: tuple, constants: list, C: Tensor) -> tuple:
    weight = C.matmul(_linear_weight(node, constants[0]))
    middle, radius = ((box[1] + box[0]) / 2).unsqueeze(-1), ((box[1] - box[0]) / 2).unsqueeze(-1)
    center = weight.matmul(middle).squeeze(-1)
    if len(constants) > 1:
        center = center + C.matmul(node._preprocess(None, constants[0], constants[1])[2])
    deviation = weight.abs().matmul(radius).squeeze(-1)
    return center - deviation, center + deviation
