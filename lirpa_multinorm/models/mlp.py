"""Fully connected networks."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import nn


def mlp(
    in_shape: Sequence[int], num_classes: int, hidden: Sequence[int] = (100, 100)
) -> nn.Sequential:
    """Build linear layers with ReLU between them, on the flattened image.

    Args:
        in_shape: Shape (C, H, W) of one image.
        num_classes: Number of outputs K.
        hidden: Units of the hidden layers; empty gives a linear classifier.

    Returns:
        A network from (B, C, H, W) to (B, K).

    Example:
        >>> mlp((1, 8, 8), 10, hidden=[])
        Sequential(
          (0): Flatten(start_dim=1, end_dim=-1)
          (1): Linear(in_features=64, out_features=10, bias=True)
        )
    """
    layers: list[nn.Module] = [nn.Flatten()]
    features = math.prod(in_shape)
    for units in hidden:
        layers += [nn.Linear(features, units), nn.ReLU()]
        features = units
    return nn.Sequential(*layers, nn.Linear(features, num_classes))
