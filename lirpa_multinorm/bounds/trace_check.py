"""Whether a traced graph computes what its model computes."""

from __future__ import annotations

import contextlib
from typing import Callable, Iterator, List, Optional, Sequence

import torch
from torch import Tensor, nn

from ..errors import UnsupportedModelError
from ..modes import tensor_float_32

_SCALES = (1.0, 10.0)  # of the normally distributed probes, and how far from zero they are centred
_ROUNDING = 1000  # units in the last place that two ways of computing one function may differ by
_TOGETHER = 2  # probes in one call
_REMEDY = ("Bounds of it would be those of another function. Replace the part by operators of torch with other "
           "options, or by a module of your own made of supported ones")


def probes(samples: Sequence[Tensor]) -> List[Tensor]:
    """Return inputs to try a graph on: the sample and a uniform one, two normal ones, and the negatives of these.

    Args:
        samples: One example (1, ...) of each input.

    Returns:
        (6, ...) each; the same every time. Inputs that are no floating-point numbers are repeated.
    """
    generator, batches = torch.Generator().manual_seed(0), []
    for sample in samples:
        if not sample.is_floating_point():
            batches.append(sample.expand(2 + 2 * len(_SCALES), *sample.shape[1:]))
            continue
        uniform = torch.rand(sample.shape, generator=generator)
        normal = torch.cat([scale * (1 + torch.randn(sample.shape, generator=generator)) for scale in _SCALES])
        batches.append(torch.cat([sample, uniform.to(sample), normal.to(sample), -normal.to(sample)]).contiguous())
    return batches


@torch.no_grad()
def check_trace(model: nn.Module, graph: Callable[..., Tensor], samples: Sequence[Tensor],
                fixed_batch: bool = False) -> None:
    """Compare a graph with its model on several inputs.

    Args:
        model: The model, in the mode in which the graph was made.
        graph: The traced graph as a function of the same inputs.
        samples: A batch of each input; the graph takes no other size if it is fixed.
        fixed_batch: Whether it is.

    Raises:
        UnsupportedModelError: They differ by more than rounding, the model gives another value each time, or its
            outputs depend on the other examples of a batch; the message names the first module that differs, where
            one does.
    """
    batch, size = probes([sample[:1] for sample in samples]), len(samples[0])
    size = size if fixed_batch else _TOGETHER
    rows = torch.arange(max(size, len(batch[0]))) % len(batch[0])
    # Several small calls: what branches on a sum over its batch takes both ways.
    calls = [tuple(inputs[part] for inputs in batch) for part in rows.split(size) if len(part) == size]
    with _randomness_kept(batch[0]), tensor_float_32(False):
        for inputs in calls:
            wanted, again = model(*inputs), model(*inputs)
            allowed = _allowed(model, inputs, wanted)
            if _excess(again, wanted, allowed) > 0:
                raise UnsupportedModelError("model: two calls with the same input give different outputs (a Dropout "
                                            "that is always on, noise, or a counter in its forward?); bounds need a "
                                            "function: remove what changes")
            excess = _excess(graph(*inputs), wanted, allowed)
            if excess > 0:
                where = _first_difference(model, graph, inputs)
                raise UnsupportedModelError(f"model: the traced graph computes another function{where}; an output "
                                            f"differs by {excess:.3g}. {_REMEDY}.")
        if not fixed_batch:
            _check_independence(model, inputs, wanted, allowed)


