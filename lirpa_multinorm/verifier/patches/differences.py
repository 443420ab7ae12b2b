"""Interval arithmetic for rectangles of free pixels, by the difference to the clean image.

Only neurons that the free pixels can reach change. With ``z`` the clean value of a layer and
``d_s`` the intervals in which the pixels and ReLUs before it differ from their clean values, the
layer lies in ``z + sum over s of M_s d_s``, and its ReLU differs by ``ReLU(z + d) - ReLU(z)``: by
nothing at all where it stays inactive, which then costs nothing behind it. In exact arithmetic this
is interval arithmetic of the whole image with the affine maps between ReLUs written out.

Source: Chiang et al. 2020, Certified Defenses for Adversarial Patches, section 4, for interval
bounds of patches; the difference is this package's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ...errors import NaNBoundError
from ...utils.modes import tensor_float_32
from ..relu_network import ReluNetwork
from .links import Move
from .reach import Family, Reaches, Rectangle

_MAX_NUMBERS = 1 << 20  # numbers of intervals that are carried at once


class Intervals(NamedTuple):
    """What rectangles reach, for R pairs of a rectangle and an image.

    Args:
        columns: Indices of pixels and of each ReLU's neurons, (R, k) each.
        lower: Lower ends of the pixels and of the layers before the ReLUs, (R, k) each.
        upper: Upper ends.
        bounds: Lower bounds of the linear forms, (R, S).
        passes: The passes that they took, (R,).
    """

    columns: list[Tensor]
    lower: list[Tensor]
    upper: list[Tensor]
    bounds: Tensor
    passes: Tensor


class Differences:
    """Bounds of linear forms where rectangles of some images are free.

    Args:
        network: The network.
        reaches: What rectangles reach.
        images: (B, C, H, W).
        C: Linear forms of the output for each image, (B, S, K).

    Raises:
        NaNBoundError: A clean value is NaN.
    """

    def __init__(self, network: ReluNetwork, reaches: Reaches, images: Tensor, C: Tensor) -> None:
        self.reaches, self.images, self.C = reaches, images, C
        *hidden, output = [value.flatten(1) for value in network.layers(images)]
        #: The clean values of the pixels, of the layers before ReLUs, and of the output.
        self.clean, self.output = [images.flatten(1), *hidden], output
        self.value = torch.matmul(C, output.unsqueeze(2)).squeeze(2)
        if any(bool(value.isnan().any()) for value in (*self.clean, self.value)):
            raise NaNBoundError(
                "the clean values of the network contain NaN; check the model's weights for NaN or "
                "infinite values, or use float64"
            )
        links, last = reaches.links(images), len(hidden)
        #: Those of a pass of interval arithmetic.
        self.multiplications = links.multiplications(network.graph)
        with tensor_float_32(False):
            self._forms = {
                source: torch.matmul(C, links.whole(last, source).matrix.T)
                for source in links.sources(last)
            }

    def bounds(
        self, rectangles: Sequence[Rectangle], rectangle: Tensor, image: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Bound the linear forms for pairs of a rectangle and an image.

        Args:
            rectangles: Rectangles of pixels.
            rectangle: Which of them, (R,).
            image: Which image, (R,).

        Returns:
            Lower bounds (R, S), and the passes that they took, (R,).
        """
        bounds = self.value.new_empty(len(image), self.C.shape[1])
        passes = self.value.new_empty(len(image))
        used = rectangle.unique().tolist()
        rank = torch.full((len(rectangles),), -1, device=rectangle.device)
        rank[used] = torch.arange(len(used), device=rectangle.device)
        number = rank[rectangle]
        for family in self.reaches.families([rectangles[number] for number in used], self.images):
            position = torch.full((len(used),), -1, device=number.device)
            position[family.members] = torch.arange(len(family.members), device=number.device)
            member = position[number]
            rows = (member >= 0).nonzero().squeeze(1)
            rows = rows[member[rows].argsort(stable=True)]
            width = sum(columns.shape[1] for columns in family.columns) + 1
            for part in rows.split(max(1, _MAX_NUMBERS // width)):
                result = self.intervals(family, member[part], image[part])
                bounds[part], passes[part] = result.bounds, result.passes
        return bounds, passes

    def intervals(self, family: Family, member: Tensor, image: Tensor) -> Intervals:
        """Bound layers and linear forms for pairs of a member of a family and an image.

        Args:
            family: Rectangles that look alike.
            member: Which of them, (R,), equal ones behind each other.
            image: Which image, (R,).
        """
        columns = [columns.index_select(0, member) for columns in family.columns]
        pixels = _taken(self.clean[0], image, columns[0])
        lower, upper = [pixels.clamp(max=0)], [pixels.clamp(min=1)]
        moves = [_move(lower[0] - pixels, upper[0] - pixels)]
        work = self.value.new_zeros(len(image))
        with tensor_float_32(False):
            for layer, neurons in enumerate(columns[1:]):
                clean = _taken(self.clean[layer + 1], image, neurons)
                center, radius = clean, torch.zeros_like(clean)
                for source, link in family.links[layer].items():
                    parts = link.applied(moves[source], columns[source])
                    center, radius = center + parts[0], radius + parts[1]
                    work += link.count(moves[source].changed, columns[source])
                lower.append(center - radius)
                upper.append(center + radius)
                relu = clean.relu()
                moves.append(_move(lower[-1].relu() - relu, upper[-1].relu() - relu))
            bounds = self.value[image]
            for source in family.links[-1]:
                forms = self._forms[source].index_select(0, image)
                if columns[source].shape[1] < forms.shape[2]:
                    index = columns[source].unsqueeze(1).expand(-1, forms.shape[1], -1)
                    forms = forms.gather(2, index)
                move = moves[source]
                bounds = bounds + torch.matmul(forms, move.center.unsqueeze(2)).squeeze(2)
                bounds -= torch.matmul(forms.abs(), move.radius.unsqueeze(2)).squeeze(2)
                work += move.changed.sum(1) * forms.shape[1]
        return Intervals(columns, lower, upper, bounds, work / self.multiplications)


def _taken(values: Tensor, image: Tensor, columns: Tensor) -> Tensor:
    """Return some columns (R, k) of some rows (R,) of values (B, n)."""
    index = columns + (image * values.shape[1]).unsqueeze(1)
    return values.flatten().index_select(0, index.flatten()).view(columns.shape)


def _move(lower: Tensor, upper: Tensor) -> Move:
    """Return differences in intervals; rounding must not leave zero out, the clean value."""
    lower, upper = lower.clamp(max=0), upper.clamp(min=0)
    radius = (upper - lower) / 2
    return Move((lower + upper) / 2, radius, radius.sign())
