"""The check that a traced graph computes the function of its model."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Callable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from ..errors import UnsupportedModelError
from ..host import Statistics
from ..utils.memory import is_out_of_memory
from ..utils.modes import tensor_float_32
from ..utils.randomness import generators_kept, recorded_draws
from .clean_pass import overrides_forward, recorded_statistics
from .comparison import differ, excess, first_difference, node_values

_TRIES = 5  # passes in which another thread may draw random numbers
_REMEDY = (
    "Bounds of it would be those of another function. Replace the part by operators of torch with"
    " other options, or by a module of your own made of supported ones"
)


def probes(samples: Sequence[Tensor], size: int = 0) -> list[list[Tensor]]:
    """Return the inputs of two calls to try a graph on.

    The first call has the sample beside normal numbers above zero, the second has large numbers
    below zero: few rows, since they cost as much as inputs to be bounded, and both signs, so that a
    model that branches on a sum over its batch takes both branches.

    Args:
        samples: One example (1, ...) of each input.
        size: Rows of each call; 0: as few as there are.

    Returns:
        The inputs of two calls, always the same. Inputs that are no floating-point numbers are
        repeated.
    """
    generator = torch.Generator().manual_seed(0)
    calls: list[list[Tensor]] = [[], []]
    for sample in samples:
        if sample.is_floating_point():
            noise = [
                1 + torch.randn(sample.shape, generator=generator, device="cpu") for _ in range(2)
            ]
            above, below = noise[0].to(sample), -10 * noise[1].to(sample)
        else:
            above = below = sample
        for call, rows in zip(calls, (torch.cat([sample, above]), below)):
            call.append(rows[torch.arange(size or len(rows), device=rows.device) % len(rows)])
    return calls


@torch.no_grad()
def check_trace(
    model: nn.Module,
    graph: Callable[..., Tensor],
    samples: Sequence[Tensor],
    output: Tensor,
    batched: bool | None = None,
    values: Callable[..., list[Tensor]] | None = None,
) -> bool:
    """Compare a graph with its model on several inputs.

    Args:
        model: The model, in the mode in which the graph was made.
        graph: The traced graph as a function of the same inputs.
        samples: Inputs that the graph was made with; a graph that is not batched takes no other
            number of them.
        output: The model's output at the first sample, (1, ...).
        batched: Whether the graph takes any number of inputs; None: this is tried.
        values: Returns the values of all operators of the graph, to find the first that differs;
            None for a module of the host's.

    Returns:
        Whether the graph takes any number of inputs.

    Raises:
        UnsupportedModelError: Graph and model differ by more than rounding, the model gives another
            value each time, or its outputs depend on the other examples of a batch; the message
            names the first module that differs, where one does.
    """
    first = [sample[:1] for sample in samples]
    with generators_kept(samples[0].device), tensor_float_32(False):
        calls = probes(first, len(samples[0]) if batched is False else 0)
        computed = _batch_value(graph, calls[0], output.shape[1:]) if batched is None else None
        if batched is None and computed is None:
            return check_trace(model, graph, samples, output, False, values)
        remedy = "remove what draws them (a Dropout always on?)"
        for inputs in calls:
            wanted = _without_draws(partial(model, *inputs), remedy)
            value = graph(*inputs) if computed is None else computed
            gap = excess(model, inputs, value, wanted)
            if gap > 0:
                where = first_difference(model, inputs, values or partial(node_values, graph))
                raise UnsupportedModelError(
                    f"model: the traced graph computes another function{where}; an output "
                    f"differs by {gap:.3g}. {_REMEDY}."
                )
            if len(wanted) > 1 and batched is not False:
                _check_independence(model, first, output, wanted[:1])
            computed = None
    return batched is not False


def _batch_value(
    graph: Callable[..., Tensor], inputs: Sequence[Tensor], shape: torch.Size
) -> Tensor | None:
    """Return a graph's outputs, (B, ...), or None where it does not take B inputs at once."""
    try:
        value = graph(*inputs)
    except (RuntimeError, AssertionError, ValueError) as error:
        if is_out_of_memory(error):
            raise
        return None
    return value if value.shape == (len(inputs[0]), *shape) else None


