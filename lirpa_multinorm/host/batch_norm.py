"""BatchNorm nodes: statistics of the whole batch, kept over a new trace."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from .. import distributed
from ._load import HostModule


def synchronise_batch_norms(module: HostModule) -> None:
    """Let BatchNorm nodes see the whole batch where a run has several processes."""
    for node in module._modules.values():
        if type(node).__name__ == "BoundBatchNormalization":
            node.forward = functools.partial(_batch_norm, node)


def _batch_norm(node, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    if not (node.training and distributed.is_active()):
        return type(node).forward(node, x, weight, bias, mean, variance)
    axes, shape = [axis for axis in range(x.ndim) if axis != 1], (1, -1) + (1,) * (x.ndim - 2)
    count = distributed.all_sum(torch.tensor(float(x.numel() // x.shape[1]), dtype=x.dtype, device=x.device))
    node.patches_start = node.patches_start and x.ndim != 2
    node.current_mean = distributed.all_sum(x.sum(axes)) / count
    centered = x - node.current_mean.view(shape)
    node.current_var = distributed.all_sum((centered ** 2).sum(axes)) / count
    with torch.no_grad():
        mean.lerp_(node.current_mean, node.momentum)
        variance.lerp_(node.current_var * count / (count - 1), node.momentum)
    scale = weight / torch.sqrt(node.current_var + node.eps)
    return centered * scale.view(shape) + bias.view(shape)


def batch_statistics(module: HostModule) -> dict:
    """Return the BatchNorm statistics of the last forward pass by node name, as :func:`set_batch_statistics` takes."""
    return {node.name: (node.current_mean, node.current_var) for node in module._modules.values()
            if hasattr(node, "current_mean")}


def set_batch_statistics(module: HostModule, statistics: dict) -> None:
    """Carry BatchNorm statistics over to a module traced anew."""
    for name, (mean, variance) in statistics.items():
        if name in module._modules:
            module._modules[name].current_mean, module._modules[name].current_var = mean, variance
