"""LiResNet: convolutional networks with a small l_2 Lipschitz constant."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..errors import InvalidArgumentError

Shape = Sequence[int]
_MOMENTUM = 0.1  # of the running means


class MinMax(nn.Module):
    """Put the two halves of the channels in order: first the larger values, then the smaller ones.

    No l_2 distance changes but where the order does, and none grows. It is written with a ReLU,
    ``a + ReLU(b - a)`` and ``b - ReLU(b - a)``, which every method bounds.

    Args:
        channels: Channels or features of the input, an even number.

    Raises:
        InvalidArgumentError: The number is odd.

    Source: Anil, Lucas and Grosse 2019, "Sorting Out Lipschitz Function Approximation".

    Example:
        >>> MinMax(4)(torch.tensor([[1., 5., 2., 3.]]))
        tensor([[2., 5., 1., 3.]])
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        if channels % 2:
            raise InvalidArgumentError(
                f"channels={channels}: MinMax compares two halves. Pass an even number."
            )
        self.channels = channels

    def forward(self, x: Tensor) -> Tensor:
        """Order values (B, channels, ...)."""
        first, second = torch.split(x, self.channels // 2, dim=1)
        excess = torch.relu(second - first)
        return torch.cat([first + excess, second - excess], 1)

    def extra_repr(self) -> str:
        """Return the channels, which ``print(model)`` shows."""
        return str(self.channels)


class Centering(nn.Module):
    """Subtract the mean of each channel: of the batch in training, else the running mean.

    Args:
        channels: Channels of the input.
    """

    running_mean: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Center images (B, channels, H, W)."""
        if not self.training:
            return x - self.running_mean
        mean = x.mean((0, 2, 3)).view_as(self.running_mean)
        with torch.no_grad():
            self.running_mean.lerp_(mean, _MOMENTUM)
        return x - mean


class LinearResidualConv(nn.Module):
    """Compute ``x + s g conv(x)``, centered, and a bias: one linear map without an activation.

    ``s`` is the root of ``1 / depth``, and ``g`` a learnable factor of each channel. Its Lipschitz
    constant is the norm of the sum, not the sum of the norms.

    Args:
        channels: Channels of input and output.
        depth: How many such blocks the network has.
        centering: Whether the mean of the convolution is subtracted.

    Source: Hu et al. 2023, "Unlocking Deterministic Robustness Certification on ImageNet", section
        4.1; centering and factors as in its released code.
    """

    def __init__(self, channels: int, depth: int, centering: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        nn.init.normal_(self.conv.weight, std=1 / (9 * channels))
        #: s g: a channel's share of the convolution.
        self.share = nn.Parameter(torch.full((channels, 1, 1), depth**-0.5))
        self.centering = Centering(channels) if centering else nn.Identity()
        self.bias = nn.Parameter(torch.zeros(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, channels, H, W) to the same shape."""
        return x + self.centering(self.conv(x) * self.share) + self.bias


class UnitRows(nn.Linear):
    """A last layer whose rows have l_2 norm 1 (last-layer normalisation).

    In training every forward pass first scales rows that have left the sphere back to it, so that
    the layer is an ordinary Linear layer for everything that reads it.

    Source: Singla, Singla and Feizi 2022, "Improved Deterministic l2 Robustness on CIFAR-10 and
        CIFAR-100", section 5; Hu et al. 2023.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_features) to (B, out_features)."""
        if self.training:
            self.normalise_()
        return super().forward(x)

    @torch.no_grad()
    def normalise_(self) -> None:
        """Scale the rows to norm 1, unless they have it."""
        norms = torch.linalg.vector_norm(self.weight, dim=1, keepdim=True)
        if bool(((norms - 1).abs() > 1e-5).any()):
            self.weight.div_(norms.clamp(min=1e-12))


def liresnet(
    in_shape: Shape,
    num_classes: int,
    width: int = 32,
    depth: int = 4,
    stem: int = 5,
    stride: int = 2,
    neck: int = 4,
    hidden: Sequence[int] = (256,),
    gain: int = 1,
) -> nn.Sequential:
    """Build LiResNet: a strided stem, linear residual blocks, a strided neck and dense layers.

    Behind each layer but the last stands :class:`MinMax`. All layers but the blocks start
    orthogonal.

    Args:
        in_shape: Shape (C, H, W) of one image, H = W.
        num_classes: Number of outputs K.
        width: Channels of the stem and of the blocks; the neck has twice as many.
        depth: Number of linear residual blocks.
        stem: Side of the stem's square kernel.
        stride: Stride of the stem.
        neck: Side and stride of the neck's kernel.
        hidden: Features of the dense layers in front of the last one.
        gain: Factor on the stem's first weight, and so about the Lipschitz constant that training
            starts from: cross-entropy wants logits that differ by much more than distances do.

    Returns:
        A network from (B, C, H, W) to (B, K).

    Raises:
        InvalidArgumentError: The image is not square, or too small for stem and neck; or a width
            is odd.

    Source: Hu et al. 2023, "Unlocking Deterministic Robustness Certification on ImageNet"; for
        CIFAR-10 width 256, depth 18, ``hidden=[512]``.

    Example:
        >>> liresnet((3, 32, 32), 10, width=4, depth=2)(torch.rand(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """
    side = _side_behind_neck(in_shape, stem, stride, neck)
    layers: list[nn.Module] = [
        _orthogonal(nn.Conv2d(in_shape[0], width, stem, stride, padding=stem // 2)),
        MinMax(width),
    ]
    for _ in range(depth):
        layers += [LinearResidualConv(width, depth), MinMax(width)]
    with torch.no_grad():
        layers[0].weight.mul_(gain)  # type: ignore[operator]
    layers += [_orthogonal(nn.Conv2d(width, 2 * width, neck, neck)), MinMax(2 * width)]
    layers.append(nn.Flatten())
    features = 2 * width * side**2
    for units in hidden:
        layers += [_orthogonal(nn.Linear(features, units)), MinMax(units)]
        features = units
    last = UnitRows(features, num_classes)
    nn.init.orthogonal_(last.weight)
    last.normalise_()
    return nn.Sequential(*layers, last)


def _orthogonal(layer: nn.Conv2d | nn.Linear) -> nn.Conv2d | nn.Linear:
    """Draw a layer's weight with orthogonal rows or columns; the bias becomes zero.

    Of a convolution the kernel is divided by how many windows see a pixel, so that its norm is
    about 1.
    """
    nn.init.orthogonal_(layer.weight)
    if isinstance(layer, nn.Conv2d):
        windows = math.prod(-(-k // s) for k, s in zip(layer.kernel_size, layer.stride))
        with torch.no_grad():
            layer.weight.div_(math.sqrt(windows))
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer


def _side_behind_neck(in_shape: Shape, stem: int, stride: int, neck: int) -> int:
    """Return the side of the image behind the neck.

    Raises:
        InvalidArgumentError: The image is not square, or nothing is left of it.
    """
    _, height, width = in_shape
    if height != width:
        raise InvalidArgumentError(
            f"in_shape: images of {height}x{width} are not square, as stem and neck take them. "
            "Pad or crop them to a square."
        )
    side = (height + 2 * (stem // 2) - stem) // stride + 1
    if side < neck:
        raise InvalidArgumentError(
            f"in_shape: images of {height}x{width} vanish in this network's strides. It needs "
            f"{(neck - 1) * stride + stem - 2 * (stem // 2)} pixels a side at least; use a smaller "
            "neck or stride, or the model 'mlp'."
        )
    return side // neck
