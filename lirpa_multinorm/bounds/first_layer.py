"""Exact bounds of the first Linear or Conv layer over each set of a stack.

The host's interval arithmetic only knows boxes. For the layer that sees the input through element-wise affine nodes
(normalisation) and reshapes, the extreme values over an l_1 or l_2 set are known exactly, and starting from them is
what makes IBP and CROWN-IBP of these sets worth having. One exception: for the plain ball (clip=None) a convolution's
kernel counts whole also where it overlaps the padding, so that the bounds are the host's.
"""

from __future__ import annotations

from typing import Callable, Optional, Tuple

import torch
from torch import Tensor

from .. import host
from ..perturbations import PerturbationStack
from ..perturbations.rows import DenseRows, KernelRows


def first_layer_interval(module: host.HostModule, layer: host.FirstLayer, stack: PerturbationStack,
                         C: Optional[Tensor] = None) -> Optional[Tuple[Tensor, Tensor]]:
    """Return (lower, upper) of a first layer, slice by slice of the stack.

    Args:
        module: The traced module.
        layer: The layer, one of :func:`lirpa_multinorm.host.first_layers`.
        stack: The regions at the input.
        C: Specification (B, S, K) merged into a Linear layer that is the model's last, or None.

    Returns:
        Tensors of the layer's output shape, (B, S) with C; None where only interval arithmetic applies (a scale
        that is not constant over a convolution's channel, pixels copied by broadcasting).
    """
    constants, centers = host.layer_constants(module, layer), stack.centers()
    inputs = host.run_chain(module, layer, centers)
    if inputs.shape[0] != centers.shape[0] or inputs.numel() != centers.numel():
        return None  # the batch is folded, or broadcasting has copied pixels, which then move together
    weight = _scaled_weight(module, layer, stack, host.layer_weight(layer, constants), inputs)
    if weight is None:
        return None
    box, move = _moved_box(module, layer, stack), _mover(module, layer, stack)
    lower, upper = [], []
    for index, region in stack.slices():
        part = None if C is None else C[index]
        if region.perturbation.is_box():
            ends = host.propagate_box(layer, (box[0][index], box[1][index]), constants, part)
        else:
            value = layer.node.forward(inputs[index], *constants)
            ends = _curved_ends(layer, region, move(region, index), weight, value, part)
        lower.append(ends[0])
        upper.append(ends[1])
    return torch.cat(lower), torch.cat(upper)


def input_box(module: host.HostModule, stack: PerturbationStack, layers: list) -> Tuple[Tensor, Tensor]:
    """Return the enclosing boxes of a stack as the first of the first layers sees them, or at the network's input."""
    if not layers:
        return stack.box()
    ends = [host.run_chain(module, layers[0], end) for end in stack.box()]
    return torch.minimum(*ends), torch.maximum(*ends)  # a negative scale swaps the ends


def _curved_ends(layer: host.FirstLayer, region, offsets, weight: Tensor, value: Tensor, C: Optional[Tensor]) -> tuple:
    """Ends over an l_1 or l_2 set: the value at the centre plus and minus the two deviations."""
    if layer.is_conv:
        rows = KernelRows(weight, **host.kernel_options(layer), output_size=value.shape[2:])
    elif C is None:
        rows = DenseRows(weight.unsqueeze(0))
    else:
        rows, value = DenseRows(C.matmul(weight)), C.matmul(value.unsqueeze(-1)).squeeze(-1)
    ptb, eps = region.perturbation, region.perturbation.radius(region.center)
    above = ptb.deviation(rows, offsets, eps, sign=1)
    below = above if offsets is None else ptb.deviation(rows, offsets, eps, sign=-1)
    return value - below.view_as(value), value + above.view_as(value)


def _scaled_weight(module, layer, stack, weight: Tensor, inputs: Tensor) -> Optional[Tensor]:
    """Fold the element-wise scale of the chain into the weight, so that it acts on offsets of the input itself."""
    if not layer.is_conv and inputs.ndim != 2:
        return None
    if not host.chain_kinds(layer)[1]:
        return weight
    ones = torch.ones_like(stack.centers())
    scale = (host.run_chain(module, layer, ones) - host.run_chain(module, layer, torch.zeros_like(ones)))[:1]
    if scale.shape[1:] != inputs.shape[1:]:
        return None
    if not layer.is_conv:
        return weight * scale
    per_channel = scale[:, :, :1, :1]
    if not bool((scale == per_channel).all()):
        return None
    groups = layer.node.groups
    return (weight.unflatten(0, (groups, -1)) * per_channel.view(groups, 1, -1, 1, 1)).flatten(0, 1)


def _moved_box(module, layer, stack: PerturbationStack) -> Optional[Tuple[Tensor, Tensor]]:
    """The enclosing box of every slice in the layer's input coordinates, if some slice is a box."""
    if not any(region.perturbation.is_box() for region in stack.regions):
        return None
    return input_box(module, stack, [layer])


def _mover(module, layer, stack: PerturbationStack) -> Callable:
    """Return a function (region, slice) -> that slice's offsets in the layer's input coordinates, or None."""
    if not host.chain_kinds(layer)[0]:
        return lambda region, index: region.perturbation.offsets(region.center)
    ends = [torch.cat([_offsets_or_zero(region)[i] for region in stack.regions]) for i in (0, 1)]
    moved = [host.run_chain(module, layer, end, reshapes_only=True) for end in ends]
    return lambda region, index: None if region.perturbation.clip is None else (moved[0][index], moved[1][index])


def _offsets_or_zero(region) -> Tuple[Tensor, Tensor]:
    nothing = torch.zeros_like(region.center)
    return region.perturbation.offsets(region.center) or (nothing, nothing)
