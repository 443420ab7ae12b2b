"""Patches as a perturbation set: a rectangle anywhere in an image that may show anything."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..errors import InvalidArgumentError
from .lp_box import PerturbationL2Box, PerturbationLinf
from .split import SplitPerturbation
from .stack import Region

_SLACK = 1e-5  # share by which the enclosing ball is larger, for pixels just outside [0, 1]


class PerturbationPatch(SplitPerturbation):
    """All images that differ from an image inside one rectangle only, with pixels in [0, 1].

    The rectangle may lie at every place inside the image, and all its channels are free.

    Args:
        height: Rows of the patch.
        width: Columns of the patch; None: as many as rows.

    Raises:
        InvalidArgumentError: A size is no positive integer.

    Source: Chiang et al. 2020, Certified Defenses for Adversarial Patches, section 3.

    Example:
        >>> PerturbationPatch(5)
        PerturbationPatch(height=5, width=5)
        >>> PerturbationPatch(5).places(torch.zeros(1, 1, 28, 28))
        (24, 24)
    """

    def __init__(self, height: int, width: int | None = None) -> None:
        self.height = _checked("height", height)
        self.width = self.height if width is None else _checked("width", width)
        self.name = f"{self.height}x{self.width} patch"

    def __repr__(self) -> str:
        return f"{type(self).__name__}(height={self.height}, width={self.width})"

    def title(self) -> str:
        """Return a description of the set.

        Example:
            >>> PerturbationPatch(5, 3).title()
            'patches of 5x3 pixels within [0, 1]'
        """
        return f"patches of {self.height}x{self.width} pixels within [0, 1]"

    def described(self) -> dict[str, Any]:
        """Return the set as plain data: the arguments, and its kind."""
        return {"kind": self.kind, "height": self.height, "width": self.width}

    def check_input(self, x: Tensor, name: str = "x") -> None:
        """Raise InvalidArgumentError unless x are images that the patch fits into."""
        super().check_input(x, name)
        height, width = x.shape[-2:]
        if self.height > height or self.width > width:
            raise InvalidArgumentError(
                f"{name} has images of {height}x{width} pixels; a patch of {self.height}x"
                f"{self.width} does not fit into them: give a smaller height or width"
            )

    def places(self, x: Tensor) -> tuple[int, int]:
        """Return how many places there are in images (B, C, H, W), from top to bottom and across.

        A place is known by the row and the column of the patch's upper left pixel.
        """
        height, width = x.shape[-2:]
        return height - self.height + 1, width - self.width + 1

    def masks(self, x: Tensor, place: Tensor) -> Tensor:
        """Return which pixels patches cover.

        Args:
            x: Images (B, C, H, W), for their size.
            place: Row and column of each patch, (N, 2).

        Returns:
            (N, 1, H, W) of bool.
        """
        inside = []
        for axis, extent in ((0, self.height), (1, self.width)):
            pixels = torch.arange(x.shape[axis - 2], device=place.device)
            start = place[:, axis : axis + 1]
            inside.append((pixels >= start) & (pixels < start + extent))
        return (inside[0].unsqueeze(2) & inside[1].unsqueeze(1)).unsqueeze(1)

    def boxes(self, x: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
        """Return the range of each pixel where patches are free, lower and upper ends.

        Args:
            x: Images, (N, C, H, W), or a single one for all patches.
            place: Row and column of each patch, (N, 2).

        Returns:
            (N, C, H, W) each.
        """
        mask = self.masks(x, place)
        return torch.where(mask, x.clamp(max=0), x), torch.where(mask, x.clamp(min=1), x)

    kind = "patch"
    draws = 2

    def place_of(self, x: Tensor, draws: Tensor) -> Tensor:
        """Return the rows and columns of the places that numbers in [0, 1) stand for, (N, 2)."""
        counts = torch.tensor(self.places(x), device=x.device)
        return torch.minimum((draws.to(x) * counts).long(), counts - 1)

    def random_part(self, x: Tensor, draws: Tensor, ratio: float, scale: float) -> Region:
        """Return a random place of each image, whose pixels go ``scale`` of the way to 0 and 1."""
        mask = self.masks(x, self.place_of(x, draws)).to(x)
        lower, upper = x - scale * mask * x, x + scale * mask * (1 - x)
        return Region((lower + upper) / 2, PerturbationLinf(1.0, clip=(lower, upper)))

    def contains(self, point: Tensor, x: Tensor, tolerance: float = 0.0) -> Tensor:
        """Return which points lie in the set around x, (B,) of bool; NaN lies nowhere.

        Every pixel outside one patch must be that of x, exactly; inside, [0, 1] may be left by the
        tolerance.
        """
        differs = point != x
        in_range = (point >= -tolerance) & (point <= 1 + tolerance)
        changed = differs.any(1)
        fits = _extent(changed.any(2)) <= self.height
        fits &= _extent(changed.any(1)) <= self.width
        return fits & (in_range | ~differs).flatten(1).all(1)

    def enclosures(self, x: Tensor) -> list[Region]:
        """Return one l_2 ball within [0, 1] that holds every patched image; see the base class."""
        radius = math.sqrt(self.height * self.width * x.shape[1]) * (1 + _SLACK)
        return [Region(x, PerturbationL2Box(radius))]


def _checked(name: str, size: int) -> int:
    """Return a size of a patch."""
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise InvalidArgumentError(f"{name}={size!r} must be a positive integer, in pixels")
    return size


def _extent(marked: Tensor) -> Tensor:
    """Return how far apart the first and the last marked entry of each row are, both included."""
    number = torch.arange(marked.shape[1], device=marked.device).expand_as(marked)
    last = torch.where(marked, number, -1).amax(1)
    first = torch.where(marked, number, marked.shape[1]).amin(1)
    return (last - first + 1).clamp(min=0)
