"""Boxes of parameters that several images share: where they sample is calculated once.

Coordinates depend on the parameters alone. So images of one box are sampled together, as channels
of one image, and the weights of the interpolation are calculated once for all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .interval import Interval
from .warp import grid_sampled, sampled, sampling_grid


class SharedBoxes(NamedTuple):
    """Which of S examples have which of U different boxes.

    Args:
        box_of: The box of each example, (S,).
        first: An example of each box, (U,).
        members: The examples of each box.
        places: Where each example is among those of all boxes, box by box, (S,).
    """

    box_of: Tensor
    first: Tensor
    members: list[Tensor]
    places: Tensor

    @classmethod
    def of(cls, *keys: Tensor) -> SharedBoxes:
        """Return the boxes of examples whose keys, (S, ...) each, are the same.

        Example:
            >>> SharedBoxes.of(torch.tensor([[0.5], [0.1], [0.5]])).box_of
            tensor([1, 0, 1])
        """
        joined = torch.cat(keys, dim=1)
        index = torch.unique(joined, dim=0, return_inverse=True)[1]
        order, counts = index.argsort(stable=True), index.bincount()
        places = torch.empty_like(order)
        places[order] = torch.arange(len(order), device=order.device)
        return cls(
            index, order[counts.cumsum(0) - counts], list(order.split(counts.tolist())), places
        )

    def sampled(self, images: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """Return images at the coordinates of their boxes, (S, C, n).

        Args:
            images: (S, C, H, W).
            x: Indices of columns, (U, n).
            y: Indices of rows.
        """
        return self._each(images, x, y, lambda values: (values,))[0]

    def sampled_range(self, images: Tensor, columns: Tensor, rows: Tensor) -> Interval:
        """Return the least and the largest value at all pairs of coordinates, (S, C, *shape).

        Args:
            images: (S, C, H, W).
            columns: x, (U, k, *shape).
            rows: y, (U, l, *shape).
        """
        count, shape = columns.shape[1] * rows.shape[1], rows.shape[2:]
        size = len(columns), rows.shape[1], columns.shape[1], *shape
        x, y = columns.unsqueeze(1).expand(size), rows.unsqueeze(2).expand(size)
        lower, upper = self._each(
            images,
            x.flatten(1),
            y.flatten(1),
            lambda values: torch.aminmax(values.unflatten(2, (count, -1)), dim=2),
        )
        return Interval(*(end.unflatten(2, shape) for end in (lower, upper)))

    def _each(
        self, images: Tensor, x: Tensor, y: Tensor, function: Callable[[Tensor], tuple[Tensor, ...]]
    ) -> list[Tensor]:
        """Sample box by box and apply a function of the values; return its results by example."""
        if len(self.members) == len(images):
            return list(function(sampled(images, x[self.box_of], y[self.box_of])))
        results, grids = [], sampling_grid(images, x, y).split(1)
        for members, grid in zip(self.members, grids):
            inside = images[members]
            values = grid_sampled(inside.flatten(0, 1).unsqueeze(0), grid)
            results.append(function(values.view(*inside.shape[:2], -1)))
        return [torch.cat(parts)[self.places] for parts in zip(*results)]
