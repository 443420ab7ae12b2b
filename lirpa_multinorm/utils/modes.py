"""Modes of a model or of torch: switched for a block, or kept away from a function."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Iterator
from typing import Any, Callable, TypeVar, cast

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
    """Let float32 products and convolutions in the block be rounded to TensorFloat-32, or not.

    By default cuDNN rounds convolutions to it. All switches of torch have their previous values
    after the block, by whatever names they were set.
    """
    before = []
    try:
        for owner, name, value in _precision_switches(allowed):
            previous = getattr(owner, name)
            if previous != value:
                before.append((owner, name, previous))
                setattr(owner, name, value)
        yield
    finally:
        for owner, name, previous in reversed(before):
            setattr(owner, name, previous)


class _MatmulPrecision:
    """Torch's setting ``torch.set_float32_matmul_precision`` as an attribute."""

    value = property(
        lambda self: torch.get_float32_matmul_precision(),
        lambda self, value: torch.set_float32_matmul_precision(value),
    )


def _precision_switches(allowed: bool) -> Iterator[tuple[Any, str, Any]]:
    """Yield (owner, attribute, value) of the switches, what contains others first.

    A switch follows the one that contains it unless it has a value of its own, which it then shows.
    Those that follow are never written: torch has no word for "as at the start", nor can its old
    names be read after new ones were used.
    """
    if not hasattr(torch.backends, "fp32_precision"):  # before torch 2.9
        yield _MatmulPrecision(), "value", "high" if allowed else "highest"
        yield torch.backends.cudnn, "allow_tf32", allowed
        return
    owners: list[Any] = [
        torch.backends,
        torch.backends.cudnn,
        torch.backends.mkldnn,
        torch.backends.cuda.matmul,
    ]
    owners += [
        getattr(backend, name)
        for backend in owners[1:3]
        for name in ("matmul", "conv", "rnn")
        if hasattr(backend, name)
    ]
    for owner in owners:
        yield owner, "fp32_precision", "tf32" if allowed else "ieee"


def sheltered(function: Function) -> Function:
    """Make a function independent of what surrounds its call.

    One thread at a time runs sheltered functions, since tracing and bounding change what belongs to
    the process (the default type, standard output, parts of the host). Autocast is off. In
    ``torch.inference_mode`` the function runs outside of it, without gradients unless it asks for
    them itself. Tensors that were made there are copied.
    """

    @functools.wraps(function)
    def call(*arguments, **options):
        """Call the function, sheltered."""
        with _LOCK, contextlib.ExitStack() as stack:
            for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
                stack.enter_context(torch.autocast(device, enabled=False))
            if torch.is_inference_mode_enabled():
                stack.enter_context(torch.inference_mode(False))
                stack.enter_context(torch.no_grad())
            arguments, options = _usable(arguments), _usable(options)
            return function(*arguments, **options)

    return cast(Function, call)


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
    if type(value) is dict:
        return {name: _usable(entry) for name, entry in value.items()}
    return value
