"""A Flatten whose backward pass keeps the layout that convolutions are fast in."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class LayoutFlatten(nn.Flatten):
    """A Flatten of all but the first axis, with a channels-last gradient at channels-last images.

    Otherwise a Linear layer's gradient comes back in the usual layout, in which the ReLU and the
    convolution in front of it, whose own values are channels-last, take twice as long.
    """

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the inputs as rows (B, n)."""
        if inputs.ndim != 4 or not inputs.is_contiguous(memory_format=torch.channels_last):
            return inputs.flatten(1)
        return _Flattened.apply(inputs)


class _Flattened(torch.autograd.Function):
    @staticmethod
    def forward(ctx, inputs: Tensor) -> Tensor:
        """Return the inputs as rows (torch's protocol)."""
        ctx.shape = inputs.shape
        return inputs.flatten(1)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        """Return the rows' gradient as images, channels-last."""
        return gradient.reshape(ctx.shape).contiguous(memory_format=torch.channels_last)


def flattens_rows(layer: nn.Module) -> bool:
    """Whether a layer is torch's Flatten of all but the first axis."""
    return type(layer) is nn.Flatten and (layer.start_dim, layer.end_dim) == (1, -1)
