"""A first convolution whose gradient at the input is fast on a CPU."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_MOST_CHANNELS = 4  # up to which a product and a fold are faster than the library's backward pass


class FirstConv2d(nn.Module):
    """A Conv2d with fixed weights; only the gradient at its input is computed.

    Args:
        conv: The convolution; see :func:`gains`.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the convolution's output."""
        return _Convolution.apply(inputs, self.conv)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx, inputs: Tensor, conv: nn.Conv2d) -> Tensor:
        """Return the convolution's output (torch's protocol)."""
        ctx.conv, ctx.size, ctx.dtype = conv, inputs.shape[2:], inputs.dtype
        return conv(inputs)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple:
        """Return the gradient at the inputs: the kernel's columns, folded back into an image."""
        conv = ctx.conv
        positions = gradient.flatten(2)  # a view of either layout
        columns = conv.weight.flatten(1).to(gradient.dtype).t() @ positions
        options = {name: getattr(conv, name) for name in ("dilation", "padding", "stride")}
        return F.fold(columns.to(ctx.dtype), ctx.size, conv.kernel_size, **options), None


def gains(layer: nn.Module) -> bool:
    """Whether a layer is a convolution for which :class:`FirstConv2d` is exact and quicker."""
    return (
        isinstance(layer, nn.Conv2d)
        and layer.in_channels <= _MOST_CHANNELS
        and layer.groups == 1
        and layer.padding_mode == "zeros"
        and not isinstance(layer.padding, str)
        and layer.weight.device.type == "cpu"
    )
