"""Geometric and photometric transforms of images as a perturbation set."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from numbers import Real
from typing import Any, Union

import torch
from torch import Tensor

from ..errors import InvalidArgumentError
from ..transforms import IDENTITY, PARAMETERS, exact_range
from ..transforms.parameters import CONTRAST, MOVING, ROTATION, SCALE, SHEAR
from ..utils.hints import did_you_mean
from .lp_box import PerturbationLinf
from .split import SplitPerturbation
from .stack import Region

Range = Union[float, tuple]

_SHORT = dict(zip(PARAMETERS, ("R", "Tu", "Tv", "Sc", "Sh", "C", "B")))
_PERCENT = ("scale", "shear", "contrast")  # the paper gives them in percent
#: Pixels by which a cell moves what it shows, about, and how far from the middle that is, as a
#: share of the image's size: of a search's first cells, and of the enclosures, on which rounding
#: errors are bounded. Errors grow fast with a cell's size, but need not be known well.
_FIRST_CELLS = (0.5, 0.155)
_ENCLOSURES = (0.8, 0.2)


class PerturbationGeometric(SplitPerturbation):
    """All images that transforms with parameters in given ranges make of an image.

    A transform samples the image bilinearly (zeros outside) at rotated, translated, scaled and
    sheared coordinates, as torchvision's ``affine`` does, multiplies by the contrast, adds the
    brightness, and clamps to [0, 1]; see :func:`~lirpa_multinorm.transforms.transformed`.

    Args:
        rotation: Degrees, clockwise; a number a >= 0 means from -a to a, a pair is the range.
        translation: Pixels, in x and in y; not together with the two that follow.
        translation_x: Pixels to the right.
        translation_y: Pixels down.
        scale: Factors; a number a means from 1 - a to 1 + a.
        shear: Tangent of the shear of x along y.
        contrast: Factors; a number a means from 1 - a to 1 + a.
        brightness: Added to pixels.
        splits: Width of the cells of the fixed grid by parameter, for the method "Grid-IBP"; a
            parameter that is not named is not split.

    Raises:
        InvalidArgumentError: No parameter has a width; a range is reversed, not finite or without
            a meaning; a parameter is given twice; a width is no positive number.

    Source: Yang et al. 2023, Provable Defense Against Geometric Transformations, section 3; the
    ranges of Jiang and Singh 2024 (CURE), Table 2.

    Example:
        >>> PerturbationGeometric(rotation=5, scale=(0.95, 1.1), brightness=0.01)
        PerturbationGeometric('Sc(-5..10),R(5),B(0.01)')
    """

    def __init__(
        self,
        rotation: Range = 0.0,
        translation: Range | None = None,
        translation_x: Range = 0.0,
        translation_y: Range = 0.0,
        scale: Range = 0.0,
        shear: Range = 0.0,
        contrast: Range = 0.0,
        brightness: Range = 0.0,
        splits: Mapping[str, float] | None = None,
    ) -> None:
        if translation is not None:
            for name, value in (("translation_x", translation_x), ("translation_y", translation_y)):
                if value != 0.0:
                    raise InvalidArgumentError(
                        f"translation={translation!r} and {name}={value!r} give the same "
                        "parameter twice; leave one of them out"
                    )
            translation_x = translation_y = translation
        given = rotation, translation_x, translation_y, scale, shear, contrast, brightness
        #: (lower, upper) of each parameter, in the order of ``transforms.PARAMETERS``.
        self.ranges = tuple(
            _range(name, value, neutral)
            for name, value, neutral in zip(PARAMETERS, given, IDENTITY)
        )
        #: Indices of the parameters with a width.
        self.active = [index for index, (least, most) in enumerate(self.ranges) if least < most]
        if not self.active:
            raise InvalidArgumentError(
                "no parameter has a width; give a range, for example rotation=30"
            )
        _check_signs(self.ranges)
        self.splits = _checked_splits(splits)
        self.name = self._short_name()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"

    def _short_name(self) -> str:
        """Return the set's name as in the paper's Table 2: R(30); Sc(5),R(5),C(5),B(0.01)."""
        order = ("scale", "shear", "translation_x", "translation_y", "rotation", "contrast")
        parts = []
        for name in (*order, "brightness"):
            index = PARAMETERS.index(name)
            if self.ranges[index] == (IDENTITY[index],) * 2:
                continue
            factor = 100 if name in _PERCENT else 1
            least, most = (factor * (end - IDENTITY[index]) for end in self.ranges[index])
            both = math.isclose(least, -most, rel_tol=1e-6)
            parts.append(f"{_SHORT[name]}({f'{most:.4g}' if both else f'{least:.4g}..{most:.4g}'})")
        return ",".join(parts)

    def title(self) -> str:
        """Return a description of the set.

        Example:
            >>> PerturbationGeometric(rotation=30).title()
            'transforms with rotation from -30 to 30'
        """
        ranges = [
            f"{PARAMETERS[index]} from {least:g} to {most:g}"
            for index, (least, most) in enumerate(self.ranges)
            if (least, most) != (IDENTITY[index],) * 2
        ]
        return f"transforms with {', '.join(ranges)}"

    def described(self) -> dict[str, Any]:
        """Return the set as plain data: the arguments, and its kind."""
        ranges = {name: list(ends) for name, ends in zip(PARAMETERS, self.ranges)}
        return {"kind": self.kind, **ranges, "splits": dict(self.splits)}

    def box(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return the ends of the parameters' ranges, (7,) each, of the type of a tensor."""
        lower, upper = like.new_tensor(self.ranges).T
        return lower, upper

    def cells(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return the cells that a search begins with.

        Args:
            like: Images, whose size says how far a parameter moves their pixels.

        Returns:
            Lower and upper ends of the parameters, (N, 7) each.
        """
        return self._cells(like, *_FIRST_CELLS)

    def _cells(self, like: Tensor, move: float, share: float) -> tuple[Tensor, Tensor]:
        """Return cells that move what they show by some pixels, about, (N, 7) each.

        Args:
            like: Images.
            move: The pixels.
            share: How far from the middle what they show is, as a share of the image's size.
        """
        reach = share * max(like.shape[-2:])
        rates = {ROTATION: reach * math.pi / 180, SCALE: reach, SHEAR: reach}
        counts = {
            index: max(1, round(self._width(index) * rates.get(index, 1.0) / move))
            for index in self.active
            if index in MOVING
        }
        return self._grid(counts, like)

    kind = "geometric"
    draws = len(PARAMETERS)

    def random_part(self, x: Tensor, draws: Tensor, ratio: float, scale: float) -> Region:
        """Return the pixels' ranges on a random cell of each image; see the base class."""
        neutral, (lower, upper) = x.new_tensor(IDENTITY), self.box(x)
        lower, upper = (neutral + scale * (end - neutral) for end in (lower, upper))
        width = ratio * (upper - lower)
        start = lower + draws.to(x) * (upper - lower - width)
        with torch.no_grad():
            box = exact_range(x, start, start + width)
        return Region(box.middle(), PerturbationLinf(1.0, clip=tuple(box)))

    def enclosures(self, x: Tensor) -> list[Region]:
        """Return the pixels' ranges on large cells, as boxes; see the base class."""
        regions = []
        for lower, upper in zip(*(ends.split(1) for ends in self._cells(x, *_ENCLOSURES))):
            count = (len(x), -1)
            box = exact_range(x, lower.expand(count), upper.expand(count))
            regions.append(Region(box.middle(), PerturbationLinf(1.0, clip=tuple(box))))
        return regions

    def fixed_grid(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return the cells of the grid of ``splits``, (N, 7) each.

        Raises:
            InvalidArgumentError: The set has no splits.
        """
        if not self.splits:
            raise InvalidArgumentError(
                f"splits: {self.name} has none; give the width of a cell by parameter, for example"
                " splits={'rotation': 0.25}"
            )
        counts = {
            index: math.ceil(self._width(index) / self.splits[PARAMETERS[index]] - 1e-6)
            for index in self.active
            if PARAMETERS[index] in self.splits
        }
        return self._grid(counts, like)

    def points(self, count: int, like: Tensor) -> Tensor:
        """Return parameters on a grid that has the corners of the ranges, about ``count`` of them.

        Returns:
            (N, 7), N at most ``count``, but two for each parameter at least.
        """
        per_axis = max(2, int(count ** (1 / len(self.active)) + 1e-9))
        axes = [
            torch.linspace(*ends, per_axis, device=like.device)
            if ends[0] < ends[1]
            else torch.tensor(ends[:1], device=like.device)
            for ends in self.ranges
        ]
        return torch.cartesian_prod(*axes).to(like)

    def _width(self, index: int) -> float:
        least, most = self.ranges[index]
        return most - least

    def _grid(self, counts: Mapping[int, int], like: Tensor) -> tuple[Tensor, Tensor]:
        """Return cells that divide the ranges of some parameters evenly."""
        axes = []
        for index, (least, most) in enumerate(self.ranges):
            count = counts.get(index, 1) + 1
            ends = torch.linspace(least, most, count, dtype=torch.float64, device="cpu")
            axes.append(list(zip(ends[:-1].tolist(), ends[1:].tolist())))
        cells = like.new_tensor(list(itertools.product(*axes)))
        return cells[..., 0], cells[..., 1]


def _range(name: str, value: Range, neutral: float) -> tuple[float, float]:
    """Return (lower, upper) of a parameter."""
    if isinstance(value, Real) and not isinstance(value, bool):
        if not value >= 0:
            raise InvalidArgumentError(
                f"{name}={value!r} must be >= 0: it means from {neutral:g} - {name} to "
                f"{neutral:g} + {name}; give a pair for another range"
            )
        value = (neutral - float(value), neutral + float(value))
    try:
        least, most = (float(end) for end in value)  # type: ignore[union-attr]
    except (TypeError, ValueError):
        raise InvalidArgumentError(
            f"{name}={value!r} must be a number or a pair (lower, upper)"
        ) from None
    if not (math.isfinite(least) and math.isfinite(most)):
        raise InvalidArgumentError(f"{name}={value!r} must be finite")
    if least > most:
        raise InvalidArgumentError(f"{name}={value!r}: the lower end is above the upper end")
    return least, most


def _check_signs(ranges: tuple) -> None:
    """Raise unless scale and contrast are positive and rotations at most one turn."""
    if ranges[SCALE][0] <= 0:
        raise InvalidArgumentError(
            f"scale={ranges[SCALE]} must stay above 0; an image of scale 0 is no image"
        )
    if ranges[CONTRAST][0] < 0:
        raise InvalidArgumentError(f"contrast={ranges[CONTRAST]} must not be negative")
    if max(map(abs, ranges[ROTATION])) > 360:
        raise InvalidArgumentError(
            f"rotation={ranges[ROTATION]} is in degrees, from -360 to 360 at most"
        )


def _checked_splits(splits: Mapping[str, float] | None) -> dict[str, float]:
    """Return the widths of the fixed grid's cells by parameter."""
    checked: dict[str, float] = {}
    for name, width in dict(splits or {}).items():
        if name not in PARAMETERS:
            raise InvalidArgumentError(
                f"splits: {name!r} is no parameter;{did_you_mean(name, PARAMETERS, sentence=False)}"
                f" use {', '.join(PARAMETERS)}"
            )
        if isinstance(width, bool) or not isinstance(width, Real) or not 0 < width < math.inf:
            raise InvalidArgumentError(f"splits: {name}={width!r} must be a positive number")
        checked[name] = float(width)
    return checked
