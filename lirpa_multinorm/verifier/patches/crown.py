"""CROWN where one rectangle of an image is free, through what the rectangle reaches alone."""

from __future__ import annotations

import torch
from torch import Tensor

from ...utils.modes import tensor_float_32
from ..relaxations.crown import CrownSlopes
from ..relu_network import propagated_backward
from .differences import Differences
from .reach import Rectangle

_PROSPECT = 0.35  # share of a value that CROWN's bound may lack for hidden layers to be bounded


class RectangleCrown:
    """CROWN's bounds of linear forms on one image with one rectangle free.

    The neurons that the rectangle does not reach keep their clean values, which belong to the
    constants. Hidden intervals are those of the difference to the clean image or, where more is
    needed, CROWN's alone, as the host has them.

    Args:
        differences: Interval arithmetic of the images.
        rectangle: The free pixels.
        image: Which image.

    Source: Zhang et al. 2018 (CROWN), with the adaptive lower slope.
    """

    def __init__(self, differences: Differences, rectangle: Rectangle, image: int) -> None:
        (family,) = differences.reaches.families([rectangle], differences.images)
        index = torch.tensor([image], device=differences.images.device)
        intervals = differences.intervals(family, torch.zeros_like(index), index)
        self._ends = list(zip(intervals.lower, intervals.upper))
        columns = [column[0] for column in intervals.columns]
        self._matrices = [
            {source: link.dense(columns[source]) for source, link in layer.items()}
            for layer in family.links
        ]
        clean = [value[image, column] for value, column in zip(differences.clean, columns)]
        clean.append(differences.output[image])
        given = [clean[0], *[value.relu() for value in clean[1:-1]]]
        self._constants = [
            value - sum(given[source] @ matrix for source, matrix in layer.items())
            for value, layer in zip(clean[1:], self._matrices)
        ]
        self._clean, self._shapes = clean[1:], [value.shape for value in clean[1:]]
        #: Coefficients that linear forms were multiplied by, half a pass for all of the network's.
        self.work = 0.0

    def bounds(self, v: Tensor, enough: Tensor, tighten: bool) -> Tensor:
        """Return lower bounds of linear forms of the output, (S,).

        Args:
            v: Linear forms, (S, K).
            enough: What their bounds must exceed, (S,).
            tighten: Whether hidden layers are bounded by CROWN as well, where their intervals do
                not suffice but may nearly do.
        """
        with torch.no_grad(), tensor_float_32(False):
            last = len(self._shapes) - 1
            bounds, value = self._bounded(last, v), v @ self._clean[last]
            lack = (enough - bounds) / (value - bounds)
            if not tighten or bool((lack <= 0).all()) or not bool((lack < _PROSPECT).all()):
                return bounds
            for layer in range(1, last):
                self._tighten(layer)
            return torch.maximum(bounds, self._bounded(last, v))

    def pull(self, layer: int, v: Tensor) -> tuple[Tensor, Tensor | None, list[Tensor | None]]:
        """Write linear forms of a layer, (R, m), as :meth:`AffineMaps.pull` does."""
        matrices = self._matrices[layer]
        self.work += sum(len(v) * int((matrix != 0).sum()) / 2 for matrix in matrices.values())
        forms = [
            v @ matrices[source].transpose(0, 1) if source in matrices else None
            for source in range(layer + 1)
        ]
        return v @ self._constants[layer], forms[0], forms[1:]

    def _bounded(self, layer: int, v: Tensor) -> Tensor:
        """Return CROWN's lower bounds of linear forms of a layer on the present intervals."""
        slopes = CrownSlopes.on(self._ends[1 : layer + 1])
        value, at_input = propagated_backward(self, self._shapes[: layer + 1], v, slopes.relax)
        if at_input is None:
            return value
        lower, upper = self._ends[0]
        return value + at_input.clamp(min=0) @ lower[0] + at_input.clamp(max=0) @ upper[0]

    def _tighten(self, layer: int) -> None:
        """Replace the intervals of a layer's unstable neurons by CROWN's."""
        lower, upper = self._ends[layer + 1]
        unstable = ((lower < 0) & (upper > 0))[0].nonzero().squeeze(1)
        if not len(unstable):
            return
        forms = lower.new_zeros(2 * len(unstable), lower.shape[1])
        forms[torch.arange(len(forms), device=forms.device), unstable.repeat(2)] = 1
        forms[len(unstable) :].neg_()
        below, above = self._bounded(layer, forms).chunk(2)
        lower, upper, clean = lower.clone(), upper.clone(), self._clean[layer][unstable]
        # Rounding must not leave the clean value just outside.
        lower[0, unstable] = torch.minimum(below, clean)
        upper[0, unstable] = torch.maximum(-above, clean)
        self._ends[layer + 1] = lower, upper
