"""Initial weights that keep interval bounds from growing with depth."""

from __future__ import annotations

import math

import torch
from torch import nn

_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@torch.no_grad()
def shi_init_(model: nn.Module) -> nn.Module:
    """Draw weights of all Conv and Linear layers but the last Linear from N(0, 2 pi / fan_in^2).

    An interval's width then stays the same in expectation from one ReLU layer to the next, where
    the usual initialisation multiplies it with every layer. Biases and BatchNorm stay as they are.

    Args:
        model: The network; changed in place. The draws come from torch's own generator.

    Returns:
        The same network.

    Source: Shi et al., "Fast Certified Robust Training with Short Warmup", NeurIPS 2021, section
        4.1; the last layer is left out as in the released code.

    Example:
        >>> model = nn.Sequential(nn.Linear(1000, 1000), nn.ReLU(), nn.Linear(1000, 2))
        >>> layer = shi_init_(model)[0]
        >>> round(layer.weight.std().item() * 1000 / math.sqrt(2 * math.pi), 2)
        1.0
    """
    layers = [layer for layer in model.modules() if isinstance(layer, _LAYERS)]
    last = next((layer for layer in reversed(layers) if isinstance(layer, nn.Linear)), None)
    for layer in layers:
        if layer is not last:
            fan_in = layer.weight[0].numel()  # of a single output, so that groups are counted right
            layer.weight.normal_(0, math.sqrt(2 * math.pi) / fan_in)
    return model
