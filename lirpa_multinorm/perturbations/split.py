"""Sets of images that are no ball: certified in parts, each enclosed by a simpler set."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..errors import InvalidArgumentError
from .stack import Region


class SplitPerturbation:
    """A set of images with pixels in [0, 1] that is certified part by part.

    :func:`~lirpa_multinorm.certify` and ``certify_to`` take such sets beside balls. Bounds of one
    call, such as ``compute_bounds``, are for balls only.

    Attributes:
        name: A short name for tables, such as "R(30)".
        kind: The kind of set, which descriptions and options name.
        clip: The range of pixels.
    """

    name: str
    kind: str
    clip = (0.0, 1.0)

    @property
    def label(self) -> str:
        """The name, which says all."""
        return self.name

    def title(self) -> str:
        """Return a description of the set."""
        raise NotImplementedError

    def described(self) -> dict[str, Any]:
        """Return the set as plain data, from which :func:`.described.set_of` makes it again."""
        raise NotImplementedError

    def check_input(self, x: Tensor, name: str = "x") -> None:
        """Raise InvalidArgumentError unless x are images that the set can be around."""
        if x.ndim != 4:
            raise InvalidArgumentError(
                f"{name} has the shape {tuple(x.shape)}; {self.name} needs images (B, C, H, W)"
            )
        if not x.numel():
            raise InvalidArgumentError(f"{name} is an empty batch; give at least one image")
        lowest, highest = (float(end) for end in torch.aminmax(x.detach()))
        if not (math.isfinite(lowest) and math.isfinite(highest)):
            raise InvalidArgumentError(
                f"{name} contains NaN or infinite values; clean the inputs first"
            )
        if lowest < -1e-6 or highest > 1 + 1e-6:
            raise InvalidArgumentError(
                f"{name} ranges from {lowest:.3g} to {highest:.3g}; {self.name} needs pixels in "
                "[0, 1]: put the normalisation into the model"
            )

    def of_images(self, images: Tensor, x: Tensor) -> SplitPerturbation:
        """Return the set for some images of a batch, which is the same for all."""
        return self

    def contains(self, point: Tensor, x: Tensor, tolerance: float = 1e-5) -> Tensor:
        """Return which points are images, (B,) of bool: what is searched lies in the set."""
        low, high = (point >= -tolerance), (point <= 1 + tolerance)
        return (low & high).flatten(1).all(1)

    #: How many random numbers a random part takes.
    draws: int

    def random_part(self, x: Tensor, draws: Tensor, ratio: float, scale: float) -> Region:
        """Return a box of pixels around a random part of the set, for each image.

        Args:
            x: Images, (B, C, H, W).
            draws: Numbers in [0, 1) that say which part, (B, draws).
            ratio: The part's size as a share of the set's, where parts have a size.
            scale: How far the set is grown, from nothing (0) to all (1).
        """
        raise NotImplementedError

    def enclosures(self, x: Tensor) -> list[Region]:
        """Return sets around images whose union holds the whole set around x, one by one.

        Args:
            x: Images, (B, C, H, W); each region has B centers.
        """
        raise NotImplementedError
