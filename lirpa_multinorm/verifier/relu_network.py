"""A ReLU network as affine maps between its ReLUs, and the backward propagation of linear forms."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Callable, Protocol

import torch
from torch import Tensor, nn

from ..errors import NaNBoundError
from ..perturbations import PerturbationStack
from ..tracing.trace_check import check_trace, takes_batches
from ..utils.modes import tensor_float_32
from . import network
from .first_layer import FirstLayer, first_layer_interval

_KEPT = 8  # affine maps that a network keeps
_KEPT_ELEMENTS = 1 << 21  # numbers of an affine map that is kept, at most

#: Turns linear forms v of a ReLU layer's output, (R, n), into (g, h) with ``v . a >= g . z + h``.
Relax = Callable[[int, Tensor], tuple[Tensor, Tensor]]


class LayerMaps(Protocol):
    """The affine maps of a network's layers, through which linear forms are pulled back."""

    def pull(self, layer: int, v: Tensor) -> tuple[Tensor, Tensor | None, list[Tensor | None]]:
        """Write linear forms of a layer; see :meth:`AffineMaps.pull`."""


class LayeredNetwork(Protocol):
    """What bounds need of a network: the shapes of its layers and their affine maps."""

    shapes: list[torch.Size]

    def maps(self, rows: int, like: Tensor, depth: int | None = None) -> LayerMaps:
        """Return the affine maps; see :meth:`ReluNetwork.maps`."""


