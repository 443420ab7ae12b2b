"""Whether a traced graph computes what its model computes."""

from __future__ import annotations

import contextlib
from functools import partial
from typing import Callable, Iterator, List, Optional, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from .._memory import is_out_of_memory
from ..errors import UnsupportedModelError
from ..modes import tensor_float_32

_ROUNDING = 1000  # units in the last place that two ways of computing one function may differ by
_REMEDY = ("Bounds of it would be those of another function. Replace the part by operators of torch with other "
           "options, or by a module of your own made of supported ones")


def probes(samples: Sequence[Tensor], size: int = 0) -> List[List[Tensor]]:
    """Return inputs to try a graph on: the sample beside a normal one above zero, and a large one below zero.

    Few rows, since they cost as much as inputs to be bounded; with both signs, so that what branches on a sum over its
    batch takes both ways.

    Args:
        samples: One example (1, ...) of each input.
        size: Rows of each call; 0: as few as there are.

    Returns:
        The inputs of two calls; the same every time. Inputs that are no floating-point numbers are repeated.
    """
    generator, calls = torch.Generator().manual_seed(0), [[], []]
    for sample in samples:
        if sample.is_floating_point():
            above, below = (scale * (1 + torch.randn(sample.shape, generator=generator)).to(sample) for scale in (1, -10))
        else:
            above = below = sample
        for call, rows in zip(calls, (torch.cat([sample, above]), below)):
            call.append(rows[torch.arange(size or len(rows), device=rows.device) % len(rows)])
    return calls


@torch.no_grad()
def check_trace(model: nn.Module, graph: Callable[..., Tensor], samples: Sequence[Tensor], output: Tensor,
                batched: Optional[bool] = None, values: Optional[Callable[..., List[Tensor]]] = None) -> bool:
    """Compare a graph with its model on several inputs.

    Args:
        model: The model, in the mode in which the graph was made.
        graph: The traced graph as a function of the same inputs.
        samples: Inputs that the graph was made with; it takes no other number of them if it is not batched.
        output: The model's output at the first of them, (1, ...).
        batched: Whether the graph takes any number of inputs; None: it is tried.
        values: Returns the values of all operators of the graph, to find the first that differs; None for a module of
            the host's.

    Returns:
        Whether the graph takes any number of inputs.

    Raises:
        UnsupportedModelError: They differ by more than rounding, the model gives another value each time, or its
            outputs depend on the other examples of a batch; the message names the first module that differs, where
            one does.
    """
    first = [sample[:1] for sample in samples]
    with _randomness_kept(samples[0]), tensor_float_32(False):
        calls = probes(first, len(samples[0]) if batched is False else 0)
        computed = _batch_value(graph, calls[0], output.shape[1:]) if batched is None else None
        if batched is None and computed is None:
            return check_trace(model, graph, samples, output, False, values)
        for inputs in calls:
            wanted, value = model(*inputs), graph(*inputs) if computed is None else computed
            excess = _excess(model, inputs, value, wanted)
            if excess > 0:
                where = _first_difference(model, inputs, values or partial(_node_values, graph))
                raise UnsupportedModelError(f"model: the traced graph computes another function{where}; an output "
                                            f"differs by {excess:.3g}. {_REMEDY}.")
            if len(wanted) > 1 and batched is not False:
                _check_independence(model, first, output, wanted[:1])
            computed = None
    return batched is not False


def _batch_value(graph: Callable[..., Tensor], inputs: Sequence[Tensor], shape: torch.Size) -> Optional[Tensor]:
    """Return a graph's outputs, (B, ...), or None where it does not take B inputs at once."""
    try:
        value = graph(*inputs)
    except (RuntimeError, AssertionError, ValueError) as error:
        if is_out_of_memory(error):
            raise
        return None
    return value if value.shape == (len(inputs[0]), *shape) else None


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
    specified = partial(_specified, C)
    value = specified(output)
    size = output.flatten(1).abs() if C is None else C.abs().matmul(output.flatten(1).abs().unsqueeze(-1)).squeeze(-1)
    allowed = 10 * _ROUNDING * torch.finfo(value.dtype).eps * size.flatten(1).amax(1)
    excess = [(bound.detach() - value if sign > 0 else value - bound.detach()).flatten(1).amax(1)
              for bound, sign in ((lower, 1), (upper, -1)) if bound is not None and bound.shape == value.shape]
    for gap in excess:
        wrong = gap > allowed  # False for NaN, which is reported elsewhere
        if bool(wrong.any()):
            with tensor_float_32(False):
                wrong = gap > allowed + 1000 * _noise(model, x, specified).squeeze(1)
        if bool(wrong.any()):
            raise UnsupportedModelError(f"model: the bounds by {method} leave out the model's own output at the centre "
                                        f"of the set, by {float(gap[wrong].max()):.3g}: the graph computes another "
                                        "function than the model, or the host bounds an operator wrongly. If the "
                                        "model was changed after its first use, call BoundedModule(model) anew; "
                                        "otherwise try another method")


