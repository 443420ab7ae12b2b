"""Exact bounds of the first Linear or Conv layer over each set of a stack.

Interval arithmetic only knows boxes. For the layer that sees the input through element-wise affine
operators (normalisation) and reshapes, the extreme values over an l_1 or l_2 set are known exactly,
and without them IBP and CROWN-IBP of these sets are hardly worth having. One exception: for the
plain ball (clip=None) a convolution's full kernel counts also where it overlaps the padding, so
that the bounds are the host's.
"""

from __future__ import annotations

from typing import Any, Callable, NamedTuple

import torch
from torch import Tensor

from .. import host
from ..perturbations import PerturbationStack, Region
from ..perturbations.rows import DenseRows, KernelRows
from . import network

Interval = tuple[Tensor, Tensor]


class FirstLayer(NamedTuple):
    """A Linear or Conv layer behind reshapes and element-wise affine operators only.

    Args:
        weight: The kernel (O, C / groups, kh, kw), or the matrix (out, in).
        options: Stride, padding, dilation and groups of a Conv layer; None of a Linear layer.
        reshapes: Whether there are reshapes before the layer.
        scales: Whether there is arithmetic before the layer.
        before: Sends a stacked batch of the input's shape to the layer's input, through all
            operators before the layer or through the reshapes only.
        value: The layer's value as a function of the layer's input.
        box: The layer's interval on a box of the layer's input; or that of ``C`` times its value.
    """

    weight: Tensor
    options: dict[str, Any] | None
    reshapes: bool
    scales: bool
    before: Callable[..., Tensor]
    value: Callable[[Tensor], Tensor]
    box: Callable[[Interval, Tensor | None], Interval]

    @classmethod
    def of_host(cls, module: host.HostModule, layer: host.FirstLayer) -> FirstLayer:
        """Return one of :func:`lirpa_multinorm.host.first_layers` of a traced module."""
        constants, (reshapes, scales) = host.layer_constants(module, layer), host.chain_kinds(layer)

        def before(x: Tensor, reshapes_only: bool = False) -> Tensor:
            return host.run_chain(module, layer, x, reshapes_only)

        def box(interval: Interval, C: Tensor | None = None) -> Interval:
            return host.propagate_box(layer, interval, constants, C)

        return cls(
            host.layer_weight(layer, constants),
            host.kernel_options(layer) if layer.is_conv else None,
            reshapes,
            scales,
            before,
            lambda inputs: layer.node.forward(inputs, *constants),
            box,
        )

    @classmethod
    def of_graph(cls, layer: network.FirstLayer) -> FirstLayer:
        """Return one of :func:`lirpa_multinorm.verifier.network.first_layers`, which takes no C."""
        graph, source, target = layer.graph, layer.step.sources[0], layer.step_index
        reshapes = [graph.steps[index].operator in network.RESHAPES for index in layer.chain]

        def box(interval: Interval, C: Tensor | None = None) -> Interval:
            lower, upper = interval
            return graph.interval([target], {source: lower}, {source: upper})[0]

        return cls(
            layer.step.arguments["weight"],
            network.convolution_options(layer.step),
            any(reshapes),
            not all(reshapes),
            layer.before,
            lambda inputs: graph.values([target], {source: inputs})[0],
            box,
        )

    def moved_box(self, stack: PerturbationStack) -> Interval:
        """Return the enclosing boxes of a stack at the layer's input."""
        corners = [self.before(corner) for corner in stack.box()]
        # A negative scale swaps lower and upper.
        return torch.minimum(*corners), torch.maximum(*corners)


def first_layer_interval(
    layer: FirstLayer, stack: PerturbationStack, C: Tensor | None = None
) -> Interval | None:
    """Return (lower, upper) of a first layer, slice by slice of the stack.

    Args:
        layer: The layer.
        stack: The regions at the input.
        C: Specification (B, S, K) merged into a Linear layer that is the model's last, or None.

    Returns:
        Tensors of the layer's output shape, (B, S) with C; None where only interval arithmetic
        applies (a scale that is not constant over a convolution's channel, pixels copied by
        broadcasting).
    """
    centers = stack.centers()
    inputs = layer.before(centers)
    if inputs.shape[0] != centers.shape[0] or inputs.numel() != centers.numel():
        # The batch is folded, or broadcasting has copied pixels, which then move together.
        return None
    weight = _scaled_weight(layer, centers, inputs)
    if weight is None:
        return None
    has_boxes = any(region.perturbation.is_box() for region in stack.regions)
    box = layer.moved_box(stack) if has_boxes else None
    move = _mover(layer, stack)
    lower, upper = [], []
    for index, region in stack.slices():
        specification = None if C is None else C[index]
        if region.perturbation.is_box():
            assert box is not None
            interval = layer.box((box[0][index], box[1][index]), specification)
        else:
            offsets, value = move(region, index), layer.value(inputs[index])
            interval = _curved_interval(layer, region, offsets, weight, value, specification)
        lower.append(interval[0])
        upper.append(interval[1])
    return torch.cat(lower), torch.cat(upper)


def _curved_interval(
    layer: FirstLayer,
    region: Region,
    offsets: Interval | None,
    weight: Tensor,
    value: Tensor,
    C: Tensor | None,
) -> Interval:
    """Return an interval over an l_1 or l_2 set: the value at the centre and its two deviations."""
    rows: KernelRows | DenseRows
    if layer.options is not None:
        rows = KernelRows(weight, **layer.options, output_size=value.shape[2:])
    elif C is None:
        rows = DenseRows(weight.unsqueeze(0))
    else:
        rows, value = DenseRows(C.matmul(weight)), C.matmul(value.unsqueeze(-1)).squeeze(-1)
    ptb, eps = region.perturbation, region.perturbation.radius(region.center)
    above = ptb.deviation(rows, offsets, eps, sign=1)
    below = above if offsets is None else ptb.deviation(rows, offsets, eps, sign=-1)
    return value - below.view_as(value), value + above.view_as(value)


def _scaled_weight(layer: FirstLayer, centers: Tensor, inputs: Tensor) -> Tensor | None:
    """Fold the chain's element-wise scale into the weight, to act on offsets of the input."""
    weight, options = layer.weight, layer.options
    if inputs.ndim != (2 if options is None else 4):
        return None
    if not layer.scales:
        return weight
    unit = torch.ones_like(centers)
    scale = (layer.before(unit) - layer.before(torch.zeros_like(unit)))[:1]
    if scale.shape[1:] != inputs.shape[1:]:
        return None
    if options is None:
        return weight * scale
    per_channel = scale[:, :, :1, :1]
    if not bool((scale == per_channel).all()):
        return None
    groups = options["groups"]
    return (weight.unflatten(0, (groups, -1)) * per_channel.view(groups, 1, -1, 1, 1)).flatten(0, 1)


def _mover(
    layer: FirstLayer, stack: PerturbationStack
) -> Callable[[Region, slice], Interval | None]:
    """Return a function (region, slice) -> the slice's offsets in the layer's input, or None."""
    if not layer.reshapes:
        return lambda region, index: region.perturbation.offsets(region.center)
    offsets = [torch.cat([_offsets_or_zero(region)[i] for region in stack.regions]) for i in (0, 1)]
    moved = [layer.before(offset, reshapes_only=True) for offset in offsets]
    return lambda region, index: (
        None if region.perturbation.clip is None else (moved[0][index], moved[1][index])
    )


def _offsets_or_zero(region: Region) -> Interval:
    zero = torch.zeros_like(region.center)
    return region.perturbation.offsets(region.center) or (zero, zero)
