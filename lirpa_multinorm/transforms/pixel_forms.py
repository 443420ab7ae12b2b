"""Pixels as linear forms of a transform's parameters, with a remainder.

On a box of parameters, each scaled to kappa_p in [-1, 1], a transformed pixel is

    center + sum over p of generators_p kappa_p + [-radius, radius].

The slopes are differences through the middle of the box. The remainder is the mean value theorem's
on parts of the box: from a part's middle the pixel moves with a slope inside the interval of its
derivatives, ``dI/dx dq_x/dp + dI/dy dq_y/dp``. Where the exact range of the part is narrower, it
is taken instead.

Cells are best cut where pixels cross the grid, and then rounding must not bring in the derivatives
on the other side. So the theorem is applied to a part without its rim, and the pixels' way through
the rim is added: no pixel changes by more than the way of its coordinates, since derivatives of
values in [0, 1] are at most 1, nor by more than its range.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from .coordinates import Frame, coordinate_box, coordinates, derivative_box
from .forms import LinearForms, relu_form
from .interval import Interval
from .parameters import BRIGHTNESS, CONTRAST, MOVING, parameter
from .pixel_ranges import adjusted, ends_and_lines, surface_range
from .shared_boxes import SharedBoxes

#: Parts of a box, along the parameter that moves pixels most, on which remainders are found.
PARTS = 4
#: How much of a part, from its rim, is left out of the range of derivatives.
_RIM = 5e-3


def linear_forms(
    images: Tensor, lower: Tensor, upper: Tensor, active: Sequence[int]
) -> LinearForms:
    """Return pixels as linear forms of the active parameters on boxes.

    Args:
        images: One per box, in [0, 1], (S, C, H, W).
        lower: Parameters, (S, 7).
        upper: Parameters, (S, 7).
        active: The indices of the parameters with a width, P of them.

    Returns:
        The forms, whose remainders hold for every transform of the boxes; rounded outwards.

    Source: DeepG (Balunovic et al. 2019) has the idea of linear bounds in the parameters.

    Example:
        >>> image = torch.tensor([[[[0.0, 1.0, 0.0]]]])
        >>> lower = torch.tensor([[0.0, 0.0, 0.0, 1.0, 0.0, 1.0, 0.0]])
        >>> upper = lower + torch.tensor([0.0, 0.5, 0.0, 0.0, 0.0, 0.0, 0.0])
        >>> forms = linear_forms(image, lower, upper, [1])
        >>> forms.center.round(decimals=3), forms.generators.abs().round(decimals=3)
        (tensor([[[[0.0000, 0.7500, 0.2500]]]]), tensor([[[[[0.0000, 0.2500, 0.2500]]]]]))
        >>> bool(forms.radius.max() < 1e-3)
        True
    """
    frame, moving = Frame.of(images), [index for index in active if index in MOVING]
    boxes = SharedBoxes.of(lower, upper)
    box = lower[boxes.first], upper[boxes.first]
    center, slopes = _middle_and_slopes(images, boxes, box, moving, frame)
    remainder, values = _remainder(images, boxes, box, moving, center, slopes, frame)
    center, radius = center + remainder.middle(), remainder.half()
    center, slopes, radius = _with_contrast(center, slopes, radius, values, lower, upper, active)
    ends = adjusted(values, lower, upper, images)
    shape = images.shape
    return LinearForms(
        center.view(shape),
        slopes.reshape(shape[0], slopes.shape[1], *shape[1:]),
        radius.view(shape),
        *ends,
    )


def _middle_and_slopes(
    images: Tensor,
    boxes: SharedBoxes,
    box: tuple[Tensor, Tensor],
    moving: Sequence[int],
    frame: Frame,
) -> tuple[Tensor, Tensor]:
    """Return pixels at the middle of boxes, (S, C, n), and their slopes, (S, P, C, n).

    A slope is half the difference of pixels between a parameter's ends.
    """
    lower, upper = box
    middle, half = (lower + upper) / 2, (upper - lower) / 2
    points = [middle]
    for index in moving:
        step = torch.zeros_like(half)
        step[:, index] = half[:, index]
        points += [middle + step, middle - step]
    values = _at_points(images, boxes, torch.stack(points, 1), frame)
    center, above, below = values[:, :, 0], values[:, :, 1::2], values[:, :, 2::2]
    return center, ((above - below) / 2).transpose(1, 2)


def _at_points(images: Tensor, boxes: SharedBoxes, points: Tensor, frame: Frame) -> Tensor:
    """Return transformed pixels, (S, C, m, n), at m points of each box, (U, m, 7)."""
    places = (end.view(len(points), -1) for end in coordinates(points.flatten(0, 1), frame))
    return boxes.sampled(images, *places).unflatten(2, (points.shape[1], -1))


def _remainder(
    images: Tensor,
    boxes: SharedBoxes,
    box: tuple[Tensor, Tensor],
    moving: Sequence[int],
    center: Tensor,
    slopes: Tensor,
    frame: Frame,
) -> tuple[Interval, Interval]:
    """Return intervals of pixels less their linear forms, and of the pixels, (S, C, n) each."""
    if not moving:
        values = surface_range(images, boxes, *coordinate_box(*box, frame), frame.rounding)
        zero = torch.zeros_like(values.lower)
        return Interval(zero, zero).widened(frame.rounding), values
    parts = _parts(*box, _farthest(box, moving, frame))
    values = surface_range(images, boxes, *_in_parts(coordinate_box, parts, frame), frame.rounding)
    spread, reach, way = _spreads(images, boxes, parts, box, moving, slopes, frame)
    spread = spread + _RIM * reach + torch.minimum(_RIM * way, values.upper - values.lower)
    middles = (parts[0] + parts[1]) / 2
    kappa = _kappa(middles, box, moving)[boxes.box_of]
    base = center.unsqueeze(2)
    for number in range(len(moving)):
        base = base + slopes[:, number].unsqueeze(2) * kappa[:, None, :, number, None]
    gap = _at_points(images, boxes, middles, frame) - base
    by_slopes = Interval(gap - spread, gap + spread)
    by_range = Interval(values.lower - base - reach, values.upper - base + reach)
    remainder = by_slopes.intersected(by_range).widened(frame.rounding)
    return remainder.joined(2), values.joined(2)


def _farthest(box: tuple[Tensor, Tensor], moving: Sequence[int], frame: Frame) -> Tensor:
    """Return which of the moving parameters moves coordinates farthest on boxes, (U, 1)."""
    ways = []
    for index in moving:
        x, y = derivative_box(*box, index, frame)
        half = (box[1] - box[0])[:, index] / 2
        ways.append((x.magnitude() + y.magnitude()).sum(1) * half)
    return torch.tensor(moving, device=half.device)[torch.stack(ways, 1).argmax(1, keepdim=True)]


def _in_parts(
    function: Callable[..., tuple[Interval, Interval]], parts: tuple[Tensor, Tensor], *rest
) -> tuple[Interval, Interval]:
    """Return a function's intervals of coordinates on parts of boxes, (U, m, n)."""
    count = parts[0].shape[1]
    x, y = function(*(end.flatten(0, 1) for end in parts), *rest)
    x, y = (Interval(*(end.unflatten(0, (-1, count)) for end in ends)) for ends in (x, y))
    return x, y


