"""What rectangles of pixels reach in a network, and families of rectangles that look alike."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..affine_matrices import AffineMatrices
from .links import Link, Links

_MAX_KEPT = 1 << 27  # numbers in the links that are kept; beyond it they are made anew


class Rectangle(NamedTuple):
    """Pixels of an image: where they begin, and how many rows and columns there are."""

    top: int
    left: int
    height: int
    width: int


class Reach(NamedTuple):
    """What a rectangle of pixels reaches.

    Args:
        columns: Indices of the pixels, and of the neurons of each ReLU that depend on them.
        links: The matrices of each layer, by source, between those.
    """

    columns: list[Tensor]
    links: list[dict[int, Link]]

    def looks(self) -> tuple:
        """Return what rectangles of a family have in common."""
        links = [
            tuple((source, id(link)) for source, link in layer.items()) for layer in self.links
        ]
        return tuple(map(len, self.columns)), tuple(links)


class Family(NamedTuple):
    """Rectangles with the same matrices between what they reach.

    Args:
        members: Which of the rectangles that were asked for, (M,).
        columns: As of :class:`Reach`, one row for each member, (M, k).
        links: As of :class:`Reach`.
    """

    members: Tensor
    columns: list[Tensor]
    links: list[dict[int, Link]]


class Reaches:
    """The reach of each rectangle of a network's input, found when it is asked for and kept.

    Args:
        matrices: The affine maps of the network, whose input is an image (C, H, W).
    """

    def __init__(self, matrices: AffineMatrices) -> None:
        self._matrices = matrices
        self._links: Links | None = None
        self._known: dict[Rectangle, Reach] = {}
        self._shape = matrices.network.input_shape

    def affordable(self) -> bool:
        """Return whether the matrices of all layers are written out in reasonable time."""
        return self._matrices.affordable(len(self._matrices.sizes) - 2)

    def links(self, like: Tensor) -> Links:
        """Return the links of the network."""
        if self._links is None:
            self._links = Links(self._matrices, like)
        return self._links

    def families(self, rectangles: Sequence[Rectangle], like: Tensor) -> list[Family]:
        """Return the rectangles as families.

        Args:
            rectangles: Rectangles of pixels.
            like: Tensor of the type and on the device of the weights.
        """
        if self._links is not None and self._links.kept > _MAX_KEPT:
            self._links, self._known = None, {}
        alike = defaultdict(list)
        for number, rectangle in enumerate(rectangles):
            alike[self.of(rectangle, like).looks()].append(number)
        families = []
        for members in alike.values():
            reaches = [self._known[rectangles[number]] for number in members]
            columns = [torch.stack(parts) for parts in zip(*(reach.columns for reach in reaches))]
            index = torch.tensor(members, device=like.device)
            families.append(Family(index, columns, reaches[0].links))
        return families

    def of(self, rectangle: Rectangle, like: Tensor) -> Reach:
        """Return what a rectangle reaches."""
        if rectangle not in self._known:
            self._known[rectangle] = self._reached(rectangle, like)
        return self._known[rectangle]

    def _reached(self, rectangle: Rectangle, like: Tensor) -> Reach:
        top, left, height, width = rectangle
        every = torch.arange(self._shape.numel(), device=like.device).view(self._shape)
        pixels = every[:, top : top + height, left : left + width].flatten()
        links = self.links(like)
        columns, by_layer = [pixels], []
        last = len(links.sizes) - 2
        for layer in range(last + 1):
            entries = {
                source: links.entries(layer, source, columns[source])
                for source in links.sources(layer)
                if len(columns[source])
            }
            # Linear forms see all outputs.
            marks = torch.full((links.sizes[layer + 1],), layer == last, device=like.device)
            for part in entries.values():
                marks[slice(None) if part is None else part[1]] = True
            columns.append(marks.nonzero().squeeze(1))
            by_layer.append(
                {
                    source: links.between(layer, source, columns[source], columns[-1], part)
                    for source, part in entries.items()
                }
            )
        return Reach(columns[:-1], by_layer)
