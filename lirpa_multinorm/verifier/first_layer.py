"""Exact bounds of the first Linear or Conv layer over each set of a stack.

Interval arithmetic only knows boxes. For the layer that sees the input through element-wise affine
operators (normalisation) and reshapes, the extreme values over an l_1 or l_2 set are known exactly,
and starting from them is what makes IBP and CROWN-IBP of these sets worth having. One exception:
for the plain ball (clip=None) a convolution's kernel counts whole also where it overlaps the
padding, so that the bounds are the host's.
"""

from __future__ import annotations

from typing import Any, Callable, NamedTuple

import torch
from torch import Tensor

from .. import host
from ..perturbations import PerturbationStack
from ..perturbations.rows import DenseRows, KernelRows
from . import network

Ends = tuple[Tensor, Tensor]


class FirstLayer(NamedTuple):
    """A Linear or Conv layer behind reshapes and element-wise affine operators only.

    Args:
        weight: Its kernel (O, C / groups, kh, kw), or its matrix (out, in).
        options: Stride, padding, dilation and groups of a Conv; None of a Linear layer.
        reshapes: Whether there are reshapes before it.
        scales: Whether there is arithmetic before it.
        before: Sends a stacked batch of the input's shape to the layer's input, through all or the
            reshapes only.
        value: The layer's value at its own input.
        box: Its interval on a box of its own input; or that of ``C`` times its value.
    """

    weight: Tensor
    options: dict[str, Any] | None
    reshapes: bool
    scales: bool
    before: Callable[..., Tensor]
    value: Callable[[Tensor], Tensor]
    box: Callable[[Ends, Tensor | None], Ends]

    @classmethod
    def of_host(cls, module: host.HostModule, layer: host.FirstLayer) -> FirstLayer:
        """Return one of :func:`lirpa_multinorm.host.first_layers` of a traced module."""
        constants, (reshapes, scales) = host.layer_constants(module, layer), host.chain_kinds(layer)
        return cls(
            host.layer_weight(layer, constants),
            host.kernel_options(layer) if layer.is_conv else None,
            reshapes,
            scales,
            lambda x, reshapes_only=False: host.run_chain(module, layer, x, reshapes_only),
            lambda inputs: layer.node.forward(inputs, *constants),
            lambda ends, C=None: host.propagate_box(layer, ends, constants, C),
        )

    @classmethod
    def of_graph(cls, layer: network.FirstLayer) -> FirstLayer:
        """Return one of :func:`lirpa_multinorm.verifier.network.first_layers`, which takes no C."""
        graph, source = layer.graph, layer.step.sources[0]
        reshapes = [graph.steps[place].operator in network.RESHAPES for place in layer.chain]
        return cls(
            layer.step.arguments["weight"],
            network.convolution_options(layer.step),
            any(reshapes),
            not all(reshapes),
            layer.before,
            lambda inputs: graph.values([layer.place], {source: inputs})[0],
            lambda ends, C=None: graph.interval(
                [layer.place], {source: ends[0]}, {source: ends[1]}
            )[0],
        )

    def moved_box(self, stack: PerturbationStack) -> Ends:
        """Return the enclosing boxes of a stack as the layer sees them."""
        ends = [self.before(end) for end in stack.box()]
        return torch.minimum(*ends), torch.maximum(*ends)  # a negative scale swaps the ends


def first_layer_interval(
    layer: FirstLayer, stack: PerturbationStack, C: Tensor | None = None
) -> Ends | None:
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
        return (
            None  # the batch is folded, or broadcasting has copied pixels, which then move together
        )
    weight = _scaled_weight(layer, centers, inputs)
    if weight is None:
        return None
    box = (
        layer.moved_box(stack)
        if any(region.perturbation.is_box() for region in stack.regions)
        else None
    )
    move = _mover(layer, stack)
    lower, upper = [], []
    for index, region in stack.slices():
        part = None if C is None else C[index]
        if region.perturbation.is_box():
            ends = layer.box((box[0][index], box[1][index]), part)
        else:
            ends = _curved_ends(
                layer, region, move(region, index), weight, layer.value(inputs[index]), part
            )
        lower.append(ends[0])
        upper.append(ends[1])
    return torch.cat(lower), torch.cat(upper)


def _curved_ends(
    layer: FirstLayer, region, offsets, weight: Tensor, value: Tensor, C: Tensor | None
) -> Ends:
    """Ends over an l_1 or l_2 set: the value at the centre plus and minus the two deviations."""
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
    weight, is_conv = layer.weight, layer.options is not None
    if inputs.ndim != (4 if is_conv else 2):
        return None
    if not layer.scales:
        return weight
    ones = torch.ones_like(centers)
    scale = (layer.before(ones) - layer.before(torch.zeros_like(ones)))[:1]
    if scale.shape[1:] != inputs.shape[1:]:
        return None
    if not is_conv:
        return weight * scale
    per_channel = scale[:, :, :1, :1]
    if not bool((scale == per_channel).all()):
        return None
    groups = layer.options["groups"]
    return (weight.unflatten(0, (groups, -1)) * per_channel.view(groups, 1, -1, 1, 1)).flatten(0, 1)


def _mover(layer: FirstLayer, stack: PerturbationStack) -> Callable:
    """Return a function (region, slice) -> the slice's offsets in the layer's input, or None."""
    if not layer.reshapes:
        return lambda region, index: region.perturbation.offsets(region.center)
    ends = [torch.cat([_offsets_or_zero(region)[i] for region in stack.regions]) for i in (0, 1)]
    moved = [layer.before(end, reshapes_only=True) for end in ends]
    return lambda region, index: (
        None if region.perturbation.clip is None else (moved[0][index], moved[1][index])
    )


def _offsets_or_zero(region) -> Ends:
    nothing = torch.zeros_like(region.center)
    return region.perturbation.offsets(region.center) or (nothing, nothing)
