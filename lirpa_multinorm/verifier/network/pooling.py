"""The elements that the windows of a pooling see, in one dimension."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def strided_windows(
    side: int, kernel: int, stride: int, padding: int, dilation: int, ceil_mode: bool
) -> Tensor | None:
    """Return the elements that each window of a max pooling sees.

    Args:
        side: How many elements there are.
        kernel: How many a window sees, and so on as torch's arguments.
        stride: Steps from a window to the next one.
        padding: How far the first one stands in front of the first element.
        dilation: Steps between the elements of a window.
        ceil_mode: Whether a last window may reach over the end.

    Returns:
        Indices of elements (windows, kernel), of which those outside are replaced by the window's
        first one inside; None where a window sees nothing.

    Example:
        >>> strided_windows(4, 3, 2, 1, 1, False)
        tensor([[0, 0, 1],
                [1, 2, 3]])
    """
    last = side + 2 * padding - dilation * (kernel - 1) - 1
    count = (math.ceil(last / stride) if ceil_mode else last // stride) + 1
    if ceil_mode and (count - 1) * stride >= side + padding:
        count -= 1  # the last window must start inside
    starts = torch.arange(count, device="cpu").unsqueeze(1) * stride - padding
    elements = starts + torch.arange(kernel, device="cpu") * dilation
    inside = (elements >= 0) & (elements < side)
    if not bool(inside.any(1).all()):
        return None
    first = elements.gather(1, inside.long().argmax(1, keepdim=True))
    return torch.where(inside, elements, first)


def adaptive_windows(side: int, count: int | None) -> Tensor:
    """Return the elements each window of an adaptive pooling sees, as :func:`strided_windows` does.

    Example:
        >>> adaptive_windows(5, 2)
        tensor([[0, 1, 2],
                [2, 3, 4]])
    """
    count = side if count is None else count
    starts = [index * side // count for index in range(count)]
    stops = [-(-(index + 1) * side // count) for index in range(count)]
    windows = [range(start, stop) for start, stop in zip(starts, stops)]
    longest = max(map(len, windows))
    filled = [[*window, *[window[0]] * (longest - len(window))] for window in windows]
    return torch.tensor(filled, device="cpu")
