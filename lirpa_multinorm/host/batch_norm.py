"""BatchNorm nodes in training: they normalise by the statistics of the model's last clean pass."""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn

from ._load import HostModule

#: Mean and biased variance per channel of each call of a layer in one forward pass, in the order of
#: the calls.
Statistics = dict[nn.Module, list[tuple[Tensor, Tensor]]]


def hold_batch_statistics(module: HostModule) -> None:
    """Let BatchNorm nodes in training use statistics that are set, without running statistics.

    The host's nodes take statistics from any batch that passes through the graph, and update those
    of the model with a rounded momentum.
    """
    for node in module._modules.values():
        if _is_batch_norm(node):
            node.forward = functools.partial(_forward, node)


def set_batch_statistics(pairs: list, statistics: Statistics) -> None:
    """Give BatchNorm nodes the statistics of a clean pass.

    Args:
        pairs: (node, layer) of :func:`mode_owners`.
        statistics: Those of the layers in training.
    """
    used: dict[nn.Module, int] = {}
    for node, layer in pairs:
        call = used.get(layer, 0)
        if _is_batch_norm(node) and call < len(statistics.get(layer, [])):
            node.current_mean, node.current_var = statistics[layer][call]
            used[layer] = call + 1


def _is_batch_norm(node) -> bool:
    return type(node).__name__ == "BoundBatchNormalization"


def _forward(
    node, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor
) -> Tensor:
    if not node.training:
        return type(node).forward(node, x, weight, bias, mean, variance)
    node.patches_start = node.patches_start and x.ndim != 2
    shape, scale = (1, -1) + (1,) * (x.ndim - 2), weight / torch.sqrt(node.current_var + node.eps)
    return (x - node.current_mean.view(shape)) * scale.view(shape) + bias.view(shape)
