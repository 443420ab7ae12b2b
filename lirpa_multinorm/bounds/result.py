"""The result of a bounding call for a set: bounds, and the intermediate bounds behind them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Callable, NamedTuple

import torch
from torch import Tensor


class IntermediateIntervals(NamedTuple):
    """Interval bounds inside a network.

    Args:
        input: (lower, upper) of what the first layer sees (behind a normalisation).
        relus: (lower, upper) of each ReLU's input, in the network's order.
    """

    input: tuple[Tensor, Tensor]
    relus: list[tuple[Tensor, Tensor]]

    def rows(self, rows: slice) -> IntermediateIntervals:
        """Return the intervals of the examples in ``rows``."""
        return IntermediateIntervals(
            (self.input[0][rows], self.input[1][rows]),
            [(lower[rows], upper[rows]) for lower, upper in self.relus],
        )

    @classmethod
    def joined(cls, batches: Sequence[IntermediateIntervals]) -> IntermediateIntervals:
        """Return the intervals of several batches as those of one batch."""
        layers = zip(*[[batch.input, *batch.relus] for batch in batches])
        inputs, *relus = map(_joined_layer, layers)
        return cls(inputs, relus)


class Bounds(tuple):
    """Bounds on a set: they unpack as ``lower, upper``, and give the intermediate bounds.

    Args:
        lower: (B, S), or None where it was not asked for.
        upper: (B, S), or None.
        intermediate: Gives the intermediate bounds when they are asked for.

    Example:
        >>> lower, upper = Bounds(torch.zeros(1, 2), torch.ones(1, 2))
        >>> upper
        tensor([[1., 1.]])
    """

    _intermediate: Callable[[], IntermediateIntervals] | None

    def __new__(
        cls,
        lower: Tensor | None,
        upper: Tensor | None,
        intermediate: Callable[[], IntermediateIntervals] | None = None,
    ) -> Bounds:
        """Make the pair."""
        bounds = super().__new__(cls, (lower, upper))
        bounds._intermediate = intermediate
        return bounds

    def __reduce__(self) -> tuple:
        """Copy and pickle the bounds with the intermediate bounds as they are."""
        return _rebuilt, (self.lower, self.upper, self.intermediate)

    @property
    def lower(self) -> Tensor | None:
        """Lower bounds (B, S)."""
        return self[0]

    @property
    def upper(self) -> Tensor | None:
        """Upper bounds (B, S)."""
        return self[1]

    @property
    def intermediate(self) -> IntermediateIntervals | None:
        """The intervals of the hidden layers from which the method has bounded the output.

        Those of IBP have gradients. None for the bounds of a hidden node.
        """
        return None if self._intermediate is None else self._intermediate()

    @classmethod
    def joined(cls, batches: Sequence[Bounds]) -> Bounds:
        """Return the bounds of several batches as those of one batch."""
        lower, upper = (
            None if bounds[0] is None else torch.cat(bounds) for bounds in zip(*batches)
        )
        makers = [batch._intermediate for batch in batches if batch._intermediate is not None]
        if len(makers) < len(batches):
            return cls(lower, upper)
        return cls(lower, upper, lambda: IntermediateIntervals.joined([make() for make in makers]))


def _joined_layer(intervals: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Return the interval of a layer for several batches as that of one batch."""
    lower, upper = zip(*intervals)
    return torch.cat(lower), torch.cat(upper)


def _rebuilt(
    lower: Tensor | None, upper: Tensor | None, intermediate: IntermediateIntervals | None
) -> Bounds:
    """Return bounds whose intermediate bounds are at hand."""
    return Bounds(lower, upper, None if intermediate is None else lambda: intermediate)
