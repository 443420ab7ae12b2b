"""The coordinates that a transform samples an image at: at points, on boxes, and their derivatives.

With p a pixel's place about the image's middle ((W - 1) / 2, (H - 1) / 2), the transformed image
shows there what the image has at

    q = S(m) R(theta) (p - t) / s,   R = [cos, sin; -sin, cos],   S(m) = [1, m; 0, 1],

which is torchvision's affine transform of angle theta, translation t, scale s, and a shear of x
whose tangent is m.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .interval import Interval
from .parameters import ROTATION, SCALE, SHEAR, TRANSLATION_X, TRANSLATION_Y, parameter

_DEGREE = math.pi / 180


class Frame(NamedTuple):
    """The places of an image's pixels about its middle, (1, H W) each, row by row.

    Args:
        x: To the right.
        y: Down.
        height: H.
        width: W.
    """

    x: Tensor
    y: Tensor
    height: int
    width: int

    @classmethod
    def of(cls, images: Tensor) -> Frame:
        """Return the frame of images (B, C, H, W)."""
        height, width = images.shape[-2:]
        rows = torch.arange(height, device=images.device).to(images) - (height - 1) / 2
        columns = torch.arange(width, device=images.device).to(images) - (width - 1) / 2
        y, x = torch.meshgrid(rows, columns, indexing="ij")
        return cls(x.reshape(1, -1), y.reshape(1, -1), height, width)

    @property
    def rounding(self) -> float:
        """How far rounding may put a coordinate, or a pixel that is sampled there."""
        return 8 * torch.finfo(self.x.dtype).eps * max(self.height, self.width, 4)

    def indices(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return places about the middle as indices of columns and rows."""
        return x + (self.width - 1) / 2, y + (self.height - 1) / 2


def coordinates(parameters: Tensor, frame: Frame) -> tuple[Tensor, Tensor]:
    """Return where transforms sample an image, as indices of columns and rows.

    Args:
        parameters: (S, 7), see :data:`~.parameters.PARAMETERS`.
        frame: The image's pixels.

    Returns:
        x and y, (S, H W) each.
    """
    angle = parameter(parameters, ROTATION) * _DEGREE
    x = frame.x - parameter(parameters, TRANSLATION_X)
    y = frame.y - parameter(parameters, TRANSLATION_Y)
    cosine, sine = angle.cos(), angle.sin()
    scale = parameter(parameters, SCALE)
    x, y = (x * cosine + y * sine) / scale, (y * cosine - x * sine) / scale
    return frame.indices(x + parameter(parameters, SHEAR) * y, y)


def coordinate_box(lower: Tensor, upper: Tensor, frame: Frame) -> tuple[Interval, Interval]:
    """Return intervals of where the transforms of boxes of parameters sample an image.

    Args:
        lower: (S, 7).
        upper: (S, 7).
        frame: The image's pixels.

    Returns:
        Intervals of x and y, (S, H W) each, as indices of columns and rows, rounded outwards.
    """
    x, y = _scaled(lower, upper, _rotated(lower, upper, frame))
    x = x.plus(_range(lower, upper, SHEAR).times(y))
    (x0, y0), (x1, y1) = frame.indices(x.lower, y.lower), frame.indices(x.upper, y.upper)
    return Interval(x0, x1).widened(frame.rounding), Interval(y0, y1).widened(frame.rounding)


def derivative_box(
    lower: Tensor, upper: Tensor, index: int, frame: Frame
) -> tuple[Interval, Interval]:
    """Return intervals of the coordinates' derivatives by a parameter, on boxes of parameters.

    Args:
        lower: (S, 7).
        upper: (S, 7).
        index: Which parameter; one of :data:`~.parameters.MOVING`.
        frame: The image's pixels.
    """
    shear = _range(lower, upper, SHEAR)
    if index in (TRANSLATION_X, TRANSLATION_Y):
        angle = _range(lower, upper, ROTATION)
        cosine, sine = _cosine(angle, 0.0), _cosine(angle, 90.0)
        # q moves against the translation.
        x, y = (cosine, _negated(sine)) if index == TRANSLATION_X else (sine, cosine)
        x, y = _scaled(lower, upper, (_negated(x), _negated(y)))
        return x.plus(shear.times(y)), y
    x, y = _scaled(lower, upper, _rotated(lower, upper, frame))
    if index == SHEAR:
        return y, Interval.of(torch.zeros_like(y.lower))
    if index == ROTATION:
        degree = Interval.of(lower.new_tensor(_DEGREE))
        x, y = degree.times(y), degree.times(_negated(x))
    else:
        factor = _negated(_range(lower, upper, SCALE).reciprocal())
        x, y = factor.times(x), factor.times(y)
    return x.plus(shear.times(y)), y


def _range(lower: Tensor, upper: Tensor, index: int) -> Interval:
    return Interval(parameter(lower, index), parameter(upper, index))


def _negated(interval: Interval) -> Interval:
    return Interval(-interval.upper, -interval.lower)


def _scaled(
    lower: Tensor, upper: Tensor, place: tuple[Interval, Interval]
) -> tuple[Interval, Interval]:
    factor = _range(lower, upper, SCALE).reciprocal()
    return place[0].times(factor), place[1].times(factor)


def _rotated(lower: Tensor, upper: Tensor, frame: Frame) -> tuple[Interval, Interval]:
    """Return the interval of ``R(theta) (p - t)``: that of ``R p`` is exact."""
    angle = _range(lower, upper, ROTATION)
    distance = torch.hypot(frame.x, frame.y)
    direction = torch.atan2(frame.y, frame.x) / _DEGREE
    x = _cosine(angle, direction).times(Interval.of(distance))
    y = _cosine(angle, direction - 90).times(Interval.of(distance))
    move_x, move_y = _range(lower, upper, TRANSLATION_X), _range(lower, upper, TRANSLATION_Y)
    cosine, sine = _cosine(angle, 0.0), _cosine(angle, 90.0)
    x = x.minus(cosine.times(move_x).plus(sine.times(move_y)))
    return x, y.minus(cosine.times(move_y).minus(sine.times(move_x)))


def _cosine(angle: Interval, shift: float | Tensor) -> Interval:
    """Return the exact interval of ``cos(angle - shift)``, in degrees."""
    start, end = angle.lower - shift, angle.upper - shift
    first, last = (start * _DEGREE).cos(), (end * _DEGREE).cos()
    lower, upper = torch.minimum(first, last), torch.maximum(first, last)
    upper = torch.where(_holds_turn(start, end), torch.ones_like(upper), upper)
    lower = torch.where(_holds_turn(start - 180, end - 180), -torch.ones_like(lower), lower)
    return Interval(lower, upper)


def _holds_turn(start: Tensor, end: Tensor) -> Tensor:
    """Return whether an interval of angles holds a multiple of 360 degrees, or nearly does."""
    slack = 1e-3  # rounding may hide an extreme; taking one too many is sound
    return ((end + slack) / 360).floor() >= ((start - slack) / 360).ceil()
