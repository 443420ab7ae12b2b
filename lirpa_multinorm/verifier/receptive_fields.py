"""The part of a ReLU network that some neurons of a layer look at, as matrices.

A neuron behind one or two convolutions sees a small part of the input and of the layers before it.
Pulled back through matrices of that part alone, its bound costs a fraction of what it costs through
the whole network, and is the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple, Union

import torch
from torch import Tensor

from ..perturbations import Region, take_rows
from .affine_matrices import AffineMatrices, Places
from .relu_network import ReluNetwork

_FINE, _COARSE = 8, 3  # windows of a layer of images, per side
_MANY = 2000  # neurons from which on fine windows pay: each is a call, and a coarse one sees more
_MAX_KEPT = 1 << 25  # numbers in a layer's windows; larger ones are made each time

#: Multiplications that take as long as a step of the whole network for one neuron: where matrices
#: pay.
WORTH = 400


class ReceptiveField:
    """Neurons of one layer, and the matrices of all that they see.

    It stands in for the :class:`ReluNetwork` wherever linear forms of these neurons are pulled
    back.

    Args:
        neurons: Their places in the layer, (m,), rising.
        seen: Places of what they see of the input and of each ReLU before the layer.
        maps: Per layer, as functions of what is seen of the layers before: (constants, a matrix or
            None for each); a matrix is what linear forms can be multiplied by, ``v @ matrix``.
    """

    def __init__(
        self, neurons: Tensor, seen: list[Tensor], maps: list[tuple[Tensor, Places]]
    ) -> None:
        self.neurons, self._seen, self._maps = neurons, seen, maps
        self.network = self
        self.shapes = [constants.shape for constants, _ in maps]

    @property
    def size(self) -> int:
        """How many numbers the window has for one input."""
        return sum(len(one) for one in self._seen) + len(self.neurons)

    def maps(self, rows: int, like: Tensor, depth: int | None = None) -> ReceptiveField:
        """Return what pulls linear forms back: the window itself, whatever the arguments."""
        return self

    def pull(self, layer: int, v: Tensor) -> tuple[Tensor, Tensor | None, Places]:
        """Write linear forms of a layer, (R, n), as :meth:`AffineMaps.pull` does."""
        constants, matrices = self._maps[layer]
        parts = [None if one is None else v @ one for one in matrices]
        return v @ constants, parts[0], parts[1:]

    def regions(self, regions: Sequence[Region], rows: Tensor) -> list[Region]:
        """Return some rows of the regions at the input, as far as the window sees it."""
        return [one.columns(self._seen[0]) for one in take_rows(regions, rows)]

    def rows(self, values: Sequence[Tensor], rows: Tensor) -> list[Tensor]:
        """Return some rows of one tensor (R, n) per earlier layer, of what is seen of each."""
        return [
            one.index_select(1, places).index_select(0, rows)
            for one, places in zip(values, self._seen[1:])
        ]


class WholeLayer:
    """All neurons of a layer, with the network itself behind them.

    Where windows would be too large.

    Args:
        network: The network.
        layer: The layer.
    """

    def __init__(self, network: ReluNetwork, layer: int) -> None:
        self.network, self._layer = network, layer
        self.neurons, self.size = torch.arange(network.shapes[layer].numel()), network.neurons

    def regions(self, regions: Sequence[Region], rows: Tensor) -> list[Region]:
        """Return some rows of the regions at the input."""
        return take_rows(regions, rows)

    def rows(self, values: Sequence[Tensor], rows: Tensor) -> list[Tensor]:
        """Return some rows of one tensor (R, n) per layer, of the layers before this one."""
        return [one.index_select(0, rows) for one in values[: self._layer]]


AnyReceptiveField = Union[ReceptiveField, WholeLayer]


class ReceptiveFields:
    """The windows of each hidden layer of a network, made when they are asked for.

    Args:
        matrices: Of the network.
    """

    def __init__(self, matrices: AffineMatrices) -> None:
        self._matrices, self._network, self._sizes = matrices, matrices.network, matrices.sizes
        self._views: dict[tuple[int, int], list[_View] | None] = {}
        self._kept: dict[tuple[int, int], list[AnyReceptiveField]] = {}
        #: Whether IBP leaves nothing to gain in layer 0.
        self.first_is_exact = matrices.network.first_is_exact()

    def of(self, layer: int, like: Tensor, neurons: int = _MANY) -> Iterable[AnyReceptiveField]:
        """Return parts that cover a layer: :class:`ReceptiveField` or :class:`WholeLayer`.

        Args:
            layer: The layer.
            like: Tensor of the type and on the device of the weights.
            neurons: How many are to be bounded, of all examples.
        """
        key = layer, _FINE if neurons >= _MANY else _COARSE
        if key in self._kept:
            return self._kept[key]
        if key not in self._views:
            self._views[key] = self._looked(*key, like)
        views = self._views[key]
        if views is None:
            return [WholeLayer(self._network, layer)]
        if sum(view.elements for view in views) > _MAX_KEPT:
            return (self._window(view, like) for view in views)
        return self._kept.setdefault(key, [self._window(view, like) for view in views])

    def output(self, like: Tensor) -> tuple[Tensor, Tensor | None, Places]:
        """Return the output as an affine map.

        Constants, matrices in the input and each ReLU, None where it looks not.
        """
        constants, matrices = self._matrices.of(len(self._sizes) - 2, like)
        every = torch.arange(len(constants), device=like.device)
        at_input, *at_relus = [None if one is None else one.dense(every) for one in matrices]
        return constants, at_input, at_relus

    def _looked(self, layer: int, tiles: int, like: Tensor) -> list[_View] | None:
        """Return what each tile of a layer sees; None where matrices of that would be too large."""
        if not self._matrices.affordable(layer):
            return None
        found = []
        for neurons in _tiles(self._network.shapes[layer], tiles):
            view = self._view(layer, neurons.to(like.device), like)
            if view.elements > WORTH * sum(self._sizes[: layer + 1]):
                return None
            found.append(view)
        return found

    def _view(self, layer: int, neurons: Tensor, like: Tensor) -> _View:
        """Return what neurons see of the input and of the ReLUs before them."""
        marks = [
            torch.zeros(size, dtype=torch.bool, device=like.device)
            for size in self._sizes[: layer + 1]
        ]
        links, rows = [], neurons
        for place in range(layer, -1, -1):
            for source, matrix in enumerate(self._matrices.of(place, like)[1]):
                if matrix is not None:
                    marks[source][matrix.entries(rows)[1]] = True
                    links.append((len(rows), source))
            rows = marks[place].nonzero().squeeze(1)
        seen = [mark.nonzero().squeeze(1) for mark in marks]
        return _View(neurons, seen, sum(count * len(seen[source]) for count, source in links))

    def _window(self, view: _View, like: Tensor) -> ReceptiveField:
        """Cut the matrices of a view out of the network's."""
        maps = [
            self._restricted(place, rows, view.seen, like)
            for place, rows in enumerate([*view.seen[1:], view.neurons])
        ]
        return ReceptiveField(view.neurons, view.seen, maps)

    def _restricted(
        self, place: int, rows: Tensor, seen: list[Tensor], like: Tensor
    ) -> tuple[Tensor, Places]:
        constants, matrices = self._matrices.of(place, like)
        return constants[rows], [
            None if one is None else one.dense(rows)[:, columns]
            for one, columns in zip(matrices, seen)
        ]


class _View(NamedTuple):
    """Neurons of a layer, the places they see, and how many numbers the matrices between have."""

    neurons: Tensor
    seen: list[Tensor]
    elements: int


def _tiles(shape: torch.Size, count: int) -> list[Tensor]:
    """Return a layer's neuron places, for images (C, H, W) in at most ``count`` tiles a side."""
    places = torch.arange(shape.numel()).view(shape)
    if len(shape) != 3:
        return [places.flatten()]
    height, width = (-(-side // count) for side in shape[1:])
    return [tile.flatten() for band in places.split(height, 1) for tile in band.split(width, 2)]