@torch.no_grad()
def check_contained(model: nn.Module, x: Sequence[Tensor], C: Optional[Tensor], lower: Optional[Tensor],
                    upper: Optional[Tensor], method: str) -> None:
    """Raise unless bounds contain the model's own output at the centre of their set.

    Args:
        model: The plain model, in eval mode.
        x: Its inputs, (B, ...) each.
        C: Specification (B, S, K), or None.
        lower: Lower bounds (B, S), or of the output's shape without C; or None.
        upper: Upper bounds; or None.
        method: What made them.

    Raises:
        UnsupportedModelError: An output lies outside by more than rounding.
    """
    with tensor_float_32(False):
        output = model(*x)
    value = output if C is None else C.matmul(output.flatten(1).unsqueeze(-1)).squeeze(-1)
    size = output.flatten(1).abs() if C is None else C.abs().matmul(output.flatten(1).abs().unsqueeze(-1)).squeeze(-1)
    allowed = 10 * _ROUNDING * torch.finfo(value.dtype).eps * size.flatten(1).amax(1)
    excess = [(bound.detach() - value if sign > 0 else value - bound.detach()).flatten(1).amax(1)
              for bound, sign in ((lower, 1), (upper, -1)) if bound is not None and bound.shape == value.shape]
    for gap in excess:
        wrong = gap > allowed  # False for NaN, which is reported elsewhere
        if bool(wrong.any()):
            raise UnsupportedModelError(f"model: the bounds by {method} leave out the model's own output at the centre "
                                        f"of the set, by {float(gap[wrong].max()):.3g}: the graph computes another "
                                        "function than the model, or the host bounds an operator wrongly. If the "
                                        "model was changed after its first use, call BoundedModule(model) anew; "
                                        "otherwise try another method")


def _allowed(model: nn.Module, inputs: Sequence[Tensor], output: Tensor) -> Tensor:
    """Return what rounding may change of each example's output, (B,): measured by moving the input by its last place."""
    unit = torch.finfo(output.dtype).eps
    moved = model(*[one * (1 + 4 * unit) if one.is_floating_point() else one for one in inputs])
    noise = (moved - output).flatten(1).abs().amax(1)
    scale = output.flatten(1).abs().amax(1)
    return torch.nan_to_num(_ROUNDING * unit * scale + 100 * noise, nan=torch.inf)


def _excess(value: Tensor, wanted: Tensor, allowed: Tensor) -> float:
    """Return by how much values differ beyond rounding; what overflows in the graph says nothing: NaN is never a bound."""
    if value.shape != wanted.shape:
        return float("inf")
    gap = (value - wanted).flatten(1).abs()
    gap = torch.where(gap.isfinite() & (gap > allowed.unsqueeze(1)), gap, torch.zeros_like(gap))
    return float(gap.max()) if gap.numel() else 0.0


def _check_independence(model: nn.Module, batch: Sequence[Tensor], wanted: Tensor, allowed: Tensor) -> None:
    """Raise where an example's output depends on the examples beside it."""
    alone = model(*[inputs[:1] for inputs in batch])
    if _excess(alone, wanted[:1], allowed[:1]) > 0:
        raise UnsupportedModelError("model: the output of an input depends on the other inputs of its batch (a mean over "
                                    "the batch, BatchNorm without running statistics?); bounds are of single inputs: "
                                    "use statistics that are fixed in eval mode")


def _first_difference(model: nn.Module, graph: Callable[..., Tensor], inputs: Sequence[Tensor]) -> str:
    """Return where a model leaves its graph: the first module whose output no node of the graph has."""
    outputs = []
    hooks = [layer.register_forward_hook(lambda layer, _, output, name=name: outputs.append((name, layer, output)))
             for name, layer in model.named_modules() if name and not list(layer.children())]
    try:
        model(*inputs)
    finally:
        for hook in hooks:
            hook.remove()
    graph(*inputs)
    nodes = getattr(getattr(graph, "__self__", None), "_modules", {})
    values = [node.forward_value for node in nodes.values() if isinstance(getattr(node, "forward_value", None), Tensor)]
    for name, layer, output in outputs:
        if isinstance(output, Tensor) and not any(_same(output, value) for value in values):
            return f" from {layer} at {name!r} on"
    return ""


def _same(output: Tensor, value: Tensor) -> bool:
    if output.numel() != value.numel():
        return False
    return torch.allclose(output.flatten(), value.flatten().to(output), rtol=1e-3, atol=1e-5, equal_nan=True)


@contextlib.contextmanager
def _randomness_kept(x: Tensor) -> Iterator[None]:
    """Leave the generators of torch as they were."""
    with torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
        yield
