"""Import of auto_LiRPA, with the shims that its old version needs on current torch and numpy."""

from __future__ import annotations

import contextlib
import importlib
import logging
import sys
import types
import warnings
from collections.abc import Iterator

import numpy

from ..errors import HostImportError

__all__ = [
    "Bound",
    "BoundActivation",
    "BoundBuffers",
    "BoundConv",
    "BoundDropout",
    "BoundInput",
    "BoundLinear",
    "BoundMatMul",
    "BoundParams",
    "BoundedTensor",
    "DEFAULT_OPTIONS",
    "HostModule",
    "Patches",
    "Perturbation",
    "PerturbationLpNorm",
    "eyeC",
    "inplace_unfold",
    "namespace",
    "version",
]

_INSTALL = """auto_LiRPA cannot be imported ({error}). Install one of the two supported versions:
    pip install --no-deps auto_LiRPA==0.3
    pip install graphviz && pip install --no-deps git+https://github.com/Verified-Intelligence/auto_LiRPA.git
(without --no-deps pip tries to replace your torch by a version below the host's pin)"""


def _exporter_globals():
    """Return torch's global TorchScript exporter settings, wherever this torch keeps them."""
    for name in ("torch.onnx._internal.torchscript_exporter._globals", "torch.onnx._globals"):
        try:
            return importlib.import_module(name).GLOBALS
        except ImportError:
            continue
    return None


def _set_opset_version(version: int) -> None:
    """Stand in for a private torch function that auto_LiRPA 0.3 imports and calls when tracing."""
    _exporter_globals().export_onnx_opset_version = version


@contextlib.contextmanager
def _exporter_settings_kept() -> Iterator[None]:
    """Restore torch's exporter settings, which the host changes while it traces."""
    settings = _exporter_globals()
    kept = dict(vars(settings)) if settings is not None else {}
    try:
        yield
    finally:
        for name, value in kept.items():
            setattr(settings, name, value)


@contextlib.contextmanager
def _attribute(owner, name: str, value) -> Iterator[None]:
    """Give ``owner`` an attribute it lacks, for the duration of the block only."""
    if hasattr(owner, name):
        yield
        return
    setattr(owner, name, value)
    try:
        yield
    finally:
        delattr(owner, name)


@contextlib.contextmanager
def _import_shims() -> Iterator[None]:
    """Provide names that auto_LiRPA 0.3 imports and that current numpy and torch lack."""
    import torch.onnx.symbolic_helper as symbolic_helper

    stand_in = None
    try:
        importlib.import_module("numpy.lib.arraysetops")
    except ImportError:
        stand_in = types.ModuleType("numpy.lib.arraysetops")
        stand_in.__dict__["isin"] = numpy.isin
        sys.modules["numpy.lib.arraysetops"] = stand_in
    try:
        with _attribute(symbolic_helper, "_set_opset_version", _set_opset_version):
            yield
    finally:
        if stand_in is not None:
            del sys.modules["numpy.lib.arraysetops"]


@contextlib.contextmanager
def _process_kept() -> Iterator[None]:
    """Restore warning filters and root logger, which the import of the host changes.

    The block drops its warnings and torch's (of torch.jit.script, of missing CUDA), which do not
    concern our users.
    """
    root, extension = logging.getLogger(), logging.getLogger("torch.utils.cpp_extension")
    handlers, level, disabled = list(root.handlers), root.level, extension.disabled
    extension.disabled = True
    try:
        with warnings.catch_warnings(record=True):  # a filter would not do: the host changes them
            yield
    finally:
        extension.disabled = disabled
        root.handlers[:] = handlers
        root.setLevel(level)


try:
    with _import_shims(), _process_kept():
        import auto_LiRPA
        from auto_LiRPA import BoundedModule as HostModule
        from auto_LiRPA import BoundedTensor
        from auto_LiRPA.bound_ops import (
            Bound,
            BoundActivation,
            BoundBuffers,
            BoundConv,
            BoundDropout,
            BoundInput,
            BoundLinear,
            BoundMatMul,
            BoundParams,
        )
        from auto_LiRPA.patches import Patches, inplace_unfold
        from auto_LiRPA.perturbations import Perturbation, PerturbationLpNorm
        from auto_LiRPA.utils import eyeC
except Exception as error:  # whatever a broken installation raises, the remedy is the same
    raise HostImportError(_INSTALL.format(error=f"{type(error).__name__}: {error}")) from error


namespace = auto_LiRPA
version: str = getattr(auto_LiRPA, "__version__", "unknown")

# The old host (the one with `_set_input`) forgets to drop the sparse index of slopes it stores
# densely, and fails.
DEFAULT_OPTIONS = (
    {"sparse_features_alpha": False, "sparse_spec_alpha": False}
    if hasattr(HostModule, "_set_input")
    else {}
)
