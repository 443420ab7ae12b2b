"""Torch's factories, of which those of this package land on torch's ``meta`` device.

A tensor that a file of ``lirpa_multinorm`` makes without ``device=`` has no values then, and fails
as soon as it meets an input or a weight: so a forgotten device, which a CPU would forgive, is found
on any machine. What torch, auto_LiRPA and the tests make stays where it was. A tensor that lies on
the CPU on purpose says so: ``device="cpu"``.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Iterator
from pathlib import Path
from types import CodeType
from typing import Callable

import torch
from torch import Tensor

import lirpa_multinorm

PACKAGE = Path(lirpa_multinorm.__file__).parent
#: Where weights are made, as torch's own layers make theirs: on the default device.
WEIGHTS = (PACKAGE / "models", PACKAGE / "audit")
#: Functions of torch that make a tensor and take ``device``; those of an argument that is a tensor
#: keep its device.
FACTORIES = [
    "arange",
    "bartlett_window",
    "blackman_window",
    "empty",
    "empty_permuted",
    "empty_strided",
    "eye",
    "fft.fftfreq",
    "fft.rfftfreq",
    "full",
    "hamming_window",
    "hann_window",
    "kaiser_window",
    "linspace",
    "logspace",
    "ones",
    "rand",
    "randint",
    "randn",
    "randperm",
    "range",
    "sparse_coo_tensor",
    "sparse_csr_tensor",
    "tril_indices",
    "triu_indices",
    "zeros",
]
CONVERSIONS = ("as_tensor", "asarray", "scalar_tensor", "tensor")


@functools.cache
def belongs_to_package(code: CodeType) -> bool:
    """Whether code stands in a file of the package that makes no weights."""
    path = Path(code.co_filename)
    if PACKAGE not in path.parents:
        return False
    return not (code.co_name == "__init__" and any(folder in path.parents for folder in WEIGHTS))


def _on_meta(factory: Callable, converts: bool) -> Callable:
    """Return a factory that makes this package's tensors without a device on ``meta``."""

    @functools.wraps(factory)
    def made(*args, **kwargs):
        if kwargs.get("device") is None and belongs_to_package(sys._getframe(1).f_code):
            keeps = converts and args and isinstance(args[0], Tensor)
            if not keeps and kwargs.get("out") is None:
                kwargs["device"] = "meta"
        return factory(*args, **kwargs)

    return made


@contextlib.contextmanager
def forgotten_devices_on_meta() -> Iterator[None]:
    """Put on ``meta`` what this package makes without saying on which device."""
    kept = []
    for name in (*FACTORIES, *CONVERSIONS):
        *modules, function = name.split(".")
        owner = functools.reduce(getattr, modules, torch)
        kept.append((owner, function, getattr(owner, function)))
        setattr(owner, function, _on_meta(kept[-1][2], name in CONVERSIONS))
    try:
        yield
    finally:
        for owner, function, factory in kept:
            setattr(owner, function, factory)
