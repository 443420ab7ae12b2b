"""The matrices between what rectangles of pixels reach, shared where rectangles look alike."""

from __future__ import annotations

import hashlib
from typing import NamedTuple, Union

import torch
from torch import Tensor

from ..affine_matrices import AffineMatrices, SparseRows
from ..network import CONVOLUTIONS, ModelGraph


class Move(NamedTuple):
    """Intervals of the differences of some neurons.

    Args:
        center: Their middles, (R, k).
        radius: Half their widths, (R, k).
        changed: 1 where the difference is not exactly zero, else 0, (R, k).
    """

    center: Tensor
    radius: Tensor
    changed: Tensor


class LocalLink:
    """The matrix between the neurons that a rectangle reaches in two layers.

    Args:
        matrix: Coefficients, (k, m): of k neurons in m.
    """

    def __init__(self, matrix: Tensor) -> None:
        self.matrix = matrix
        self._entries = (matrix != 0).sum(1).to(matrix)

    def count(self, changed: Tensor, columns: Tensor) -> Tensor:
        """Return how many coefficients that are not zero changed neurons have, (R,)."""
        return changed @ self._entries

    def applied(self, move: Move, columns: Tensor) -> tuple[Tensor, Tensor]:
        """Return how differences are carried on, (R, m); see :class:`WideLink`."""
        center, radius, matrix = move.center, move.radius, self.matrix
        live = move.changed.amax(0).nonzero().squeeze(1) if len(center) else columns[:0].flatten()
        if len(live) < len(matrix):
            center, radius = center.index_select(1, live), radius.index_select(1, live)
            matrix = matrix.index_select(0, live)
        return center @ matrix, radius @ matrix.abs()

    def dense(self, columns: Tensor) -> Tensor:
        """Return the matrix of a rectangle with some columns, (k, m)."""
        return self.matrix


class WideLink:
    """The matrix between the neurons that a rectangle reaches and a layer that it reaches all of.

    Args:
        matrix: Coefficients, (n, m): of all n neurons in m.
    """

    def __init__(self, matrix: Tensor) -> None:
        self.matrix = matrix
        self._entries = (matrix != 0).sum(1).to(matrix)
        self._is_even = bool((self._entries == self._entries[0]).all())

    def count(self, changed: Tensor, columns: Tensor) -> Tensor:
        """Return how many coefficients that are not zero changed neurons have, (R,)."""
        if self._is_even:
            return changed.sum(1) * self._entries[0]
        return (changed * self._entries[columns]).sum(1)

    def applied(self, move: Move, columns: Tensor) -> tuple[Tensor, Tensor]:
        """Return how differences are carried on.

        Args:
            move: The differences of R rows.
            columns: The neurons, (R, k); rows of the same rectangle follow each other.

        Returns:
            Middle and half width of the differences behind the matrix, (R, m) each.
        """
        sizes = _runs(columns)
        centers, radii = [], []
        for center, radius, changed, neurons in zip(
            *(field.split(sizes) for field in (*move, columns))
        ):
            live = changed.amax(0).nonzero().squeeze(1)
            matrix = self.matrix.index_select(0, neurons[0].index_select(0, live))
            centers.append(center.index_select(1, live) @ matrix)
            radii.append(radius.index_select(1, live) @ matrix.abs())
        return torch.cat(centers), torch.cat(radii)

    def dense(self, columns: Tensor) -> Tensor:
        """Return the matrix of a rectangle with some columns, (k, m)."""
        return self.matrix[columns]


Link = Union[LocalLink, WideLink]
#: Row, column and value of each entry, the rows numbered anew.
Entries = tuple[Tensor, Tensor, Tensor]


