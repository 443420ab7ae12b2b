"""Switching a mode of a model, or of torch, for a moment; calls that do not depend on the modes around them."""

from __future__ import annotations

import contextlib
import functools
import threading
from typing import Any, Callable, Iterator, TypeVar

import torch
from torch import Tensor, nn

Function = TypeVar("Function", bound=Callable)
_LOCK = threading.RLock()


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put every submodule in eval mode for the block and restore each one's own mode afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextlib.contextmanager
def tensor_float_32(allowed: bool) -> Iterator[None]:
    """Let CUDA round what it multiplies to TensorFloat-32 inside the block, or not; by default convolutions do."""
    switches = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [one.allow_tf32 for one in switches]
    for one in switches:
        one.allow_tf32 = allowed
    try:
        yield
    finally:
        for one, value in zip(switches, before):
            one.allow_tf32 = value


def sheltered(function: Function) -> Function:
    """Make a function independent of what surrounds its call.

    One thread at a time runs sheltered functions, since tracing and bounding change what belongs to the process (the
    default type, standard output, parts of the host). Autocast is off. In ``torch.inference_mode`` the function runs
    outside of it, without gradients unless it asks for them itself. Tensors that were made there are copied.
    """
    @functools.wraps(function)
    def call(*arguments, **options):
        with _LOCK, contextlib.ExitStack() as stack:
            for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
                stack.enter_context(torch.autocast(device, enabled=False))
            if torch.is_inference_mode_enabled():
                stack.enter_context(torch.inference_mode(False))
                stack.enter_context(torch.no_grad())
            arguments, options = _usable(arguments), _usable(options)
            return function(*arguments, **options)

    return call


def _usable(value: Any) -> Any:
    """Return tensors, and containers of them, with those of inference mode copied."""
    if isinstance(value, Tensor):
        if not value.is_inference():
            return value
        copied = value.as_subclass(Tensor).clone()
        if type(value) is not Tensor:
            copied = copied.as_subclass(type(value))
            copied.__dict__.update(value.__dict__)
        return copied
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*map(_usable, value))
    if isinstance(value, (list, tuple)):
        return type(value)(map(_usable, value))
    return {name: _usable(entry) for name, entry in value.items()} if type(value) is dict else value
