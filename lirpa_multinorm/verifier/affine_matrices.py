"""The affine maps of a ReLU network as sparse matrices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Optional

import torch
from torch import Tensor

from .relu_network import ReluNetwork

_MAX_PULLED = (
    1 << 30
)  # linear forms times neurons: what is pulled back once to learn what a layer sees
_CHUNK = 1 << 20  # of which so much at once

Places = list[Optional[Tensor]]  # one entry for the input, then one for each ReLU


class SparseRows(NamedTuple):
    """A sparse matrix: where each row starts, and its columns and values."""

    start: Tensor
    column: Tensor
    value: Tensor
    width: int

    @classmethod
    def of(cls, dense: Tensor) -> SparseRows:
        """Return a dense matrix as a sparse one."""
        row, column = dense.nonzero(as_tuple=True)
        counts = row.bincount(minlength=len(dense))
        return cls(
            torch.cat([counts.new_zeros(1), counts.cumsum(0)]),
            column,
            dense[row, column],
            dense.shape[1],
        )

    @classmethod
    def joined(cls, parts: Sequence[SparseRows]) -> SparseRows:
        """Return matrices one below the other."""
        counts = torch.cat([part.start.diff() for part in parts])
        return cls(
            torch.cat([counts.new_zeros(1), counts.cumsum(0)]),
            torch.cat([part.column for part in parts]),
            torch.cat([part.value for part in parts]),
            parts[0].width,
        )

    def entries(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return (row, column, value) of the entries of some rows, which are counted anew."""
        counts = self.start[rows + 1] - self.start[rows]
        row = torch.arange(len(rows), device=rows.device).repeat_interleave(counts)
        first = self.start[rows] - (counts.cumsum(0) - counts)
        place = torch.arange(len(row), device=rows.device) + first[row]
        return row, self.column[place], self.value[place]

    def dense(self, rows: Tensor) -> Tensor:
        """Return some rows as a dense matrix."""
        row, column, value = self.entries(rows)
        found = value.new_zeros(len(rows), self.width)
        found[row, column] = value
        return found


class AffineMatrices:
    """The affine map of each layer of a network, written out when it is asked for and kept.

    Args:
        network: The network; its weights must stay as they are.
    """

    def __init__(self, network: ReluNetwork) -> None:
        self.network = network
        #: How many numbers the input has, and each layer.
        self.sizes = [network.input_shape.numel(), *[shape.numel() for shape in network.shapes]]
        self._found: dict[int, tuple[Tensor, list[SparseRows | None]]] = {}

    def affordable(self, layer: int) -> bool:
        """Whether the maps of the layers up to one can be written out in reasonable time."""
        pulled = [
            self.sizes[place + 1] * sum(self.sizes[: place + 1]) for place in range(layer + 1)
        ]
        return sum(pulled) <= _MAX_PULLED

    def of(self, layer: int, like: Tensor) -> tuple[Tensor, list[SparseRows | None]]:
        """Return (constants, matrices in the input and in each ReLU before the layer).

        A matrix is None where the layer does not look.

        Args:
            layer: The layer.
            like: Tensor of the type and on the device of the weights.
        """
        if layer not in self._found:
            chunks = [
                [constants, *[None if one is None else SparseRows.of(one) for one in parts]]
                for constants, parts in self.network.rows(layer, like, _CHUNK)
            ]
            constants, *matrices = zip(*chunks)
            self._found[layer] = (
                torch.cat(constants),
                [None if one[0] is None else SparseRows.joined(one) for one in matrices],
            )
        return self._found[layer]