@torch.no_grad()
def check_training(
    model: nn.Module,
    graph: Callable[..., Tensor],
    inputs: Sequence[Tensor],
    set_statistics: Callable[[Statistics], None],
) -> None:
    """Compare a graph with its model in training mode; both stay in it.

    Args:
        model: The model, with some layers in training mode.
        graph: The traced graph as a function of the same inputs.
        inputs: A batch of each input.
        set_statistics: Gives the graph's BatchNorm nodes the statistics to normalise by.

    Raises:
        UnsupportedModelError: A Dropout is in training mode, two passes differ, or graph and model
            do.
    """
    _check_training_modes(model)
    with generators_kept(inputs[0].device), _buffers_kept(model), tensor_float_32(False):
        remedy = "switch it off by the eval() of the module that does it in training mode"
        passes: list[Statistics] = []

        def run() -> Tensor:
            with recorded_statistics(model, update=False, together=False) as statistics:
                passes.append(statistics)
                return model(*inputs)

        wanted = _without_draws(run, remedy)
        with recorded_statistics(model, update=False, together=False):
            again = model(*inputs)
            if differ(wanted, again):
                raise UnsupportedModelError(
                    "model: in training mode two calls with the same input give different "
                    f"outputs (a counter in its forward?); bounds need a function: {remedy}"
                )
            set_statistics(passes[-1])
            gap = excess(model, inputs, graph(*inputs), wanted)
            if gap > 0:
                where = first_difference(model, inputs, partial(node_values, graph))
                raise UnsupportedModelError(
                    "model: in training mode it computes another function than in eval mode"
                    f"{where}, of which the graph is; an output differs by {gap:.3g}. Call "
                    "eval() of the module that branches on self.training, or bounded.eval()"
                )


def _check_training_modes(model: nn.Module) -> None:
    """Raise an error where a layer in training mode is no function, or none that is understood."""
    for name, layer in model.named_modules():
        if isinstance(layer, _DropoutNd) and layer.training and layer.p > 0:
            raise UnsupportedModelError(
                f"model: {layer} at {name!r} is in training mode, and bounds need a function; "
                "call its eval() after train(), or set its p to 0"
            )
        if isinstance(layer, _BatchNorm) and layer.training and overrides_forward(layer):
            raise UnsupportedModelError(
                f"model: {layer} at {name!r} has a forward of its own, of which the graph in "
                "training mode knows nothing; call its eval() after train(), or use torch's"
            )


@contextlib.contextmanager
def _buffers_kept(model: nn.Module) -> Iterator[None]:
    """Put back buffers that a forward pass changes."""
    before = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        for buffer, value in before:
            if not torch.equal(buffer, value):
                buffer.copy_(value)


def takes_batches(model: Callable[[Tensor], Tensor], x: Tensor) -> bool:
    """Return whether a model gives one output per input for several inputs like x's first."""
    try:
        return len(model(torch.cat([x[:1], x[:1]]))) == 2
    except Exception as error:  # a network may raise any error
        return is_out_of_memory(error)  # which does not depend on batches


def _check_independence(
    model: nn.Module, first: Sequence[Tensor], alone: Tensor, beside: Tensor
) -> None:
    """Raise an error where the output at an example depends on the examples beside it."""
    if excess(model, first, beside, alone) > 0:
        raise UnsupportedModelError(
            "model: the output of an input depends on the other inputs of its batch (a mean "
            "over the batch, BatchNorm without running statistics?); bounds are of single "
            "inputs: use statistics that are fixed in eval mode"
        )


def _without_draws(run: Callable[[], Tensor], remedy: str) -> Tensor:
    """Return the output of a forward pass, which must not draw random numbers."""
    for _ in range(_TRIES):
        with recorded_draws() as names:
            value = run()
        if not names:
            return value
        # Another thread may have drawn numbers of these modules.
        if not set(names) <= {"random", "numpy.random"}:
            break
    raise UnsupportedModelError(
        f"model: its forward draws random numbers ({', '.join(dict.fromkeys(names))}), so that "
        "two calls with the same input give different outputs, and bounds need a function; "
        f"{remedy}"
    )
