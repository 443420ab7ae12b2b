"""Contexts for calls of the host: torch's default type, and weights without gradients."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Let the host make its constants and tables in our type, not in torch's default type."""
    default = torch.get_default_dtype()
    if dtype == default:
        yield
        return
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(default)


@contextlib.contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Let no gradient reach the model's parameters during the block."""
    tracked = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in tracked:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in tracked:
            parameter.requires_grad_(True)
