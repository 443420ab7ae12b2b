"""Intervals of tensors."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Interval(NamedTuple):
    """A lower and an upper bound of each element.

    Example:
        >>> a, b = Interval(torch.tensor([-1.0]), torch.tensor([2.0])), Interval.of(-3.0)
        >>> a.times(b)
        Interval(lower=tensor([-6.]), upper=tensor([3.]))
    """

    lower: Tensor
    upper: Tensor

    @classmethod
    def of(cls, value: float | Tensor) -> Interval:
        """Return the interval that holds one value."""
        tensor = value if isinstance(value, Tensor) else torch.tensor(value, device="cpu")
        return cls(tensor, tensor)

    def plus(self, other: Interval) -> Interval:
        """Return the interval of sums."""
        return Interval(self.lower + other.lower, self.upper + other.upper)

    def minus(self, other: Interval) -> Interval:
        """Return the interval of differences."""
        return Interval(self.lower - other.upper, self.upper - other.lower)

    def times(self, other: Interval) -> Interval:
        """Return the interval of products."""
        products = [first * second for first in self for second in other]
        lower, upper = products[0], products[0]
        for product in products[1:]:
            lower, upper = torch.minimum(lower, product), torch.maximum(upper, product)
        return Interval(lower, upper)

    def reciprocal(self) -> Interval:
        """Return the interval of reciprocals, of an interval above zero."""
        return Interval(1 / self.upper, 1 / self.lower)

    def middle(self) -> Tensor:
        """Return the middle of each interval."""
        return (self.lower + self.upper) / 2

    def half(self) -> Tensor:
        """Return half the width of each interval."""
        return (self.upper - self.lower) / 2

    def magnitude(self) -> Tensor:
        """Return the largest absolute value of each element."""
        return torch.maximum(-self.lower, self.upper)

    def widened(self, by: float) -> Interval:
        """Return the interval with both ends moved outwards."""
        return Interval(self.lower - by, self.upper + by)

    def joined(self, dim: int) -> Interval:
        """Return the smallest interval around those along a dimension."""
        return Interval(self.lower.amin(dim), self.upper.amax(dim))

    def intersected(self, other: Interval) -> Interval:
        """Return what both intervals hold."""
        return Interval(
            torch.maximum(self.lower, other.lower), torch.minimum(self.upper, other.upper)
        )
