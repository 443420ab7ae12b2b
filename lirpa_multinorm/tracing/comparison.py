"""Comparison of two ways of computing a function: differences beyond rounding, and their place."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..errors import UnsupportedModelError

ROUNDING = 1000  # units in the last place that two ways of computing one function may differ by


def excess(model: nn.Module, inputs: Sequence[Tensor], value: Tensor, wanted: Tensor) -> float:
    """Return by how much values differ from a model's outputs beyond rounding.

    Values that overflow in the graph do not count, for a bound is never NaN. The effect of rounding
    is measured where it matters.

    Raises:
        UnsupportedModelError: The model gives another output each time, so that values cannot be
            compared.
    """
    if value.shape != wanted.shape:
        return float("inf")
    unit = torch.finfo(wanted.dtype).eps
    gap = torch.nan_to_num((value - wanted).flatten(1).abs(), nan=0.0, posinf=0.0)
    size = torch.nan_to_num(wanted.flatten(1).abs().amax(1, keepdim=True), nan=torch.inf)
    allowed = ROUNDING * unit * size
    if not bool((gap > allowed).any()):
        return 0.0
    check_constancy(model, inputs)
    return float(torch.where(gap > allowed + 100 * rounding_noise(model, inputs), gap, 0.0).max())


def differ(first: Tensor, second: Tensor) -> bool:
    """Return whether two outputs (B, ...) differ by more than rounding; NaN does not count."""
    rounding = ROUNDING * torch.finfo(first.dtype).eps * torch.nan_to_num(first.abs()).max()
    return bool((torch.nan_to_num((first - second).abs(), nan=0.0) > rounding).any())


def check_constancy(model: nn.Module, inputs: Sequence[Tensor]) -> None:
    """Raise an error where a model gives another output each time."""
    if differ(model(*inputs), model(*inputs)):
        raise UnsupportedModelError(
            "model: two calls with the same input give different outputs (a counter in its "
            "forward?); bounds need a function: remove what changes"
        )


def rounding_noise(
    model: nn.Module,
    inputs: Sequence[Tensor],
    specified: Callable[[Tensor], Tensor] = lambda output: output,
) -> Tensor:
    """Return how much outputs change, (B, 1), where inputs and weights change in their last places.

    An output near zero can be the difference of large numbers, so that its size does not bound its
    rounding.
    """
    generator = torch.Generator().manual_seed(0)

    def moved(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        sign = torch.randint(0, 2, tensor.shape, generator=generator, device="cpu") * 2 - 1
        return tensor * (1 + 4 * torch.finfo(tensor.dtype).eps * sign.to(tensor))

    nearby = tuple(map(moved, inputs))
    weights = {name: moved(weight) for name, weight in model.named_parameters()}
    outputs = [functional_call(model, weights, nearby), model(*nearby), model(*inputs)]
    values = [specified(output).reshape(len(output), -1) for output in outputs]
    change = torch.stack([(value - values[-1]).abs() for value in values[:-1]]).amax(0)
    return torch.nan_to_num(change.amax(1, keepdim=True), nan=torch.inf)


def first_difference(
    model: nn.Module, inputs: Sequence[Tensor], values: Callable[..., list[Tensor]]
) -> str:
    """Return the first module whose output no operator of the graph has, as words of a message."""
    outputs: list[tuple[str, nn.Module, object]] = []

    def record(name: str, layer: nn.Module, _: object, output: object) -> None:
        outputs.append((name, layer, output))

    hooks = [
        layer.register_forward_hook(partial(record, name))
        for name, layer in model.named_modules()
        if name and not list(layer.children())
    ]
    try:
        model(*inputs)
    finally:
        for hook in hooks:
            hook.remove()
    nodes = values(*inputs)
    for name, layer, output in outputs:
        if isinstance(output, Tensor) and not any(_is_same(output, node) for node in nodes):
            return f" from {layer} at {name!r} on"
    return ""


def node_values(graph: Callable[..., Tensor], *inputs: Tensor) -> list[Tensor]:
    """Return the values of the nodes of the host's module that a graph is the forward method of."""
    graph(*inputs)
    nodes = getattr(getattr(graph, "__self__", None), "_modules", {})
    return [
        node.forward_value
        for node in nodes.values()
        if isinstance(getattr(node, "forward_value", None), Tensor)
    ]


def _is_same(output: Tensor, value: Tensor) -> bool:
    if output.numel() != value.numel():
        return False
    return torch.allclose(
        output.flatten(), value.flatten().to(output), rtol=1e-3, atol=1e-5, equal_nan=True
    )
