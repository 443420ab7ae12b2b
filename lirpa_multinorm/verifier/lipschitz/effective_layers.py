"""Linear and Conv layers together with the affine steps around them, as one kernel."""

from __future__ import annotations

from collections.abc import Container
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import network
from .operator_norms import kernel_options, layer_weight


class EffectiveLayer(NamedTuple):
    """A Linear or Conv step, and what steps behind it make of its kernel.

    Args:
        layer: The index of the Linear or Conv step, whose options hold.
        source: The index of the step that it takes.
        weight: The kernel (O, C / groups, kh, kw) or matrix (out, in) in float64, with a BatchNorm
            or a factor of each channel on its rows, and with the identity added behind a skip
            connection.
    """

    layer: int
    source: int
    weight: Tensor


def effective_layer(
    graph: network.ModelGraph, index: int, given: Container[int]
) -> EffectiveLayer | None:
    """Return the one kernel that a step is of an earlier step's value, but for constants added.

    So a linear residual block ``x + s conv(x)`` has the norm of ``I + s W``, not 1 and that of
    ``s W``.

    Args:
        graph: The graph.
        index: The index of the step.
        given: The indices of the steps that are not looked behind.

    Returns:
        The layer; None where the step is no such.

    Source: Hu et al. 2023, "Unlocking Deterministic Robustness Certification on ImageNet", section
        4.1 (linear residual blocks).
    """
    if index in given or not index:
        return None
    step = graph.steps[index]
    weight = layer_weight(step)
    if weight is not None:
        return EffectiveLayer(index, step.sources[0], weight)
    if step.operator in ("add", "sub") and len(step.sources) == 2:
        return _sum_of(graph, step, given)
    if len(step.sources) != 1 or step.operator not in ("batch_norm", "mul", "div", "add", "sub"):
        return None
    inner = effective_layer(graph, step.sources[0], given)
    if inner is None or step.shape != graph.steps[step.sources[0]].shape:
        return None
    factor = _channel_factor(graph, step, inner)
    if factor is None:
        return None
    return inner._replace(weight=inner.weight * factor.view(-1, *[1] * (inner.weight.ndim - 1)))


def _sum_of(
    graph: network.ModelGraph, step: network.Step, given: Container[int]
) -> EffectiveLayer | None:
    """Return ``x + layer(x)`` or ``layer(x) - x`` as one layer."""
    if step.arguments.get("alpha", 1) != 1:
        return None
    signs = (1, -1 if step.operator == "sub" else 1)
    for branch in (0, 1):
        inner = effective_layer(graph, step.sources[branch], given)
        if inner is None:
            continue
        share = _multiple(graph, step.sources[1 - branch], inner.source)
        identity = _identity(graph, inner)
        if share is not None and identity is not None:
            weight = signs[branch] * inner.weight + signs[1 - branch] * share * identity
            return inner._replace(weight=weight)
    return None


def _multiple(graph: network.ModelGraph, index: int, source: int) -> float | None:
    """Return the number that a step multiplies another one by; None of other steps."""
    if index == source:
        return 1.0
    step = graph.steps[index]
    other = step.arguments.get("other")
    if step.operator == "mul" and step.sources == (source,) and isinstance(other, (int, float)):
        return float(other)
    return None


def _identity(graph: network.ModelGraph, inner: EffectiveLayer) -> Tensor | None:
    """Return the kernel of a layer's shape that changes nothing; None where there is none."""
    step, weight = graph.steps[inner.layer], inner.weight
    if step.shape != graph.steps[inner.source].shape or weight.shape[0] != weight.shape[1]:
        return None
    identity = torch.zeros_like(weight)
    if step.operator == "linear":
        return identity.fill_diagonal_(1)
    options = kernel_options(step)
    if options.groups != 1 or set(options.stride) != {1} or options.padding is None:
        return None
    middle = []
    sides = list(weight.shape[2:])
    pads, dilations = options.padding[-len(sides) :], options.dilation[-len(sides) :]
    for side, padding, dilation in zip(sides, pads, dilations):
        if padding % dilation or padding // dilation >= side:
            return None
        middle.append(padding // dilation)
    channels = torch.arange(len(weight), device=weight.device)
    index: Any = (channels, channels, *middle)
    identity[index] = 1
    return identity


def _channel_factor(
    graph: network.ModelGraph, step: network.Step, inner: EffectiveLayer
) -> Tensor | None:
    """Return what a step multiplies each row of a kernel by, (O,) or (1,) in float64."""
    like, rows = inner.weight, len(inner.weight)
    if step.operator in ("add", "sub"):
        return like.new_ones(1) if step.arguments.get("other") is not None else None
    by_channel = graph.steps[inner.layer].operator != "linear" or len(step.shape) == 2
    if step.operator == "batch_norm":
        options = step.arguments
        scale = network.batch_norm_scale(
            options["weight"], options["running_var"].double(), options["eps"]
        )
        return scale.double() if by_channel else None
    other = step.arguments.get("other")
    if step.arguments.get("rounding_mode") is not None or other is None:
        return None
    factor = torch.as_tensor(other, dtype=torch.float64, device=like.device)
    if factor.numel() > 1:
        aligned = factor.view(*[1] * (len(step.shape) - factor.ndim), *factor.shape)
        if not by_channel or aligned.shape[1] != rows or aligned.numel() != rows:
            return None
    factor = factor.flatten()
    return 1 / factor if step.operator == "div" else factor
