"""A ReLU network as affine maps between its ReLUs, and how linear functionals are pulled back through them."""

from __future__ import annotations

from typing import Callable, Dict, Iterator, List, Optional, Sequence, Tuple

import torch
from torch import Tensor

from .. import host
from ..errors import UnsupportedModelError
from ..modes import tensor_float_32
from .traced import HOST_FAILURES, TracedModule, default_dtype, frozen, is_ours_or_memory

_KEPT = 8  # affine maps that are kept
_KEPT_ELEMENTS = 1 << 21  # of one of them

#: Turns functionals v of a ReLU layer's output, (R, n), into (g, h) with ``v . a >= g . z + h``.
Relax = Callable[[int, Tensor], Tuple[Tensor, Tensor]]


class ReluNetwork:
    """What every layer of a network is of the input and of the ReLUs before it: an affine map.

    Layers are counted from 0: layer j is the input of the j-th ReLU, the last one is the output. With x the input and
    a_i the output of the i-th ReLU, ``z_j = A_j x + sum over i < j of A_ji a_i + b_j``, whatever operators and skip
    connections lie between. The module's weights must stay as they are.

    Args:
        module: A traced module in eval mode.
        x: Inputs it is to be bounded at, (B, ...).

    Raises:
        UnsupportedModelError: An operator is neither affine nor a ReLU; the message names it.
    """

    def __init__(self, module: TracedModule, x: Tensor) -> None:
        self.module, self.input_shape = module, x.shape[1:]
        self._kept: Dict[tuple, AffineMaps] = {}
        with torch.no_grad():
            self.shapes = [value.shape[1:] for value in self.layers(x[:1])]

    @property
    def neurons(self) -> int:
        """How many numbers the layers have for one input."""
        return sum(shape.numel() for shape in self.shapes)

    def first_is_exact(self) -> bool:
        """Return whether IBP bounds layer 0 as the host's CROWN does: it is a Linear or Conv layer at the input."""
        return self.nodes()[1][0].name in host.first_layers(self.module)

    def layers(self, x: Tensor) -> List[Tensor]:
        """Return the value of every layer at inputs (B, ...)."""
        return self._run(x, [])

    def layer(self, layer: int, x: Tensor, activations: List[Tensor]) -> Tensor:
        """Return the value of a layer at inputs (B, ...) and any values of the ReLUs before it, (B, ...) each."""
        return self._run(x, activations[:layer], slice(layer, layer + 1))[0]

    def maps(self, rows: int, like: Tensor, depth: Optional[int] = None) -> "AffineMaps":
        """Return the affine maps, ready to pull back ``rows`` functionals at once; small ones are kept.

        Args:
            rows: R.
            like: Tensor of the type and on the device to work with.
            depth: The last layer functionals of which are pulled back; None: the output.
        """
        depth = len(self.shapes) - 1 if depth is None else depth
        key = rows, depth, like.dtype, like.device
        if key in self._kept:
            return self._kept[key]
        x = like.new_zeros(rows, *self.input_shape).requires_grad_()
        activations = [like.new_zeros(rows, *shape).requires_grad_() for shape in self.shapes[:depth]]
        with torch.enable_grad():
            found = AffineMaps(x, activations, self._run(x, activations, slice(depth + 1)))
        if rows * self.neurons <= _KEPT_ELEMENTS:
            if len(self._kept) >= _KEPT:
                del self._kept[next(iter(self._kept))]
            self._kept[key] = found
        return found

    def rows(self, layer: int, like: Tensor, elements: int) -> Iterator[Tuple[Tensor, List[Optional[Tensor]]]]:
        """Write out a layer's affine map, some rows at a time.

        Args:
            layer: Which layer.
            like: Tensor of the type and on the device of the weights.
            elements: How many numbers are pulled back at once, about.

        Returns:
            Parts (constants (r,), matrices (r, n) in the input and each ReLU before; None where it does not look).
        """
        size = self.shapes[layer].numel()
        width = self.input_shape.numel() + sum(shape.numel() for shape in self.shapes[:layer])
        step = max(1, elements // width)
        for start in range(0, size, step):
            one_hot = torch.zeros(min(step, size - start), size, dtype=like.dtype, device=like.device)
            one_hot.diagonal(start).fill_(1)
            constants, at_input, at_relus = self.maps(len(one_hot), like, layer).pull(
                layer, one_hot.view(-1, *self.shapes[layer]))
            yield constants.detach(), [None if one is None else one.detach().flatten(1)
                                       for one in (at_input, *at_relus)]

    def nodes(self) -> Tuple[list, list]:
        """Return the host's nodes: (input and ReLUs, in the order of the graph; what each layer's value is)."""
        root, relus, output = host.relu_graph(self.module)
        return [root, *relus], [*[relu.inputs[0] for relu in relus], output]

    def node_bounds(self) -> List[Tuple[Tensor, Tensor]]:
        """Return (lower, upper) of each layer in front of a ReLU, as the host's last calculation has left them."""
        ends = [host.last_bounds(node) for node in self.nodes()[1][:-1]]
        return [(lower.flatten(1), upper.flatten(1)) for lower, upper in ends]

    def _run(self, x: Tensor, activations: List[Tensor], layers: slice = slice(None)) -> List[Tensor]:
        """Run the network up to some layers, with the outputs of the first ReLUs replaced by what is given."""
        single = self.module.trace_single(x)
        root, relus, output = host.relu_graph(self.module)

        def run(x: Tensor, *given: Tensor) -> Tuple[Tensor, ...]:
            known = {root.name: x, **{relu.name: one for relu, one in zip(relus, given)}}
            ends = [*[relu.inputs[0] for relu in relus], output]
            return tuple(host.node_values(ends[layers], known))

        with frozen(self.module.model), default_dtype(x.dtype), tensor_float_32(False):
            try:
                if not single:
                    return list(run(x, *activations))
                # The host has baked a batch of one into the graph: run it example by example, vectorised.
                batches = [one.unsqueeze(1) for one in (x, *activations)]
                return [one.squeeze(1) for one in torch.vmap(run)(*batches)]
            except HOST_FAILURES as error:
                if is_ours_or_memory(error):
                    raise
                raise UnsupportedModelError(f"model: its graph cannot be run from the ReLUs on "
                                            f"({type(error).__name__}: {error}); use another method") from error


class AffineMaps:
    """The maps of a :class:`ReluNetwork`, evaluated at zero for a batch of functionals.

    Args:
        x: Zeros of the input's shape, (R, ...).
        activations: Zeros of each ReLU's shape.
        layers: The layers there.
    """

    def __init__(self, x: Tensor, activations: List[Tensor], layers: List[Tensor]) -> None:
        self._x, self._activations, self._layers = x, activations, layers

    def pull(self, layer: int, v: Tensor) -> Tuple[Tensor, Optional[Tensor], List[Optional[Tensor]]]:
        """Write functionals of a layer as functionals of what the layer is an affine map of.

        Args:
            layer: Which layer.
            v: Functionals, (R, *layer's shape).

        Returns:
            (constants (R,), functionals of the input or None, functionals of each ReLU before the layer or None),
            with ``v . z = constant + input part . x + sum of ReLU parts . a_i``; None where the layer does not look.
        """
        value = self._layers[layer]
        constant = (v * value.detach()).flatten(1).sum(1)
        leaves = [self._x, *self._activations[:layer]]
        parts = torch.autograd.grad(value, leaves, v, retain_graph=True, create_graph=v.requires_grad,
                                    allow_unused=True)
        return constant, parts[0], list(parts[1:])


def pulled_back(maps: AffineMaps, shapes: Sequence[torch.Size], v: Tensor,
                relax: Relax) -> Tuple[Tensor, Optional[Tensor]]:
    """Bound functionals of a network's layer from below by functionals of its input.

    Args:
        maps: Of the network.
        shapes: Of its layers, up to the one the functionals are of.
        v: The functionals, (R, n).
        relax: What is known of the ReLUs, layer by layer.

    Returns:
        (constants (R,), functionals of the input or None).
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


def added(one: Optional[Tensor], other: Optional[Tensor]) -> Optional[Tensor]:
    """Return the sum of two parts of a functional; None stands for zero."""
    return one if other is None else other if one is None else one + other
