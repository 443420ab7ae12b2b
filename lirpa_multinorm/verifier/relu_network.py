"""A ReLU network as affine maps between its ReLUs, and how it pulls linear forms back.

What is bounded are linear forms of its output.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Callable

import torch
from torch import Tensor, nn

from ..errors import NaNBoundError
from ..perturbations import PerturbationStack
from ..tracing.trace_check import check_trace, takes_batches
from ..utils.modes import tensor_float_32
from . import network
from .first_layer import FirstLayer, first_layer_interval

_KEPT = 8  # affine maps that are kept
_KEPT_ELEMENTS = 1 << 21  # of one of them

#: Turns linear forms v of a ReLU layer's output, (R, n), into (g, h) with ``v . a >= g . z + h``.
Relax = Callable[[int, Tensor], tuple[Tensor, Tensor]]


class ReluNetwork:
    """What every layer of a network is of the input and of the ReLUs before it: an affine map.

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
            values=self._every_value,
        )
        self.shapes = [self.graph.steps[place].example_shape for place in self.graph.layers]
        self._first = network.first_layers(self.graph)
        self._kept: dict[tuple, AffineMaps] = {}

    @property
    def neurons(self) -> int:
        """How many numbers the layers have for one input."""
        return sum(shape.numel() for shape in self.shapes)

    def first_is_exact(self) -> bool:
        """Return whether interval arithmetic bounds layer 0 exactly.

        It is a Linear or Conv layer at the input.
        """
        return self.graph.layers[0] in self._first

    def intervals(self, stack: PerturbationStack) -> list[tuple[Tensor, Tensor]]:
        """Return IBP's (lower, upper), (B, n) each, of the layers before ReLUs on a stack of sets.

        Raises:
            NaNBoundError: One of them is NaN.
        """
        lower, upper = ({0: end} for end in stack.box())
        with tensor_float_32(False):
            for place, layer in self._first.items() if not stack.is_box() else ():
                interval = first_layer_interval(FirstLayer.of_graph(layer), stack)
                if interval is not None:
                    lower[place], upper[place] = interval
            ends = self.graph.interval(self.graph.layers[:-1], lower, upper)
        for place, pair in zip(self.graph.layers, ends):
            if any(bool(end.isnan().any()) for end in pair):
                raise NaNBoundError(
                    f"the bounds of {self.graph.steps[place]} by interval arithmetic contain NaN; "
                    "check the model's weights for NaN or infinite values, or use float64"
                )
        return [(low.flatten(1), high.flatten(1)) for low, high in ends]

    def layers(self, x: Tensor) -> list[Tensor]:
        """Return the value of every layer at inputs (B, ...)."""
        return self._run(x, [])

    def layer(self, layer: int, x: Tensor, activations: list[Tensor]) -> Tensor:
        """Return a layer's value at inputs (B, ...) and any earlier ReLU values, (B, ...) each."""
        return self._run(x, activations[:layer], slice(layer, layer + 1))[0]

    def maps(self, rows: int, like: Tensor, depth: int | None = None) -> AffineMaps:
        """Return the affine maps, ready to pull back ``rows`` linear forms at once.

        Small ones are kept.

        Args:
            rows: R.
            like: Tensor of the type and on the device to work with.
            depth: The last layer linear forms of which are pulled back; None: the output.
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
            found = AffineMaps(x, activations, self._run(x, activations, slice(depth + 1)))
        if rows * self.neurons <= _KEPT_ELEMENTS:
            if len(self._kept) >= _KEPT:
                del self._kept[next(iter(self._kept))]
            self._kept[key] = found
        return found

    def rows(
        self, layer: int, like: Tensor, elements: int
    ) -> Iterator[tuple[Tensor, list[Tensor | None]]]:
        """Write out a layer's affine map, some rows at a time.

        Args:
            layer: Which layer.
            like: Tensor of the type and on the device of the weights.
            elements: How many numbers are pulled back at once, about.

        Returns:
            Parts (constants (r,), matrices (r, n) in the input and each ReLU before; None where it
            does not look).
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
            yield (
                constants.detach(),
                [None if one is None else one.detach().flatten(1) for one in (at_input, *at_relus)],
            )

    def _run(
        self, x: Tensor, activations: list[Tensor], layers: slice = slice(None)
    ) -> list[Tensor]:
        """Run the network up to some layers, with the first ReLUs' outputs replaced by others."""
        with tensor_float_32(False):
            return self.graph.values(
                self.graph.layers[layers], {0: x, **dict(zip(self.graph.relus, activations))}
            )

    def _every_value(self, x: Tensor) -> list[Tensor]:
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
            layer: Which layer.
            v: Linear forms, (R, *layer's shape).

        Returns:
            (constants (R,), linear forms of the input or None, linear forms of each ReLU before the
            layer or None), with ``v . z = constant + input part . x + sum of ReLU parts . a_i``;
            None where the layer does not look.
        """
        value = self._layers[layer]
        constant = (v * value.detach()).flatten(1).sum(1)
        leaves = [self._x, *self._activations[:layer]]
        parts = torch.autograd.grad(
            value, leaves, v, retain_graph=True, create_graph=v.requires_grad, allow_unused=True
        )
        return constant, parts[0], list(parts[1:])


def propagated_backward(
    maps: AffineMaps, shapes: Sequence[torch.Size], v: Tensor, relax: Relax
) -> tuple[Tensor, Tensor | None]:
    """Bound linear forms of a network's layer from below by linear forms of its input.

    Args:
        maps: Of the network.
        shapes: Of its layers, up to the one the linear forms are of.
        v: The linear forms, (R, n).
        relax: What is known of the ReLUs, layer by layer.

    Returns:
        (constants (R,), linear forms of the input or None).
    """
    depth = len(shapes) - 1
    value, at_input, at_relus = maps.pull(depth, v.view(len(v), *shapes[depth]))
    for layer in range(depth - 1, -1, -1):
        if at_relus[layer] is None:
            continue
        g, height = relax(layer, at_relus[layer].flatten(1))
        constant, part, parts = maps.pull(layer, g.view(len(g), *shapes[layer]))
        value, at_input = value + height + constant, added(at_input, part)
        at_relus = [added(one, other) for one, other in zip(at_relus, parts)]
    return value, at_input


def added(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    """Return the sum of two parts of a linear form; None stands for zero."""
    return one if other is None else other if one is None else one + other
