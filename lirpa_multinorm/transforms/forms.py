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
        wide = self.radius >= ends.half()
        return self._replace(
            center=torch.where(wide, ends.middle(), self.center),
            generators=self.generators.masked_fill(wide.unsqueeze(1), 0),
            radius=torch.where(wide, ends.half(), self.radius),
        )


def relu_form(
    center: Tensor, generators: Tensor, radius: Tensor, ends: Interval
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the form of ``relu(z)`` from that of z and its interval.

    An unstable z has ``relu(z) = s z + m + [-m, m]`` with ``s = u / (u - l)``, ``m = -s l / 2``.

    Args:
        center: (S, ...).
        generators: (S, P, ...).
        radius: (S, ...).
        ends: The interval of z.

    Source: Singh et al. 2018, Fast and Effective Robustness Certification (DeepZ), theorem 3.1.
    """
    lower, upper = ends
    unstable = (lower < 0) & (upper > 0)
    chord = upper / (upper - lower).clamp(min=torch.finfo(upper.dtype).tiny)
    slope = torch.where(unstable, chord, (lower >= 0).to(upper))
    height = torch.where(unstable, -slope * lower / 2, torch.zeros_like(upper))
    return slope * center + height, generators * slope.unsqueeze(1), slope * radius + height