def _specified(C: Optional[Tensor], output: Tensor) -> Tensor:
    """Return the functionals C (B, S, K) of an output, or the output itself."""
    return output if C is None else C.matmul(output.flatten(1).unsqueeze(-1)).squeeze(-1)


def takes_batches(model: Callable[[Tensor], Tensor], x: Tensor) -> bool:
    """Whether a model gives one output per input for more than one input like the first of x (B, ...)."""
    try:
        return len(model(torch.cat([x[:1], x[:1]]))) == 2
    except Exception as error:  # what a network raises is its own affair
        return is_out_of_memory(error)  # says nothing of batches


def _excess(model: nn.Module, inputs: Sequence[Tensor], value: Tensor, wanted: Tensor) -> float:
    """Return by how much values differ from a model's outputs beyond rounding.

    What overflows in the graph says nothing, for a bound is never NaN. What rounding may do is measured where it
    matters.
    """
    if value.shape != wanted.shape:
        return float("inf")
    unit = torch.finfo(wanted.dtype).eps
    gap = torch.nan_to_num((value - wanted).flatten(1).abs(), nan=0.0, posinf=0.0)
    allowed = _ROUNDING * unit * torch.nan_to_num(wanted.flatten(1).abs().amax(1, keepdim=True), nan=torch.inf)
    if not bool((gap > allowed).any()):
        return 0.0
    _check_constancy(model, inputs)
    return float(torch.where(gap > allowed + 100 * _noise(model, inputs), gap, 0.0).max())


def _noise(model: nn.Module, inputs: Sequence[Tensor], specified: Callable[[Tensor], Tensor] = lambda y: y) -> Tensor:
    """Return how much outputs change, (B, 1), where inputs and weights change in their last places.

    An output near zero can be the difference of large numbers; its own size says nothing of its rounding.
    """
    generator = torch.Generator().manual_seed(0)

    def moved(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        sign = torch.randint(0, 2, tensor.shape, generator=generator).to(tensor) * 2 - 1
        return tensor * (1 + 4 * torch.finfo(tensor.dtype).eps * sign)

    nearby = tuple(map(moved, inputs))
    outputs = [functional_call(model, {name: moved(weight) for name, weight in model.named_parameters()}, nearby),
               model(*nearby), model(*inputs)]
    values = [specified(output).reshape(len(output), -1) for output in outputs]
    change = torch.stack([(value - values[-1]).abs() for value in values[:-1]]).amax(0)
    return torch.nan_to_num(change.amax(1, keepdim=True), nan=torch.inf)


def _check_constancy(model: nn.Module, inputs: Sequence[Tensor]) -> None:
    """Raise where a model gives another output each time."""
    first, second = model(*inputs), model(*inputs)
    rounding = _ROUNDING * torch.finfo(first.dtype).eps * torch.nan_to_num(first.abs()).max()
    if bool((torch.nan_to_num((first - second).abs(), nan=0.0) > rounding).any()):
        raise UnsupportedModelError("model: two calls with the same input give different outputs (a Dropout that is "
                                    "always on, noise, or a counter in its forward?); bounds need a function: remove "
                                    "what changes")


def _check_independence(model: nn.Module, first: Sequence[Tensor], alone: Tensor, beside: Tensor) -> None:
    """Raise where the output at an example depends on the examples beside it."""
    if _excess(model, first, beside, alone) > 0:
        raise UnsupportedModelError("model: the output of an input depends on the other inputs of its batch (a mean over "
                                    "the batch, BatchNorm without running statistics?); bounds are of single inputs: "
                                    "use statistics that are fixed in eval mode")


def _first_difference(model: nn.Module, inputs: Sequence[Tensor], values: Callable[..., List[Tensor]]) -> str:
    """Return where a model leaves its graph: the first module whose output no operator of the graph has."""
    outputs = []
    hooks = [layer.register_forward_hook(lambda layer, _, output, name=name: outputs.append((name, layer, output)))
             for name, layer in model.named_modules() if name and not list(layer.children())]
    try:
        model(*inputs)
    finally:
        for hook in hooks:
            hook.remove()
    found = values(*inputs)
    for name, layer, output in outputs:
        if isinstance(output, Tensor) and not any(_same(output, value) for value in found):
            return f" from {layer} at {name!r} on"
    return ""


def _node_values(graph: Callable[..., Tensor], *inputs: Tensor) -> List[Tensor]:
    """Return the values of the nodes of the host's module that a graph is the forward method of."""
    graph(*inputs)
    nodes = getattr(getattr(graph, "__self__", None), "_modules", {})
    return [node.forward_value for node in nodes.values() if isinstance(getattr(node, "forward_value", None), Tensor)]


def _same(output: Tensor, value: Tensor) -> bool:
    if output.numel() != value.numel():
        return False
    return torch.allclose(output.flatten(), value.flatten().to(output), rtol=1e-3, atol=1e-5, equal_nan=True)


@contextlib.contextmanager
def _randomness_kept(x: Tensor) -> Iterator[None]:
    """Leave the generators of torch as they were."""
    with torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
        yield
