"""The l_0 ball: a few values of an input change, which ones and how much within their range."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from ..errors import InvalidArgumentError
from .broadcast import as_tensor
from .lp_box import PerturbationLpBox
from .norms import Norm

_SLACK = 1e-5  # by which the l_1 ball is larger, for values just outside their range
_LARGEST = 1 << 24  # whole numbers up to it are exact in float32
_MOVED = 100  # one value of so many moves in a step of an attack
_FAR = 1e3  # length of a step in units of the range: to its end, where the range cuts it


class PerturbationL0(PerturbationLpBox):
    """The set {x' : ``||x' - x||_0 <= count``, ``clip[0] <= x' <= clip[1]``}.

    Up to ``count`` values may be anything in the range; of an image with several channels each
    pixel has as many values. The set lies within the l_1 ball of radius ``count (clip[1] -
    clip[0])``, for which every method takes it (``norm`` is 1 and ``eps`` this radius). A linear
    form's maximum on it is exact: the sum of its ``count`` largest rises, in each of which one
    value goes to an end of its range. It has no radius of its own to be scaled or searched: as many
    values may change as fit into ``eps``.

    Args:
        count: How many values may change.
        clip: Range of valid inputs, as of :class:`PerturbationLpBox`; not None.

    Raises:
        InvalidArgumentError: count is no whole number >= 0, or clip is no range.

    Example:
        >>> from lirpa_multinorm.perturbations.rows import DenseRows
        >>> x = torch.tensor([[0.5, 0.0, 0.2]])
        >>> form = DenseRows(torch.tensor([[[2.0, -3.0, 1.0]]]))
        >>> PerturbationL0(1).extreme(form, x, +1) - form.apply(x)  # 2 (1 - 0.5)
        tensor([[1.]])
        >>> PerturbationL0(2).extreme(form, x, -1) - form.apply(x)  # -3 (1 - 0) - 2 (0.5 - 0)
        tensor([[-4.]])
    """

    described_norm = "0"

    def __init__(self, count: int, clip: Sequence = (0.0, 1.0)) -> None:
        if isinstance(count, bool) or not isinstance(count, int) or not 0 <= count <= _LARGEST:
            raise InvalidArgumentError(
                f"count={count!r} must be a whole number of values, 0 to {_LARGEST}"
            )
        super().__init__(1, 0.0, clip)
        if self.clip is None:
            raise InvalidArgumentError("clip=None: without a range an l_0 ball has no end")
        low, high = (as_tensor(bound) for bound in self.clip)
        extent = float((high - low).max())
        if not 0 < extent < math.inf:
            raise InvalidArgumentError(f"clip={clip!r} must be a range that has an extent")
        self._extent = extent + _SLACK
        self.eps = count * self._extent

    def __repr__(self) -> str:
        return f"{type(self).__name__}(count={self._count_text()}, clip={self.clip})"

    def _count_text(self) -> str:
        eps = torch.as_tensor(self.eps, dtype=torch.float64, device="cpu")
        counts = counts_of(eps.flatten(), self._extent)
        low, high = int(counts.min()), int(counts.max())
        return f"{low}" if low == high else f"{low} to {high}"

    @property
    def ball(self) -> Norm:
        """The geometry of few values, for bounds and attacks."""
        return _L0(self._extent)

    @property
    def name(self) -> str:
        """A short name for tables."""
        return "l_0"

    @property
    def label(self) -> str:
        """The name with the number of values."""
        return f"l_0 {self._count_text()}"

    def title(self) -> str:
        """Return a description of the set.

        Example:
            >>> PerturbationL0(3).title()
            'l_0 ball of 3 values within [0, 1]'
        """
        box = super().title().partition(" within ")[2]
        count = self._count_text()
        return f"l_0 ball of {count} value{'' if count == '1' else 's'} within {box}"

    def described(self) -> dict[str, Any]:
        """Return the set as plain data, in the form of other balls; eps is the count.

        Raises:
            InvalidArgumentError: Examples have counts of their own.
        """
        count = self._count_text()
        if not count.isdecimal():
            raise InvalidArgumentError(f"{self!r} has several counts; take a set for each")
        return {
            "norm": self.described_norm,
            "eps": int(count),
            "clip": list(cast(Sequence, self.clip)),
        }

    def unclipped(self) -> PerturbationLpBox:
        """Return the plain l_1 ball around the set; without a range an l_0 ball has no end."""
        return PerturbationLpBox(1, self.eps, clip=None)

    def far_point(self, direction: Tensor, x: Tensor) -> Tensor:
        """Return the farthest point of the set along a direction, shape of x."""
        lower, upper = (bound.flatten(1) for bound in self._box_offsets(x))
        ahead = direction.flatten(1)
        ends = torch.where(ahead > 0, upper, lower)
        order = (ahead * ends).argsort(dim=1, descending=True).argsort(dim=1)
        count = counts_of(self.radius(x), self._extent).unsqueeze(1)
        return x + torch.where(order < count, ends, 0.0).view_as(x)

    def l2_radius(self, x: Tensor) -> Tensor:
        """Return how far the set reaches from x in l_2, shape (B,)."""
        lower, upper = self._box_offsets(x)
        squares = torch.maximum(lower.abs(), upper.abs()).flatten(1).square()
        zeros = torch.zeros_like(squares)
        return self.ball.support(squares, zeros, zeros + 1, self.radius(x)).sqrt()

    def contains(self, point: Tensor, x: Tensor, tolerance: float = 1e-5) -> Tensor:
        """Return which points lie in the set around x, shape (B,) of bool; NaN lies nowhere.

        A value that moves by no more than the tolerance has not changed.
        """
        changed = ~((point - x).abs() <= tolerance)
        few = changed.flatten(1).sum(1) <= counts_of(self.radius(x), self._extent)
        lower, upper = cast("tuple[Tensor, Tensor]", self.offsets(x))
        in_range = (point - x >= lower - tolerance) & (point - x <= upper + tolerance)
        return few & in_range.flatten(1).all(1)


class _L0(Norm):
    """Few values, given as the radius of the l_1 ball around them.

    Args:
        extent: Length of the range.
    """

    p, dual, avoids_edges = 1, math.inf, True

    def __init__(self, extent: float) -> None:
        self._extent = extent

    def support(self, a, lower, upper, eps):
        """Return the sum of the largest rises, as many as values may change; it is exact."""
        rises = torch.maximum(a * lower, a * upper)
        rises, count = torch.broadcast_tensors(rises, counts_of(eps, self._extent).unsqueeze(-1))
        most = min(int(count.max()), rises.shape[-1]) if count.numel() else 0
        if not most:
            return rises.sum(-1) * 0
        ordered = rises.topk(most, dim=-1).values
        ranks = torch.arange(most, device=rises.device)
        return (ordered * (ranks < count[..., :1])).sum(-1)

    def steepest(self, gradient, stuck):
        """Move the steepest few values to the ends of their ranges."""
        gradient = gradient if stuck is None else gradient.masked_fill(stuck, 0.0)
        largest = gradient.abs().topk(max(1, gradient.shape[1] // _MOVED), dim=1).indices
        steps = _FAR * gradient.gather(1, largest).sign()
        return torch.zeros_like(gradient).scatter(1, largest, steps)

    def project(self, offset, eps):
        """Keep the values that move most; the nearest point of the set."""
        count = counts_of(eps, self._extent).unsqueeze(1)
        order = offset.abs().argsort(dim=1, descending=True).argsort(dim=1)
        return torch.where(order < count, offset, 0.0)


def counts_of(radius: Tensor, extent: float) -> Tensor:
    """Return how many values may change in an l_1 ball: as many as fit, with a share for rounding.

    The share holds the factor just below 1 by which attacks in training shrink a radius.
    """
    return (radius / extent * (1 + 2e-5) + 1e-3).floor().long()
