"""Switching a model's mode for a moment."""

from __future__ import annotations

import contextlib
from typing import Iterator

from torch import nn


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put every submodule in eval mode for the block and restore each one's own mode afterwards."""
    inner = getattr(model, "model", None)  # a BoundedModule keeps its network outside its submodules
    owners = [model, inner] if isinstance(inner, nn.Module) else [model]
    modes = [(module, module.training) for owner in owners for module in owner.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