class ReluNetwork:
    """A network whose layers are affine maps of the input and of the ReLUs before them.

    Layers are counted from 0: layer j is the input of the j-th ReLU, the last one is the output.
    With x the input and a_i the output of the i-th ReLU, ``z_j = A_j x + sum over i < j of A_ji a_i
    + b_j``, whatever operators and skip connections lie between. The graph is read off the model
    (:mod:`lirpa_multinorm.verifier.network`), which must stay as it is.

    Args:
        model: The model, in the mode in which it is to be bounded.
        x: Inputs it is to be bounded at, (B, ...).

    Raises:
        UnsupportedModelError: An operator is not piecewise linear (the message names it), or the
            graph computes something else than the model.
    """

    def __init__(self, model: nn.Module, x: Tensor) -> None:
        self.input_shape, sample = x.shape[1:], x[:1].detach()
        self.graph = network.model_graph(model, sample)
        with torch.no_grad(), tensor_float_32(False):
            #: Whether the model takes no other batch than one; the graph takes any.
            self.single = not takes_batches(model, sample)
            output = model(sample)
        check_trace(
            model,
            lambda inputs: self.graph.values([self.graph.output], {0: inputs})[0],
            [sample],
            output,
            batched=not self.single,
            values=self._all_values,
        )
        self.shapes = [self.graph.steps[index].example_shape for index in self.graph.layers]
        self._first = network.first_layers(self.graph)
        self._kept: dict[tuple, AffineMaps] = {}

    @property
    def neurons(self) -> int:
        """How many numbers the layers have for one input."""
        return sum(shape.numel() for shape in self.shapes)

    def first_is_exact(self) -> bool:
        """Return whether layer 0 is a first Linear or Conv layer, which IBP bounds exactly."""
        return self.graph.layers[0] in self._first

    def intervals(self, stack: PerturbationStack) -> list[tuple[Tensor, Tensor]]:
        """Return IBP's (lower, upper), (B, n) each, of the layers before ReLUs on a stack of sets.

        Raises:
            NaNBoundError: One of them is NaN.
        """
        lower, upper = ({0: bound} for bound in stack.box())
        with tensor_float_32(False):
            for index, first_layer in ({} if stack.is_box() else self._first).items():
                interval = first_layer_interval(FirstLayer.of_graph(first_layer), stack)
                if interval is not None:
                    lower[index], upper[index] = interval
            intervals = self.graph.interval(self.graph.layers[:-1], lower, upper)
        for index, bounds in zip(self.graph.layers, intervals):
            if any(bool(bound.isnan().any()) for bound in bounds):
                raise NaNBoundError(
                    f"the bounds of {self.graph.steps[index]} by interval arithmetic contain NaN; "
                    "check the model's weights for NaN or infinite values, or use float64"
                )
        return [(lower.flatten(1), upper.flatten(1)) for lower, upper in intervals]

    def paired(self) -> ReluNetwork:
        """Return the network with each MinMax in place of its ReLU, for Lipschitz constants.

        Its layers are what its ReLUs and MinMax take, and the output; those of this network are
        among the steps of its graph, as :func:`.network.paired` tells.
        """
        other = copy.copy(self)
        other.graph, other._kept = network.paired(self.graph).graph, {}
        other.shapes = [other.graph.steps[index].example_shape for index in other.graph.layers]
        return other

    def layers(self, x: Tensor) -> list[Tensor]:
        """Return the value of every layer at inputs (B, ...)."""
        return self._run(x, [])

    def layer(self, layer: int, x: Tensor, activations: list[Tensor]) -> Tensor:
        """Return a layer's value at inputs (B, ...) and any earlier ReLU values, (B, ...) each."""
        return self._run(x, activations[:layer], slice(layer, layer + 1))[0]

    def maps(self, rows: int, like: Tensor, depth: int | None = None) -> AffineMaps:
        """Return the affine maps, ready to pull back ``rows`` linear forms at once.

        Small maps are kept from call to call.

        Args:
            rows: The number of linear forms, R.
            like: Tensor of the type and on the device to work with.
            depth: The last layer that linear forms are pulled back from; None: the output.
        """
        depth = len(self.shapes) - 1 if depth is None else depth
        key = rows, depth, like.dtype, like.device
        if key in self._kept:
            return self._kept[key]
        x = like.new_zeros(rows, *self.input_shape).requires_grad_()
        activations = [
            like.new_zeros(rows, *shape).requires_grad_() for shape in self.shapes[:depth]
        ]
        with torch.enable_grad():
            maps = AffineMaps(x, activations, self._run(x, activations, slice(depth + 1)))
        if rows * self.neurons <= _KEPT_ELEMENTS:
            if len(self._kept) >= _KEPT:
                del self._kept[next(iter(self._kept))]
            self._kept[key] = maps
        return maps

    def spread_maps(self, rows: int, like: Tensor) -> AffineMaps:
        """Return the maps with the absolute values of all steps between the ReLUs, for distances.

        Args:
            rows: The number of linear forms, R.
            like: Tensor of the type and on the device to work with.
        """
        x = like.new_zeros(rows, *self.input_shape).requires_grad_()
        activations = [like.new_zeros(rows, *shape).requires_grad_() for shape in self.shapes[:-1]]
        with torch.enable_grad(), tensor_float_32(False):
            given = {0: x, **dict(zip(self.graph.relus, activations))}
            layers = self.graph.batched(
                lambda moves: self.graph.single_moves(self.graph.layers, moves),
                self.graph.layers,
                given,
            )
        return AffineMaps(x, activations, layers)

    def rows(
        self, layer: int, like: Tensor, elements: int
    ) -> Iterator[tuple[Tensor, list[Tensor | None]]]:
        """Write out a layer's affine map, some rows at a time.

        Args:
            layer: The index of the layer.
            like: Tensor of the type and on the device of the weights.
            elements: How many numbers are pulled back at once, about.

        Yields:
            The constants (r,) of some rows, and their matrices (r, n) in the input and in each
            ReLU before the layer; None where the layer does not depend on it.
        """
        size = self.shapes[layer].numel()
        width = self.input_shape.numel() + sum(shape.numel() for shape in self.shapes[:layer])
        step = max(1, elements // width)
        for start in range(0, size, step):
            one_hot = torch.zeros(
                min(step, size - start), size, dtype=like.dtype, device=like.device
            )
            one_hot.diagonal(start).fill_(1)
            constants, at_input, at_relus = self.maps(len(one_hot), like, layer).pull(
                layer, one_hot.view(-1, *self.shapes[layer])
            )
            matrices = [
                None if matrix is None else matrix.detach().flatten(1)
                for matrix in (at_input, *at_relus)
            ]
            yield constants.detach(), matrices

    def _run(
        self, x: Tensor, activations: list[Tensor], layers: slice = slice(None)
    ) -> list[Tensor]:
        """Run the network up to some layers, with the first ReLUs' outputs replaced by others."""
        with tensor_float_32(False):
            return self.graph.values(
                self.graph.layers[layers], {0: x, **dict(zip(self.graph.relus, activations))}
            )

    def _all_values(self, x: Tensor) -> list[Tensor]:
        return self.graph.values(range(len(self.graph.steps)), {0: x})


class AffineMaps:
    """The maps of a :class:`ReluNetwork`, evaluated at zero for a batch of linear forms.

    Args:
        x: Zeros of the input's shape, (R, ...).
        activations: Zeros of each ReLU's shape.
        layers: The layers there.
    """

    def __init__(self, x: Tensor, activations: list[Tensor], layers: list[Tensor]) -> None:
        self._x, self._activations, self._layers = x, activations, layers

    def pull(self, layer: int, v: Tensor) -> tuple[Tensor, Tensor | None, list[Tensor | None]]:
        """Write linear forms of a layer as linear forms of what the layer is an affine map of.

        Args:
            layer: The index of the layer.
            v: Linear forms, (R, *layer's shape).

        Returns:
            (constants (R,), linear form of the input, linear form of each ReLU before the layer),
            with ``v . z = constant + input form . x + sum over i of ReLU form i . a_i``; None for a
            linear form that is zero.
        """
        value = self._layers[layer]
        constant = (v * value.detach()).flatten(1).sum(1)
        leaves = [self._x, *self._activations[:layer]]
        gradients = torch.autograd.grad(
            value, leaves, v, retain_graph=True, create_graph=v.requires_grad, allow_unused=True
        )
        return constant, gradients[0], list(gradients[1:])


def propagated_backward(
    maps: LayerMaps, shapes: Sequence[torch.Size], v: Tensor, relax: Relax
) -> tuple[Tensor, Tensor | None]:
    """Bound linear forms of a network's layer from below by linear forms of its input.

    Args:
        maps: The affine maps of the network.
        shapes: The shapes of its layers, up to the layer that the linear forms are of.
        v: The linear forms, (R, n).
        relax: The relaxation of the ReLUs, layer by layer.

    Returns:
        (constants (R,), linear forms of the input or None).
    """
    depth = len(shapes) - 1
    value, at_input, at_relus = maps.pull(depth, v.view(len(v), *shapes[depth]))
    for layer in range(depth - 1, -1, -1):
        at_relu = at_relus[layer]
        if at_relu is None:
            continue
        g, height = relax(layer, at_relu.flatten(1))
        constant, input_form, relu_forms = maps.pull(layer, g.view(len(g), *shapes[layer]))
        value, at_input = value + height + constant, added(at_input, input_form)
        at_relus = [added(form, addend) for form, addend in zip(at_relus, relu_forms)]
    return value, at_input


def added(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    """Return the sum of two linear forms; None stands for zero."""
    if first is None:
        return second
    return first if second is None else first + second