def _kappa(points: Tensor, box: tuple[Tensor, Tensor], moving: Sequence[int]) -> Tensor:
    """Return kappa of points (U, m, 7) of boxes, (U, m, P)."""
    lower, upper = (end[:, None, list(moving)] for end in box)
    width = (upper - lower).clamp(min=torch.finfo(upper.dtype).tiny)
    return (2 * points[..., list(moving)] - lower - upper) / width


def _spreads(
    images: Tensor,
    boxes: SharedBoxes,
    parts: tuple[Tensor, Tensor],
    box: tuple[Tensor, Tensor],
    moving: Sequence[int],
    slopes: Tensor,
    frame: Frame,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return three distances on parts, (S, C, m, n) or less.

    How far pixels leave their forms off the rim, how far the forms move, and the coordinates' way.
    """
    rim = _RIM / 2 * (parts[1] - parts[0])
    inner = _in_parts(coordinate_box, (parts[0] + rim, parts[1] - rim), frame)
    by_x, by_y = _gradient_ranges(images, boxes, *inner)
    spread = reach = way = torch.zeros_like(by_x.lower[:1, :1])
    for number, index in enumerate(moving):
        width, share = (
            ((upper - lower)[..., index] / 2).view(len(box[0]), 1, -1, 1)[boxes.box_of]
            for lower, upper in (box, parts)
        )
        slope = slopes[:, number].unsqueeze(2) / width.clamp(min=torch.finfo(width.dtype).tiny)
        move_x, move_y = (
            Interval(*(end.unsqueeze(1)[boxes.box_of] for end in move))
            for move in _in_parts(derivative_box, parts, index, frame)
        )
        rate = by_x.times(move_x).plus(by_y.times(move_y))
        spread = spread + rate.minus(Interval(slope, slope)).magnitude() * share
        reach = reach + slope.abs() * share
        way = way + (move_x.magnitude() + move_y.magnitude()) * share
    return spread, reach, way


def _parts(lower: Tensor, upper: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Return the ends of the parts of boxes, (U, m, 7), cut along a parameter of each, (U, 1)."""
    start, step = lower.gather(1, index), (upper - lower).gather(1, index) / PARTS
    cuts = start + step * torch.arange(PARTS, device=lower.device).to(lower)
    where = index.unsqueeze(2).expand(-1, PARTS, -1)
    ends = torch.cat([cuts[:, 1:], upper.gather(1, index)], dim=1)
    first, last = (
        end.unsqueeze(1).repeat(1, PARTS, 1).scatter(2, where, cut.unsqueeze(2))
        for end, cut in ((lower, cuts), (upper, ends))
    )
    return first, last


def _gradient_ranges(
    images: Tensor, boxes: SharedBoxes, x: Interval, y: Interval
) -> tuple[Interval, Interval]:
    """Return intervals of dI/dx and dI/dy on boxes of coordinates, (S, C, m, n) each."""
    padded = functional.pad(images, (1, 1, 1, 1))
    # dI/dx is constant along x between columns, and linear along y.
    by_x = padded[..., 1:-1, 1:] - padded[..., 1:-1, :-1]
    by_y = padded[..., 1:, 1:-1] - padded[..., :-1, 1:-1]
    return (
        boxes.sampled_range(by_x, _cells(x), ends_and_lines(y)),
        boxes.sampled_range(by_y, ends_and_lines(x), _cells(y)),
    )


def _cells(interval: Interval) -> Tensor:
    """Return which differences an interval touches, as indices into them, (U, k, ...)."""
    first, last = interval.lower.floor() + 1, interval.upper.floor() + 1
    count = int((last - first).max()) + 1
    return torch.stack([torch.minimum(first + step, last) for step in range(count)], dim=1)


def _with_contrast(
    center: Tensor,
    slopes: Tensor,
    radius: Tensor,
    values: Interval,
    lower: Tensor,
    upper: Tensor,
    active: Sequence[int],
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the form of ``clamp(contrast v + brightness, 0, 1)`` from that of v, (S, C, n)."""
    ends = [
        Interval(*(parameter(end, index).unsqueeze(2) for end in (lower, upper)))
        for index in (CONTRAST, BRIGHTNESS)
    ]
    (factor, factor_half), (shift, shift_half) = ((end.middle(), end.half()) for end in ends)
    spread = slopes.abs().sum(1) + radius
    generators = [factor.unsqueeze(1) * slopes]
    # (f + h kappa) v = f v + h kappa c + h kappa (v - c), with c the form's center.
    new_radius = factor * radius + factor_half * spread
    if CONTRAST in active:
        generators.append((factor_half * center).unsqueeze(1))
    if BRIGHTNESS in active:
        generators.append(shift_half.expand_as(center).unsqueeze(1))
    form = factor * center + shift, torch.cat(generators, 1), new_radius
    least = values.lower.clamp(min=0) * ends[0].lower + ends[1].lower
    most = values.upper.clamp(max=1) * ends[0].upper + ends[1].upper
    rounding = 4 * torch.finfo(center.dtype).eps
    return _clamped(*form, Interval(least, most).widened(rounding))


def _clamped(
    center: Tensor, slopes: Tensor, radius: Tensor, ends: Interval
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the form of ``clamp(w, 0, 1)`` from that of w and its interval."""
    spread = slopes.abs().sum(1) + radius
    ends = ends.intersected(Interval(center - spread, center + spread))
    center, slopes, radius = relu_form(center, slopes, radius, ends)
    # clamp(w, max=1) = 1 - relu(1 - w)
    flipped = Interval(1 - ends.upper.clamp(min=0), 1 - ends.lower.clamp(min=0))
    center, slopes, radius = relu_form(1 - center, -slopes, radius, flipped)
    return 1 - center, -slopes, radius
