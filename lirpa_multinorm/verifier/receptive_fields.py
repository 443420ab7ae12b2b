"""The receptive fields of a layer's neurons, as matrices.

A neuron behind one or two convolutions depends on few pixels of the input and on few neurons of the
layers before it: its receptive field. Pulled back through matrices of the receptive field alone,
the neuron's bound costs a fraction of what it costs through the network, and is the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple, Union

import torch
from torch import Tensor

from ..perturbations import Region, take_rows
from .affine_matrices import AffineMatrices, Matrices
from .relu_network import LayeredNetwork, ReluNetwork

_FINE, _COARSE = 8, 3  # tiles of a layer of images, per side; one receptive field for each
_MANY = 2000  # neurons from which on fine tiles pay: each is a call, and a coarse one sees more
_MAX_KEPT = 1 << 25  # numbers in a layer's receptive fields; larger ones are made each time

#: Multiplications that take as long as a step of the whole network for one neuron: matrices pay
#: where they need fewer.
WORTH = 400


class ReceptiveField:
    """Neurons of one layer, and the matrices of the pixels and neurons that they depend on.

    It stands in for the :class:`ReluNetwork` wherever linear forms of these neurons are pulled
    back.

    Args:
        neurons: Indices of the neurons in the layer, (m,), rising.
        visible: Indices of the pixels, and of the neurons of each ReLU before the layer, that they
            depend on.
        maps: The affine map of each layer in the visible pixels and neurons: (constants, a matrix
            or None for each); linear forms are multiplied by a matrix as ``v @ matrix``.
    """

    def __init__(
        self, neurons: Tensor, visible: list[Tensor], maps: list[tuple[Tensor, Matrices]]
    ) -> None:
        self.neurons, self._visible, self._maps = neurons, visible, maps
        self.network: LayeredNetwork = self
        self.shapes = [constants.shape for constants, _ in maps]

    @property
    def size(self) -> int:
        """How many numbers the receptive field has for one input."""
        return sum(len(columns) for columns in self._visible) + len(self.neurons)

    def maps(self, rows: int, like: Tensor, depth: int | None = None) -> ReceptiveField:
        """Return the maps, which are the receptive field itself, whatever the arguments."""
        return self

    def pull(self, layer: int, v: Tensor) -> tuple[Tensor, Tensor | None, Matrices]:
        """Write linear forms of a layer, (R, n), as :meth:`AffineMaps.pull` does."""
        constants, matrices = self._maps[layer]
        forms = [None if matrix is None else v @ matrix for matrix in matrices]
        return v @ constants, forms[0], forms[1:]

    def regions(self, regions: Sequence[Region], rows: Tensor) -> list[Region]:
        """Return some rows of the regions at the input, of the visible pixels only."""
        return [region.columns(self._visible[0]) for region in take_rows(regions, rows)]

    def rows(self, values: Sequence[Tensor], rows: Tensor) -> list[Tensor]:
        """Return some rows of one tensor (R, n) per earlier layer, of its visible neurons only."""
        return [
            tensor.index_select(1, columns).index_select(0, rows)
            for tensor, columns in zip(values, self._visible[1:])
        ]


class WholeLayer:
    """All neurons of a layer with the network itself, where receptive fields would be too large.

    Args:
        network: The network.
        layer: The index of the layer.
        device: Where the bounds of the layer are.
    """

    def __init__(self, network: ReluNetwork, layer: int, device: torch.device) -> None:
        self.network: LayeredNetwork = network
        self._layer, self.size = layer, network.neurons
        self.neurons = torch.arange(network.shapes[layer].numel(), device=device)

    def regions(self, regions: Sequence[Region], rows: Tensor) -> list[Region]:
        """Return some rows of the regions at the input."""
        return take_rows(regions, rows)

    def rows(self, values: Sequence[Tensor], rows: Tensor) -> list[Tensor]:
        """Return some rows of one tensor (R, n) per layer, of the layers before this one."""
        return [tensor.index_select(0, rows) for tensor in values[: self._layer]]


AnyReceptiveField = Union[ReceptiveField, WholeLayer]


class ReceptiveFields:
    """The receptive fields of each hidden layer of a network, made when they are asked for.

    Args:
        matrices: The affine maps of the network.
    """

    def __init__(self, matrices: AffineMatrices) -> None:
        self._matrices, self._network, self._sizes = matrices, matrices.network, matrices.sizes
        self._views: dict[tuple[int, int], list[_View] | None] = {}
        self._kept: dict[tuple[int, int], list[AnyReceptiveField]] = {}
        #: Whether IBP leaves nothing to gain in layer 0.
        self.first_is_exact = matrices.network.first_is_exact()

    def of(self, layer: int, like: Tensor, neurons: int = _MANY) -> Iterable[AnyReceptiveField]:
        """Return what covers a layer: receptive fields, or one :class:`WholeLayer`.

        Args:
            layer: The index of the layer.
            like: Tensor of the type and on the device of the weights.
            neurons: How many neurons are to be bounded, of all examples.
        """
        key = layer, _FINE if neurons >= _MANY else _COARSE
        if key in self._kept:
            return self._kept[key]
        if key not in self._views:
            self._views[key] = self._views_of(*key, like)
        views = self._views[key]
        if views is None:
            return [WholeLayer(self._network, layer, like.device)]
        if sum(view.elements for view in views) > _MAX_KEPT:
            return (self._receptive_field(view, like) for view in views)
        return self._kept.setdefault(key, [self._receptive_field(view, like) for view in views])

    def output(self, like: Tensor) -> tuple[Tensor, Tensor | None, Matrices]:
        """Return the output as an affine map (constants, matrix in the input, in each ReLU).

        A matrix is None where the output does not depend on the input or the ReLU.
        """
        constants, matrices = self._matrices.of(len(self._sizes) - 2, like)
        all_rows = torch.arange(len(constants), device=like.device)
        at_input, *at_relus = [
            None if matrix is None else matrix.dense(all_rows) for matrix in matrices
        ]
        return constants, at_input, at_relus

    def _views_of(self, layer: int, tiles: int, like: Tensor) -> list[_View] | None:
        """Return the view of each tile of a layer; None where its matrices would be too large."""
        if not self._matrices.affordable(layer):
            return None
        views = []
        for neurons in _tiles(self._network.shapes[layer], tiles, like.device):
            view = self._view(layer, neurons, like)
            if view.elements > WORTH * sum(self._sizes[: layer + 1]):
                return None
            views.append(view)
        return views

    def _view(self, layer: int, neurons: Tensor, like: Tensor) -> _View:
        """Return the view of neurons on the input and on the ReLUs before them."""
        marks = [
            torch.zeros(size, dtype=torch.bool, device=like.device)
            for size in self._sizes[: layer + 1]
        ]
        links, rows = [], neurons
        for depth in range(layer, -1, -1):
            for source, matrix in enumerate(self._matrices.of(depth, like)[1]):
                if matrix is not None:
                    marks[source][matrix.entries(rows)[1]] = True
                    links.append((len(rows), source))
            rows = marks[depth].nonzero().squeeze(1)
        visible = [mark.nonzero().squeeze(1) for mark in marks]
        return _View(neurons, visible, sum(count * len(visible[source]) for count, source in links))

    def _receptive_field(self, view: _View, like: Tensor) -> ReceptiveField:
        """Cut the matrices of a view out of the network's."""
        maps = [
            self._restricted(layer, rows, view.visible, like)
            for layer, rows in enumerate([*view.visible[1:], view.neurons])
        ]
        return ReceptiveField(view.neurons, view.visible, maps)

    def _restricted(
        self, layer: int, rows: Tensor, visible: list[Tensor], like: Tensor
    ) -> tuple[Tensor, Matrices]:
        constants, matrices = self._matrices.of(layer, like)
        restricted = [
            None if matrix is None else matrix.dense(rows)[:, columns]
            for matrix, columns in zip(matrices, visible)
        ]
        return constants[rows], restricted


class _View(NamedTuple):
    """Neurons of a layer, what is visible to them, and how many numbers the matrices have."""

    neurons: Tensor
    visible: list[Tensor]
    elements: int


def _tiles(shape: torch.Size, count: int, device: torch.device) -> list[Tensor]:
    """Return a layer's neurons, for images (C, H, W) in at most ``count`` tiles a side."""
    neurons = torch.arange(shape.numel(), device=device).view(shape)
    if len(shape) != 3:
        return [neurons.flatten()]
    height, width = (-(-side // count) for side in shape[1:])
    return [tile.flatten() for band in neurons.split(height, 1) for tile in band.split(width, 2)]
