"""A traced network as affine maps between its ReLUs."""

from __future__ import annotations

from typing import Dict, List, NamedTuple, Optional

import torch
from torch import Tensor

from ..errors import UnsupportedModelError
from ._load import BoundInput, HostModule
from .nodes import RESHAPES, FirstLayer, kernel_options, layer_weight

# Affine in all moving inputs together; in one of them if the others are constants; in the first only.
_JOINTLY_AFFINE = ("BoundAdd", "BoundSub", "BoundNeg", "BoundConcat")
_AFFINE_IN_ONE = ("BoundMul", "BoundMatMul")
_AFFINE_IN_FIRST = (*RESHAPES, "BoundLinear", "BoundConv", "BoundConvTranspose", "BoundBatchNormalization", "BoundDiv",
                    "BoundAveragePool", "BoundGlobalAveragePool", "BoundReduceMean", "BoundReduceSum", "BoundPad",
                    "BoundSlice", "BoundDropout", "BoundTile", "BoundExpand")
_SHORTER = ("BoundNeg", "BoundAveragePool", "BoundGlobalAveragePool", "BoundReduceMean", "BoundPad", "BoundSlice",
            "BoundDropout")
_SHAPE = "BoundShape"  # of a value, which stays the same where the value moves


def relu_graph(module: HostModule) -> tuple:
    """Return what :func:`node_values` needs to run a network from its ReLUs on.

    Args:
        module: A traced module in eval mode.

    Returns:
        (input node, ReLU nodes in the order of the graph, output node).

    Raises:
        UnsupportedModelError: Something between input, ReLUs and output is not affine; the message names it.
    """
    output, relus, roots = module[module.final_name], [], []
    moving = _moving(output)
    for node in _topological(output):
        places, name = [i for i, one in enumerate(node.inputs) if moving[one.name]], type(node).__name__
        if type(node) is BoundInput:
            roots.append(node)
        elif name == "BoundRelu" and places:
            relus.append(node)
        elif moving[node.name] and not _is_affine(node, name, places):
            raise UnsupportedModelError(f"model: {name[5:]} at {node.name} is neither affine nor a ReLU; use IBP, "
                                        "CROWN-IBP, CROWN or CROWN-Optimized")
    if len(roots) != 1:
        raise UnsupportedModelError(f"model: it has {len(roots)} inputs; one is supported here")
    return roots[0], relus, output


def node_values(nodes: List[torch.nn.Module], known: Dict[str, Tensor]) -> List[Tensor]:
    """Run a graph up to some nodes from given values of others.

    Args:
        nodes: The nodes asked for, in the order of the graph.
        known: Values by node name, the input's among them; filled in on the way.

    Returns:
        The values of the nodes.
    """
    for node in nodes:
        for one in _topological(node, known):
            if one.name not in known:
                value = one.forward(*[known[previous.name] for previous in one.inputs])
                known[one.name] = torch.tensor(value) if isinstance(value, tuple) else value  # a shape
    return [known[node.name] for node in nodes]


class AffineStep(NamedTuple):
    """What one node does to distances.

    Args:
        kind: "conv", "linear", "scale" (each channel or element by a factor), "sum" (of its moving inputs), or
            "shorter" (no distance grows: reshapes, averages, padding).
        moving: The nodes whose values it moves with.
        weight: Kernel (O, C / groups, kh, kw), matrix (out, in), or factors.
        options: Stride, dilation and groups of a convolution.
    """

    kind: str
    moving: List[torch.nn.Module]
    weight: Optional[Tensor] = None
    options: Optional[dict] = None


def affine_step(node) -> AffineStep:
    """Return what an affine node of :func:`relu_graph` does to distances.

    Raises:
        UnsupportedModelError: It is not known of this operator.
    """
    moves = _moving(node)
    name, moving = type(node).__name__, [one for one in node.inputs if moves[one.name]]
    if name in ("BoundConv", "BoundLinear", "BoundMatMul") and node.inputs[0] in moving:
        layer, weight = FirstLayer(node, (), node), _constant(node.inputs[1])
        if layer.is_conv and weight.ndim == 4:
            options = {key: value for key, value in kernel_options(layer).items() if key != "padding"}
            return AffineStep("conv", moving, weight, options)
        if not layer.is_conv and weight.ndim == 2:
            return AffineStep("linear", moving, layer_weight(layer, [weight]))
    if name == "BoundBatchNormalization":
        weight, variance = _constant(node.inputs[1]), _constant(node.inputs[4])
        return AffineStep("scale", moving, weight / torch.sqrt(variance + node.eps))
    if name in ("BoundMul", "BoundDiv"):
        factor = _constant(next(one for one in node.inputs if one not in moving))
        return AffineStep("scale", moving, factor if name == "BoundMul" else 1 / factor)
    if name in ("BoundAdd", "BoundSub", "BoundConcat"):
        return AffineStep("sum", moving)
    if name in (*RESHAPES, *_SHORTER):
        return AffineStep("shorter", moving)
    raise UnsupportedModelError(f"model: how far {name[5:]} at {node.name} carries is not known; use another method "
                                "than Lipschitz")


def _constant(node) -> Tensor:
    return node_values([node], {})[0].detach()


def _moving(last) -> Dict[str, bool]:
    """Return by name which of the nodes up to one change their values with the input's."""
    found = {}
    for node in _topological(last):
        found[node.name] = type(node) is BoundInput or (type(node).__name__ != _SHAPE and
                                                        any(found[one.name] for one in node.inputs))
    return found


def _topological(last, known: Dict[str, Tensor] = {}) -> List[torch.nn.Module]:  # noqa: B006 (never written to)
    """Return the nodes that a node depends on, itself last, without those behind known ones."""
    ordered, seen, stack = [], set(known), [(last, False)]
    while stack:
        node, entered = stack.pop()
        if entered:
            ordered.append(node)
        elif node.name not in seen:
            seen.add(node.name)
            stack.append((node, True))
            stack.extend((previous, False) for previous in reversed(node.inputs))
    return ordered


def _is_affine(node, name: str, places: list) -> bool:
    if name in _JOINTLY_AFFINE:
        return True
    if name in _AFFINE_IN_ONE:
        return len(places) == 1
    trained = name in ("BoundBatchNormalization", "BoundDropout") and node.training
    return name in _AFFINE_IN_FIRST and places == [0] and not trained
