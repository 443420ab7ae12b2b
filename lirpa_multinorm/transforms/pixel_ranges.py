"""Ranges of transformed pixels on boxes of parameters."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from .coordinates import Frame, coordinate_box
from .interval import Interval
from .parameters import BRIGHTNESS, CONTRAST, parameter
from .shared_boxes import SharedBoxes


def exact_range(images: Tensor, lower: Tensor, upper: Tensor) -> Interval:
    """Return the range of pixels whose coordinates move freely in their boxes.

    The interpolated image is bilinear between pixels, so that it is least and largest at the ends
    of a box of coordinates and on the grid lines inside.

    Args:
        images: One per box, in [0, 1], (S, C, H, W).
        lower: Parameters, (S, 7).
        upper: Parameters, (S, 7).

    Returns:
        Interval of the shape of images, rounded outwards.

    Example:
        >>> image = torch.tensor([[[[0.0, 1.0, 0.0]]]])
        >>> still = torch.tensor([[0.0, 0.0, 0.0, 1.0, 0.0, 1.0, 0.0]])
        >>> moved = still + torch.tensor([0.0, 0.5, 0.0, 0.0, 0.0, 0.0, 0.0])
        >>> exact_range(image, still, moved).upper.round(decimals=3)
        tensor([[[[0.0000, 1.0000, 0.5000]]]])
    """
    frame, boxes = Frame.of(images), SharedBoxes.of(lower, upper)
    box = coordinate_box(lower[boxes.first], upper[boxes.first], frame)
    values = surface_range(images, boxes, *box, frame.rounding)
    return adjusted(values, lower, upper, images)


def weight_range(images: Tensor, lower: Tensor, upper: Tensor) -> Interval:
    """Return ranges of pixels by interval weights of the interpolation, which are wider.

    Each weight ``(1 - |dx|)+ (1 - |dy|)+`` has its own interval.

    Args and returns: as of :func:`exact_range`.

    Source: Yang et al. 2023, Provable Defense Against Geometric Transformations, section 4.
    """
    frame = Frame.of(images)
    x, y = coordinate_box(lower, upper, frame)
    # Beyond one pixel outside everything is zero, and the weights of further pixels are not needed.
    x = Interval(x.lower.clamp(-2, frame.width + 1), x.upper.clamp(-2, frame.width + 1))
    y = Interval(y.lower.clamp(-2, frame.height + 1), y.upper.clamp(-2, frame.height + 1))
    padded = functional.pad(images, (4, 4, 4, 4))
    flat, row = padded.flatten(2), padded.shape[-1]
    lowest = flat.new_zeros(*flat.shape[:2], frame.x.numel())
    highest = torch.zeros_like(lowest)
    for column_y, least_y, most_y in _weights(y):
        for column_x, least_x, most_x in _weights(x):
            place = ((column_y + 4).clamp(0, padded.shape[-2] - 1) * row) + (column_x + 4).clamp(
                0, row - 1
            )
            value = flat.gather(2, place.long().unsqueeze(1).expand(-1, flat.shape[1], -1))
            lowest += (least_y * least_x).unsqueeze(1) * value
            highest += (most_y * most_x).unsqueeze(1) * value
    values = Interval(lowest, highest).widened(frame.rounding)
    return adjusted(values, lower, upper, images)


def surface_range(
    images: Tensor, boxes: SharedBoxes, x: Interval, y: Interval, rounding: float
) -> Interval:
    """Return the range of interpolated images on boxes of coordinates, (S, C, *shape).

    Args:
        images: (S, C, H, W).
        boxes: Which box each image has.
        x: Columns, (U, *shape).
        y: Rows.
        rounding: How far rounding may put a coordinate, or a value.
    """
    # Cells often end at grid lines, and rounding then takes in the lines. They are left out: no
    # value there is farther from the end's than the line is.
    columns, rows = ends_and_lines(x, rounding), ends_and_lines(y, rounding)
    return boxes.sampled_range(images, columns, rows).widened(3 * rounding)


def ends_and_lines(interval: Interval, slack: float = 0.0) -> Tensor:
    """Return the ends of intervals and the whole numbers inside, (U, k, ...).

    Args:
        interval: Of coordinates, (U, ...).
        slack: How close to an end a whole number is left out.
    """
    first = (interval.lower + slack).ceil()
    lines = int(((interval.upper - slack).floor() - first).max()) + 1
    inside = [torch.minimum(first + line, interval.upper) for line in range(lines)]
    return torch.stack([*interval, *inside], dim=1)


def _weights(interval: Interval) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Return each whole number near intervals with the interval of its weight."""
    first, entries = interval.lower.floor(), []
    for step in range(int((interval.upper.ceil() - first).max()) + 1):
        number = first + step
        far = torch.maximum((interval.lower - number).abs(), (interval.upper - number).abs())
        near = torch.maximum(interval.lower - number, number - interval.upper).clamp(min=0)
        entries.append((number, (1 - far).clamp(min=0), (1 - near).clamp(min=0)))
    return entries


def adjusted(values: Interval, lower: Tensor, upper: Tensor, images: Tensor) -> Interval:
    """Return the range after contrast and brightness, in the shape of images."""
    least, most = (
        (end.clamp(0, 1) * contrast + brightness).clamp(0, 1).view_as(images)
        for end, contrast, brightness in (
            (value, *(parameter(ends, index).unsqueeze(2) for index in (CONTRAST, BRIGHTNESS)))
            for value, ends in zip(values, (lower, upper))
        )
    )
    # The product and the sum round once more, of numbers near 1.
    rounding = 4 * torch.finfo(images.dtype).eps
    return Interval((least - rounding).clamp(min=0), (most + rounding).clamp(max=1))
