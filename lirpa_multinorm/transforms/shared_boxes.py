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
from .warp import grid_sampled, sampling_grid


class SharedBoxes(NamedTuple):
    """Which of S examples have which of U different boxes.

    Args:
        box_of: The box of each example, (S,).
        first: An example of each box, (U,).
        groups: The boxes that equally many examples have, (G,), and these examples, (G, k), for
            each such number k.
        order: Where each example is among those of all groups, (S,).
    """

    box_of: Tensor
    first: Tensor
    groups: list[tuple[Tensor, Tensor]]
    order: Tensor

    @classmethod
    def of(cls, *keys: Tensor) -> SharedBoxes:
        """Return the boxes of examples whose keys, (S, ...) each, are the same.

        Example:
            >>> SharedBoxes.of(torch.tensor([[0.5], [0.1], [0.5]])).box_of
            tensor([1, 0, 1])
        """
        joined = torch.cat(keys, dim=1)
        index = torch.unique(joined, dim=0, return_inverse=True)[1]
        by_box, counts = index.argsort(stable=True), index.bincount()
        first = counts.cumsum(0) - counts
        groups = []
        for count in counts.unique().tolist():
            boxes = (counts == count).nonzero().squeeze(1)
            steps = torch.arange(count, device=index.device)
            groups.append((boxes, by_box[first[boxes].unsqueeze(1) + steps]))
        order = torch.cat([examples.flatten() for _, examples in groups]).argsort()
        return cls(index, by_box[first], groups, order)

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
            lambda values: _least_and_largest(values.unflatten(2, (count, -1))),
        )
        return Interval(*(end.unflatten(2, shape) for end in (lower, upper)))

    def _each(
        self, images: Tensor, x: Tensor, y: Tensor, function: Callable[[Tensor], tuple[Tensor, ...]]
    ) -> list[Tensor]:
        """Sample boxes and apply a function of the values; return its results by example."""
        results, grid = [], sampling_grid(images, x, y)
        for boxes, examples in self.groups:
            values = grid_sampled(images[examples].flatten(1, 2), grid[boxes])
            results.append(function(values.view(examples.numel(), images.shape[1], -1)))
        return [torch.cat(parts)[self.order] for parts in zip(*results)]


def _least_and_largest(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return the extremes along dimension 2; two reductions are much faster than ``aminmax``."""
    return values.amin(2), values.amax(2)