class Links:
    """The links of a network, made when they are asked for.

    Args:
        matrices: The affine maps of the network.
        like: Tensor of the type and on the device of the weights.
    """

    def __init__(self, matrices: AffineMatrices, like: Tensor) -> None:
        self.sizes, self._matrices, self._like = matrices.sizes, matrices, like
        self._by_column: dict[tuple[int, int], SparseRows] = {}
        self._wide: dict[tuple[int, int], WideLink] = {}
        self._local: dict[tuple, LocalLink] = {}
        self._multiplications: int | None = None
        #: How many numbers the links hold.
        self.kept = 0

    def sources(self, layer: int) -> list[int]:
        """Return the sources of a layer that it depends on: 0 is the input, then each ReLU."""
        matrices = self._matrices.of(layer, self._like)[1]
        return [source for source, matrix in enumerate(matrices) if matrix is not None]

    def multiplications(self, graph: ModelGraph) -> int:
        """Return by how many coefficients interval arithmetic of a whole input multiplies.

        For each number that a convolution or a linear layer puts out these are as many as its
        kernel or row has, those over padding among them; of other operators only the coefficients
        of the written-out matrices are known.
        """
        if self._multiplications is None:
            by_matrix = sum(
                len(self.by_column(layer, source).value)
                for layer in range(len(self.sizes) - 1)
                for source in self.sources(layer)
            )
            self._multiplications = max(by_matrix, _by_kernels(graph))
        return self._multiplications

    def by_column(self, layer: int, source: int) -> SparseRows:
        """Return a matrix of the network with a row for each neuron of the source."""
        key = layer, source
        if key not in self._by_column:
            matrix = self._matrices.of(layer, self._like)[1][source]
            assert matrix is not None  # one of the layer's sources
            self._by_column[key] = _transposed(matrix)
        return self._by_column[key]

    def entries(self, layer: int, source: int, columns: Tensor) -> Entries | None:
        """Return the entries of a matrix from some neurons of a source; None if it has no zeros."""
        matrix = self.by_column(layer, source)
        if len(matrix.value) == self.sizes[source] * matrix.width:
            return None
        return matrix.entries(columns)

    def whole(self, layer: int, source: int) -> WideLink:
        """Return the link from all neurons of a source to all of a layer."""
        key = layer, source
        if key not in self._wide:
            matrix = self.by_column(layer, source)
            everything = torch.arange(self.sizes[source], device=matrix.start.device)
            self._wide[key] = WideLink(matrix.dense(everything))
            self.kept += len(everything) * matrix.width
        return self._wide[key]

    def between(
        self, layer: int, source: int, columns: Tensor, rows: Tensor, entries: Entries | None
    ) -> Link:
        """Return the link from some neurons of a source to some of a layer, equal ones once.

        Args:
            layer: The layer.
            source: The source.
            columns: The source's neurons, (k,).
            rows: The layer's neurons, (m,), rising; all that depend on those are among them.
            entries: What :meth:`entries` returns for the columns.
        """
        width = self.by_column(layer, source).width
        if entries is None or len(rows) == width:
            return self.whole(layer, source)
        local, row, value = entries
        number = torch.empty(width, dtype=torch.int32, device=columns.device)
        number[rows] = torch.arange(len(rows), dtype=torch.int32, device=columns.device)
        row, local = number[row], local.int()
        print_of = hashlib.blake2b(digest_size=20)
        for part in (local, row, value):
            print_of.update(part.cpu().numpy().data)
        full = layer, source, len(columns), len(rows), print_of.digest()
        if full not in self._local:
            dense = value.new_zeros(len(columns), len(rows))
            dense[local, row] = value
            self._local[full] = LocalLink(dense)
            self.kept += dense.numel()
        return self._local[full]


def _transposed(matrix: SparseRows) -> SparseRows:
    """Return a sparse matrix with its rows and columns exchanged."""
    height = len(matrix.start) - 1
    row = torch.arange(height, device=matrix.start.device).repeat_interleave(matrix.start.diff())
    order = matrix.column.argsort(stable=True)
    counts = matrix.column.bincount(minlength=matrix.width)
    start = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    return SparseRows(start, row[order], matrix.value[order], height)


def _by_kernels(graph: ModelGraph) -> int:
    """Return how many coefficients the convolutions and linear layers of a network apply."""
    total = 0
    for index in graph.needed([graph.output], [0]):
        step = graph.steps[index]
        of_kernels = step.operator in CONVOLUTIONS and "transpose" not in step.operator
        if step.operator == "linear" or of_kernels:
            total += step.example_shape.numel() * step.arguments["weight"][0].numel()
    return total


def _runs(columns: Tensor) -> list[int]:
    """Return how many rows of the same columns follow each other, run by run."""
    if len(columns) < 2:
        return [len(columns)]
    changes = (columns[1:] != columns[:-1]).any(1).nonzero().squeeze(1) + 1
    ends = [0, *changes.tolist(), len(columns)]
    return [end - start for start, end in zip(ends, ends[1:])]
