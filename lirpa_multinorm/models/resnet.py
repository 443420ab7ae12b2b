"""Small residual networks of the verification literature, with BatchNorm."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from ..errors import InvalidArgumentError

Shape = Sequence[int]


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with BatchNorm, added to their input, then ReLU.

    Args:
        in_channels: Channels of the input.
        channels: Channels of the output.
        stride: Of the first convolution; where it or the channels change the shape, the input
            is added through a 1x1 convolution with BatchNorm.
    """

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv(in_channels, channels, 3, stride), nn.BatchNorm2d(channels)
        self.relu1 = nn.ReLU()
        self.conv2, self.bn2 = _conv(channels, channels, 3, 1), nn.BatchNorm2d(channels)
        self.shortcut = nn.Sequential()  # the identity
        if stride != 1 or in_channels != channels:
            self.shortcut = nn.Sequential(
                _conv(in_channels, channels, 1, stride), nn.BatchNorm2d(channels)
            )
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, channels, H / stride, W / stride), rounded up."""
        inner = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        return self.relu2(inner + self.shortcut(x))


def resnet2b(in_shape: Shape, num_classes: int, width: int = 8, hidden: int = 100) -> nn.Sequential:
    """Build a strided convolution, two residual blocks and a hidden linear layer.

    Args:
        in_shape: Shape (C, H, W) of one image, at least 4x4.
        num_classes: Number of outputs K.
        width: Channels of the first convolution; the blocks have twice as many.
        hidden: Units of the hidden linear layer.

    Returns:
        A network from (B, C, H, W) to (B, K).

    Raises:
        InvalidArgumentError: If the image is too small for the strides.

    Source: "ResNet-2B" of Wang et al., "Beta-CROWN", NeurIPS 2021, in the variant with BatchNorm of
        the verifier's released models (no biases in convolutions).

    Example:
        >>> import torch
        >>> resnet2b((3, 32, 32), 10)(torch.rand(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """
    return _resnet(in_shape, num_classes, width, [2, 1], hidden)


def resnet4b(
    in_shape: Shape, num_classes: int, width: int = 16, hidden: int = 100
) -> nn.Sequential:
    """Build a strided convolution, four residual blocks and a hidden linear layer.

    Args:
        in_shape: Shape (C, H, W) of one image, at least 8x8.
        num_classes: Number of outputs K.
        width: Channels of the first convolution; the blocks have twice as many.
        hidden: Units of the hidden linear layer.

    Returns:
        A network from (B, C, H, W) to (B, K).

    Raises:
        InvalidArgumentError: If the image is too small for the strides.

    Source: "ResNet-4B", as for :func:`resnet2b`.
    """
    return _resnet(in_shape, num_classes, width, [2, 1, 2, 1], hidden)


def _resnet(
    in_shape: Shape, num_classes: int, width: int, strides: Sequence[int], hidden: int
) -> nn.Sequential:
    """Build the first convolution, a block per stride, and two linear layers."""
    channels, *sizes = in_shape
    _check_size(sizes, strides)
    layers: list[nn.Module] = [_conv(channels, width, 3, 2), nn.BatchNorm2d(width), nn.ReLU()]
    channels = width
    for stride in strides:
        layers.append(BasicBlock(channels, 2 * width, stride))
        channels = 2 * width
    features = channels
    for size in sizes:
        for stride in (2, *strides):
            size = -(-size // stride)  # with padding, an odd size is rounded up
        features *= size
    return nn.Sequential(
        *layers,
        nn.Flatten(),
        nn.Linear(features, hidden),
        nn.ReLU(),
        nn.Linear(hidden, num_classes),
    )


def _conv(in_channels: int, channels: int, kernel: int, stride: int) -> nn.Conv2d:
    """Build a convolution that only its stride shrinks; the BatchNorm after it has the bias."""
    return nn.Conv2d(in_channels, channels, kernel, stride, padding=kernel // 2, bias=False)


def _check_size(sizes: Sequence[int], strides: Sequence[int]) -> None:
    """Refuse images that shrink to one pixel before the last stride, which sees only padding."""
    least = 2 ** sum(stride == 2 for stride in (2, *strides))
    if min(sizes) < least:
        raise InvalidArgumentError(
            f"in_shape: images of {sizes[0]}x{sizes[1]} vanish in this network's strides. "
            f"It needs at least {least}x{least}; use the model 'mlp' for smaller inputs."
        )
