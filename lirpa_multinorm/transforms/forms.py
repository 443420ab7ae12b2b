"""Linear forms of a few parameters with an interval remainder, and ReLUs of them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .interval import Interval


class LinearForms(NamedTuple):
    """Values of S examples as linear forms of P parameters kappa in [-1, 1], and their intervals.

    Each is ``center + sum over p of generators_p kappa_p + [-radius, radius]``.

    Args:
        center: (S, ...).
        generators: (S, P, ...).
        radius: (S, ...).
        lower: The least value, (S, ...); may be tighter than the form.
        upper: The largest value.
    """

    center: Tensor
    generators: Tensor
    radius: Tensor
    lower: Tensor
    upper: Tensor

    def flat(self) -> LinearForms:
        """Return the forms of flattened values."""
        center, generators, radius, lower, upper = self
        rest = [value.flatten(1) for value in (radius, lower, upper)]
        return LinearForms(center.flatten(1), generators.flatten(2), *rest)

    def rows(self, index: Tensor) -> LinearForms:
        """Return the forms of some examples."""
        return LinearForms(*(value.index_select(0, index) for value in self))

    def without(self, parameters: Tensor) -> LinearForms:
        """Return the forms with the generators of some parameters counted to the remainder.

        Args:
            parameters: A mask, (P,).
        """
        radius = self.radius + self.generators[:, parameters].abs().sum(1)
        return self._replace(generators=self.generators[:, ~parameters], radius=radius)

    def tightened(self) -> LinearForms:
        """Return the forms with the interval in place of those whose remainder is no narrower.

        Such an interval holds the value without any parameter, and adds less to what follows.

        Example:
            >>> one = torch.ones(1, 1)
            >>> LinearForms(one, 3 * one.unsqueeze(1), one, 0 * one, one).tightened().radius
            tensor([[0.5000]])
        """
        ends = Interval(self.lower, self.upper)
        # Arithmetic with zeros and ones, since torch selects elements many times more slowly.
        narrow = (self.radius < ends.half()).to(self.radius)
        return self._replace(
            center=torch.lerp(ends.middle(), self.center, narrow),
            generators=self.generators * narrow.unsqueeze(1),
            radius=torch.minimum(self.radius, ends.half()),
        )


def relu_form(
    center: Tensor, generators: Tensor, radius: Tensor, ends: Interval
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the form of ``relu(z)`` from that of z and its interval.

    With ``u = max(upper, 0)`` and ``l = min(lower, 0)``, ``relu(z) = s z + m + [-m, m]`` for
    ``s = u / (u - l)`` and ``m = -s l / 2``, which is exact where z is stable.

    Args:
        center: (S, ...).
        generators: (S, P, ...).
        radius: (S, ...).
        ends: The interval of z.

    Source: Singh et al. 2018, Fast and Effective Robustness Certification (DeepZ), theorem 3.1.
    """
    lower, upper = ends.lower.clamp(max=0), ends.upper.clamp(min=0)
    slope = upper / (upper - lower).clamp(min=torch.finfo(upper.dtype).tiny)
    height = slope * lower / -2
    return slope * center + height, generators * slope.unsqueeze(1), slope * radius + height
