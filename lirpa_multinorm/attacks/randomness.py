"""Random numbers that depend on the examples, not on the batch that they are in."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor


class RowGenerator:
    """A random source with a stream for each row, however the rows are batched.

    Args:
        keys: What seeds the stream of each row: anything whose ``repr`` is the same in every run,
            such as a tuple of numbers.

    Example:
        >>> both, second = RowGenerator([(0, "a"), (0, "b")]), RowGenerator([(0, "b")])
        >>> torch.equal(both.rand((2, 3))[1], second.rand((1, 3))[0])
        True
    """

    def __init__(self, keys: Iterable) -> None:
        self.generators = [torch.Generator().manual_seed(_seed(key)) for key in keys]

    def rand(self, shape, dtype: torch.dtype | None = None) -> Tensor:
        """Return uniform numbers in [0, 1), on the CPU; shape is (rows, ...)."""
        return torch.stack(
            [
                torch.rand(shape[1:], generator=source, dtype=dtype, device="cpu")
                for source in self.generators
            ]
        )

    def randn(self, shape, dtype: torch.dtype | None = None) -> Tensor:
        """Return standard normal numbers, on the CPU; shape is (rows, ...)."""
        return torch.stack(
            [
                torch.randn(shape[1:], generator=source, dtype=dtype, device="cpu")
                for source in self.generators
            ]
        )


def _seed(key) -> int:
    return int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:8], "big", signed=True)
