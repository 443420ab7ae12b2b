"""The affine maps of a ReLU network as sparse matrices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Optional

import torch
from torch import Tensor

from .relu_network import ReluNetwork

_MAX_PULLED = 1 << 30  # linear forms times neurons, to write out the maps of all layers
_CHUNK = 1 << 20  # linear forms times neurons that are pulled back at once

#: Matrices of an affine map: in the input, then in each ReLU; None where the map is zero.
Matrices = list[Optional[Tensor]]


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
    def joined(cls, matrices: Sequence[SparseRows]) -> SparseRows:
        """Return matrices stacked one below the other."""
        counts = torch.cat([matrix.start.diff() for matrix in matrices])
        return cls(
            torch.cat([counts.new_zeros(1), counts.cumsum(0)]),
            torch.cat([matrix.column for matrix in matrices]),
            torch.cat([matrix.value for matrix in matrices]),
            matrices[0].width,
        )

    def entries(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return (row, column, value) of the entries of some rows, which are numbered anew."""
        counts = self.start[rows + 1] - self.start[rows]
        row = torch.arange(len(rows), device=rows.device).repeat_interleave(counts)
        first = self.start[rows] - (counts.cumsum(0) - counts)
        entry = torch.arange(len(row), device=rows.device) + first[row]
        return row, self.column[entry], self.value[entry]

    def dense(self, rows: Tensor) -> Tensor:
        """Return some rows as a dense matrix."""
        row, column, value = self.entries(rows)
        dense = value.new_zeros(len(rows), self.width)
        dense[row, column] = value
        return dense


class AffineMatrices:
    """The affine map of each layer of a network, written out when it is asked for and kept.

    Args:
        network: The network; its weights must stay as they are.
    """

    def __init__(self, network: ReluNetwork) -> None:
        self.network = network
        #: How many numbers the input and each layer have.
        self.sizes = [network.input_shape.numel(), *[shape.numel() for shape in network.shapes]]
        self._maps: dict[int, tuple[Tensor, list[SparseRows | None]]] = {}

    def affordable(self, layer: int) -> bool:
        """Return whether the maps of the layers up to one are written out in reasonable time."""
        pulled = [
            self.sizes[depth + 1] * sum(self.sizes[: depth + 1]) for depth in range(layer + 1)
        ]
        return sum(pulled) <= _MAX_PULLED

    def of(self, layer: int, like: Tensor) -> tuple[Tensor, list[SparseRows | None]]:
        """Return (constants, matrices in the input and in each ReLU before the layer).

        A matrix is None where the layer does not depend on the input or the ReLU.

        Args:
            layer: The index of the layer.
            like: Tensor of the type and on the device of the weights.
        """
        if layer not in self._maps:
            constants, chunks = [], []
            for chunk_constants, dense_matrices in self.network.rows(layer, like, _CHUNK):
                constants.append(chunk_constants)
                chunks.append(
                    [None if dense is None else SparseRows.of(dense) for dense in dense_matrices]
                )
            self._maps[layer] = torch.cat(constants), [_joined(rows) for rows in zip(*chunks)]
        return self._maps[layer]


def _joined(chunks: Sequence[SparseRows | None]) -> SparseRows | None:
    """Return the rows of a matrix, chunk below chunk; None if the map does not depend on it."""
    present = [rows for rows in chunks if rows is not None]
    return SparseRows.joined(present) if chunks[0] is not None else None
