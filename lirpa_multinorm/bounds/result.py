"""What a bounding call returns for one set: the bounds, and the intermediate bounds behind them."""

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
        """Return the intervals of some examples."""
        return IntermediateIntervals(
            (self.input[0][rows], self.input[1][rows]),
            [(lower[rows], upper[rows]) for lower, upper in self.relus],
        )

    @classmethod
    def joined(cls, parts: Sequence[IntermediateIntervals]) -> IntermediateIntervals:
        """Return the intervals of several batches as those of one."""
        ends = zip(*[[part.input, *part.relus] for part in parts])
        first, *relus = [(torch.cat(lower), torch.cat(upper)) for lower, upper in map(_pair, ends)]
        return cls(first, relus)


class Bounds(tuple):
    """Bounds on one set: they unpack as ``lower, upper``, and know the intermediate bounds.

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
        """The intervals of the hidden layers that the method has bounded the output with.

        By IBP they have gradients. None where there are none, as for a hidden node's own bounds.
        """
        return None if self._intermediate is None else self._intermediate()

    @classmethod
    def joined(cls, parts: Sequence[Bounds]) -> Bounds:
        """Return the bounds of several batches as those of one."""
        ends = [None if end[0] is None else torch.cat(end) for end in zip(*parts)]
        inner = [part._intermediate for part in parts]
        if any(one is None for one in inner):
            return cls(*ends)
        return cls(*ends, lambda: IntermediateIntervals.joined([one() for one in inner]))


def _pair(ends: Sequence[tuple[Tensor, Tensor]]) -> tuple[list[Tensor], list[Tensor]]:
    """Return the lower and the upper ends of several batches."""
    return [lower for lower, _ in ends], [upper for _, upper in ends]
