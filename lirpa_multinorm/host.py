"""The one door to auto_LiRPA ("the host"): imports, shims for old versions, and the few internals we rely on.

Nothing else in the package imports auto_LiRPA or asks for its version; differences between versions are found by
looking for the feature, never by comparing version numbers.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import sys
import types
from typing import Iterator, NamedTuple, Optional

import numpy
import torch
from torch import Tensor

from .errors import HostImportError, UnsupportedModelError

_INSTALL = """auto_LiRPA cannot be imported ({error}). Install one of the two supported versions:
    pip install --no-deps auto_LiRPA==0.3
    pip install --no-deps git+https://github.com/Verified-Intelligence/auto_LiRPA.git
(without --no-deps pip tries to replace your torch by a version below the host's pin)"""


def _exporter_globals():
    """Return the global settings object of torch's TorchScript exporter, wherever this torch keeps it."""
    for name in ("torch.onnx._internal.torchscript_exporter._globals", "torch.onnx._globals"):
        try:
            return importlib.import_module(name).GLOBALS
        except ImportError:
            continue
    return None


def _set_opset_version(version: int) -> None:
    """Stand in for a private torch function that auto_LiRPA 0.3 imports and calls while it traces."""
    _exporter_globals().export_onnx_opset_version = version


@contextlib.contextmanager
def _exporter_settings_kept() -> Iterator[None]:
    """Undo what the host changes in torch's exporter settings while it traces."""
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
    """Names that auto_LiRPA 0.3 imports and that current numpy and torch no longer have."""
    import torch.onnx.symbolic_helper as symbolic_helper

    stand_in = None
    try:
        importlib.import_module("numpy.lib.arraysetops")
    except ImportError:
        stand_in = types.ModuleType("numpy.lib.arraysetops")
        stand_in.isin = numpy.isin
        sys.modules["numpy.lib.arraysetops"] = stand_in
    try:
        with _attribute(symbolic_helper, "_set_opset_version", _set_opset_version):
            yield
    finally:
        if stand_in is not None:
            del sys.modules["numpy.lib.arraysetops"]


try:
    with _import_shims():
        import auto_LiRPA
        from auto_LiRPA import BoundedModule as HostModule
        from auto_LiRPA import BoundedTensor
        from auto_LiRPA.bound_ops import BoundBuffers, BoundConv, BoundInput, BoundLinear, BoundParams
        from auto_LiRPA.patches import Patches, inplace_unfold
        from auto_LiRPA.perturbations import Perturbation, PerturbationLpNorm
        from auto_LiRPA.utils import eyeC
except Exception as error:  # whatever a broken installation raises, the remedy is the same
    raise HostImportError(_INSTALL.format(error=f"{type(error).__name__}: {error}")) from error

__all__ = ["BoundedTensor", "HostModule", "Patches", "Perturbation", "PerturbationLpNorm", "eyeC"]

namespace = auto_LiRPA
version: str = getattr(auto_LiRPA, "__version__", "unknown")

# The old host (the one with `_set_input`) forgets to drop the sparse index of slopes it stores densely, and fails.
DEFAULT_OPTIONS = ({"sparse_features_alpha": False, "sparse_spec_alpha": False}
                   if hasattr(HostModule, "_set_input") else {})

# Whether bounds of dense patches go back to the host as (B, C, H, W) or flat.
_PATCH_BOUNDS_ARE_IMAGES = not hasattr(HostModule, "concretize_bounds")

_ELEMENTWISE = ("BoundAdd", "BoundSub", "BoundMul", "BoundDiv", "BoundNeg")
_RESHAPES = ("BoundReshape", "BoundFlatten", "BoundUnsqueeze", "BoundSqueeze", "BoundTranspose", "BoundIdentity")


class FirstLayer(NamedTuple):
    """A Linear or Conv node that sees the input through element-wise affine and reshaping nodes only."""

    node: torch.nn.Module
    chain: tuple  # the nodes between the input and ``node``, in order
    root: torch.nn.Module  # the input node

    @property
    def is_conv(self) -> bool:
        return isinstance(self.node, BoundConv)


def _perturbed_inputs(node) -> list:
    return [i for i, previous in enumerate(node.inputs) if previous.from_input]


def _is_chain_node(node) -> bool:
    name = type(node).__name__
    if name == "BoundBatchNormalization":
        return not node.training and _perturbed_inputs(node) == [0]
    if name == "BoundDiv":
        return _perturbed_inputs(node) == [0]
    return (name in _ELEMENTWISE and len(_perturbed_inputs(node)) == 1) or (
        name in _RESHAPES and _perturbed_inputs(node)[:1] == [0])


def first_layers(module: HostModule) -> dict:
    """Return {node name: FirstLayer} of a traced module (see :class:`FirstLayer`)."""
    found = {}
    for node in module._modules.values():
        if type(node) not in (BoundLinear, BoundConv) or _perturbed_inputs(node) != [0]:
            continue
        if type(node) is BoundConv and node.inputs[1].forward().ndim != 4:
            continue
        chain, previous = [], node.inputs[0]
        while _is_chain_node(previous):
            chain.append(previous)
            previous = previous.inputs[_perturbed_inputs(previous)[0]]
        if type(previous) is BoundInput:
            found[node.name] = FirstLayer(node, tuple(reversed(chain)), previous)
    return found


def run_chain(module: HostModule, layer: FirstLayer, value: Tensor, reshapes_only: bool = False) -> Tensor:
    """Send a tensor of the input's shape through the nodes before a first layer.

    Args:
        module: The traced module the layer belongs to.
        layer: One of :func:`first_layers`.
        value: Tensor of the input's shape, whole stacked batch (a reshape may know its size).
        reshapes_only: If True the tensor is carried to the layer's input coordinates, unscaled and unshifted.

    Returns:
        The tensor in the layer's input coordinates.
    """
    for node in layer.chain:
        if reshapes_only and type(node).__name__ not in _RESHAPES:
            continue
        moving = _perturbed_inputs(node)[0]
        arguments = [value if i == moving else module.get_forward_value(previous)
                     for i, previous in enumerate(node.inputs)]
        value = node.forward(*arguments)
    return value


def chain_kinds(layer: FirstLayer) -> tuple:
    """Return (has reshapes, has element-wise arithmetic) of the nodes before a first layer."""
    reshapes = [type(node).__name__ in _RESHAPES for node in layer.chain]
    return any(reshapes), not all(reshapes)


def layer_constants(module: HostModule, layer: FirstLayer) -> list:
    """Return the values of a first layer's weight and bias nodes, as its ``forward`` takes them."""
    return [module.get_forward_value(node) for node in layer.node.inputs[1:]]


def layer_weight(layer: FirstLayer, constants: list) -> Tensor:
    """Return a Conv's kernel, or a Linear's weight as (out, in), from :func:`layer_constants`."""
    return constants[0] if layer.is_conv else layer.node._preprocess(None, constants[0])[1]


def kernel_options(layer: FirstLayer) -> dict:
    """Return stride, padding, dilation and groups of a Conv."""
    node = layer.node
    return {"stride": node.stride, "padding": node.padding, "dilation": node.dilation, "groups": node.groups}


def propagate_box(layer: FirstLayer, box: tuple, constants: list, C: Optional[Tensor]) -> tuple:
    """Interval arithmetic of the host through a first layer, from a box in the layer's input coordinates."""
    merged = {} if C is None else {"C": C}
    return layer.node.interval_propagate(box, *[(value, value) for value in constants], **merged)


class _UnsupportedNodes(logging.Handler):
    """Collects the nodes the host reports as unsupported; it only logs them and raises without a name."""

    def __init__(self) -> None:
        super().__init__()
        self.nodes = []

    def emit(self, record: logging.LogRecord) -> None:
        for argument in record.args if isinstance(record.args, tuple) else ():
            if hasattr(argument, "op") and hasattr(argument, "name"):
                self.nodes.append(argument)


@contextlib.contextmanager
def tracing() -> Iterator[None]:
    """Everything the host needs while it traces a model; turns its reports into one clear error.

    Raises:
        UnsupportedModelError: An operator is not supported; the message names it and its place in the model.
    """
    import torch.onnx.symbolic_helper as symbolic_helper

    seen, logger = _UnsupportedNodes(), logging.getLogger("auto_LiRPA")
    loggers = {logger, auto_LiRPA.utils.logger}
    node_get = getattr(symbolic_helper, "_node_get", None)
    said = io.StringIO()
    for one in loggers:
        one.addHandler(seen)
    try:
        with contextlib.redirect_stdout(said), _exporter_settings_kept(), _attribute(
                torch._C.Node, "__getitem__", lambda node, name: node_get(node, name)):
            yield
    except Exception as error:
        if seen.nodes:
            names = ", ".join(f"{n.op} at {n.name}" for n in seen.nodes)
            raise UnsupportedModelError(
                f"model: the host auto_LiRPA {version} does not support {names}. Replace the operator by supported "
                "ones, or pass its bound class in custom_ops.") from error
        raise
    finally:
        for one in loggers:
            one.removeHandler(seen)


def share_tensors(module: HostModule, model: torch.nn.Module) -> None:
    """Let the traced nodes use the model's own parameters and buffers.

    The host copies buffers, so that after training through it the model's BatchNorm statistics would be stale.
    """
    tensors = dict(model.named_parameters(remove_duplicate=False))
    tensors.update(model.named_buffers(remove_duplicate=False))
    for node in module._modules.values():
        own = tensors.get(getattr(node, "ori_name", None))
        if own is None:
            continue
        if isinstance(node, BoundParams) and isinstance(own, torch.nn.Parameter):
            node._parameters["param"] = own
            # The host's forward would switch requires_grad of the user's parameters with train() and eval().
            node.forward = lambda node=node: node._parameters["param"]
        elif isinstance(node, BoundBuffers):
            node._buffers["buffer"] = own


def unfold(image: Tensor, patches: Patches) -> Tensor:
    """Return what each patch sees of an image.

    Args:
        image: Tensor of shape (B, C, H, W).
        patches: Host patches over that image.

    Returns:
        (B, out_h, out_w, C, kh, kw), or (S, B, C, kh, kw) where only S unstable neurons are kept.
    """
    seen = inplace_unfold(image, kernel_size=patches.patches.shape[-2:], padding=patches.padding,
                          stride=patches.stride, inserted_zeros=patches.inserted_zeros,
                          output_padding=patches.output_padding)
    if patches.unstable_idx is None:
        return seen
    return seen[:, patches.unstable_idx[1], patches.unstable_idx[2]].transpose(0, 1)


def shaped_bound(bound: Tensor, A, input_shape: tuple) -> Tensor:
    """Give a concretised bound (B, S) the shape the host adds up, which depends on A and on the version."""
    if not _PATCH_BOUNDS_ARE_IMAGES or not isinstance(A, Patches) or A.unstable_idx is not None:
        return bound
    image = input_shape if A.identity == 1 else (A.patches.shape[0], *A.patches.shape[2:4])
    return bound.view(-1, *image)
