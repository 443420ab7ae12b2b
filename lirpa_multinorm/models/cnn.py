"""Convolutional networks of the certified-training literature, as flat ``nn.Sequential``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import nn

from ..errors import InvalidArgumentError

Shape = Sequence[int]


class Conv(NamedTuple):
    """A convolution with padding 1."""

    channels: int
    stride: int
    kernel: int = 3


def cnn_small(
    in_shape: Shape, num_classes: int, width: int = 16, batch_norm: bool = False
) -> nn.Sequential:
    """Build two strided convolutions and a hidden linear layer ("CNN-A").

    Args:
        in_shape: Shape (C, H, W) of one image, at least 4x4.
        num_classes: Number of outputs K.
        width: Channels of the first convolution; the second has twice as many.
        batch_norm: Whether BatchNorm stands behind each layer but the last.

    Returns:
        A network from (B, C, H, W) to (B, K).

    Raises:
        InvalidArgumentError: If the image is too small for the strides.

    Example:
        >>> sum(p.numel() for p in cnn_small((1, 28, 28), 10).parameters())
        166406
    """
    convs = [Conv(width, 2, kernel=4), Conv(2 * width, 2, kernel=4)]
    return _cnn(in_shape, num_classes, convs, hidden=100, batch_norm=batch_norm)


def cnn3(in_shape: Shape, num_classes: int, width: int = 64) -> nn.Sequential:
    """Build two strided convolutions with BatchNorm, then the output layer.

    Args:
        in_shape: Shape (C, H, W) of one image.
        num_classes: Number of outputs K.
        width: Channels of the first convolution; the second has twice as many.

    Returns:
        A network from (B, C, H, W) to (B, K).
    """
    return _cnn(in_shape, num_classes, [Conv(width, 2), Conv(2 * width, 2)], hidden=0)


def cnn5(in_shape: Shape, num_classes: int, width: int = 64, hidden: int = 512) -> nn.Sequential:
    """Build three convolutions (strides 1, 2, 2) and a hidden linear layer, all with BatchNorm.

    Args:
        in_shape: Shape (C, H, W) of one image.
        num_classes: Number of outputs K.
        width: Channels of the first convolution; the others have twice as many.
        hidden: Units of the hidden linear layer.

    Returns:
        A network from (B, C, H, W) to (B, K).
    """
    convs = [Conv(width, 1), Conv(2 * width, 2), Conv(2 * width, 2)]
    return _cnn(in_shape, num_classes, convs, hidden)


def cnn7(in_shape: Shape, num_classes: int, width: int = 64, hidden: int = 512) -> nn.Sequential:
    """Build SABR's CNN7: five convolutions and a hidden linear layer, all with BatchNorm.

    The only stride of 2 is the third convolution's. Mueller et al., "Certified Training: Small
    Boxes are All You Need", ICLR 2023.

    Args:
        in_shape: Shape (C, H, W) of one image.
        num_classes: Number of outputs K.
        width: Channels of the first two convolutions; the others have twice as many.
        hidden: Units of the hidden linear layer.

    Returns:
        A network from (B, C, H, W) to (B, K).

    Example:
        >>> import torch
        >>> cnn7((3, 32, 32), 10, width=4)(torch.rand(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """
    convs = [
        Conv(width, 1),
        Conv(width, 1),
        Conv(2 * width, 2),
        Conv(2 * width, 1),
        Conv(2 * width, 1),
    ]
    return _cnn(in_shape, num_classes, convs, hidden)


def _cnn(
    in_shape: Shape, num_classes: int, convs: Sequence[Conv], hidden: int, batch_norm: bool = True
) -> nn.Sequential:
    """Build convolutions, a hidden linear layer unless ``hidden`` is 0, and the output layer."""
    _check_size(in_shape, convs)
    channels, height, width = in_shape
    layers: list[nn.Module] = []
    for conv in convs:
        layers.append(nn.Conv2d(channels, conv.channels, conv.kernel, conv.stride, padding=1))
        if batch_norm:
            layers.append(nn.BatchNorm2d(conv.channels))
        layers.append(nn.ReLU())
        channels = conv.channels
    layers.append(nn.Flatten())
    features = channels * _size_after(height, convs) * _size_after(width, convs)
    if hidden:
        layers.append(nn.Linear(features, hidden))
        if batch_norm:
            layers.append(nn.BatchNorm1d(hidden))
        layers.append(nn.ReLU())
        features = hidden
    return nn.Sequential(*layers, nn.Linear(features, num_classes))


def _size_after(size: int, convs: Sequence[Conv]) -> int:
    """Return how many pixels of a side of ``size`` remain; 0 where a convolution does not fit."""
    for conv in convs:
        size = max(0, (size + 2 - conv.kernel) // conv.stride + 1) if size else 0
    return size


def _check_size(in_shape: Shape, convs: Sequence[Conv]) -> None:
    """Raise InvalidArgumentError for images that vanish in the strides."""
    least = next(size for size in range(1, 1000) if _size_after(size, convs))
    if min(in_shape[1:]) < least:
        raise InvalidArgumentError(
            f"in_shape: images of {in_shape[1]}x{in_shape[2]} vanish in this network's strides. "
            f"It needs at least {least}x{least}; use the model 'mlp' for smaller inputs."
        )
