"""Switching a mode of a model, or of torch, for a moment."""

from __future__ import annotations

import contextlib
from typing import Iterator

import torch
from torch import nn


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
