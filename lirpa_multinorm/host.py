"""The one door to auto_LiRPA ("the host"): imports, shims for old versions, and the few internals we rely on.

Nothing else in the package imports auto_LiRPA or asks for its version; differences between versions are found by
looking for the feature, never by comparing version numbers.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import io
import logging
import sys
import types
import warnings
from typing import Iterator, NamedTuple, Optional, Sequence

import numpy
import torch
from torch import Tensor

from . import distributed
from .errors import HostImportError, LirpaMultinormError, UnsupportedModelError

_INSTALL = """auto_LiRPA cannot be imported ({error}). Install one of the two supported versions:
    pip install --no-deps auto_LiRPA==0.3
    pip install graphviz && pip install --no-deps git+https://github.com/Verified-Intelligence/auto_LiRPA.git
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
    # The host changes the warning filters of the whole process when it is imported.
    with _import_shims(), warnings.catch_warnings():
        import auto_LiRPA
        from auto_LiRPA import BoundedModule as HostModule
        from auto_LiRPA import BoundedTensor
        from auto_LiRPA.bound_ops import (BoundBuffers, BoundConv, BoundDropout, BoundInput, BoundLinear, BoundMatMul,
                                          BoundParams)
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


def _sees_input(node) -> bool:
    """Whether a node depends on the network's input; the old host's ``from_input`` is True for buffers as well."""
    return type(node) is BoundInput or (node.from_input and any(_sees_input(previous) for previous in node.inputs))


def _perturbed_inputs(node) -> list:
    return [i for i, previous in enumerate(node.inputs) if _sees_input(previous)]


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
        if type(node) not in (BoundLinear, BoundMatMul, BoundConv) or _perturbed_inputs(node) != [0]:
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
    if layer.is_conv:
        return constants[0]
    return _linear_weight(layer.node, constants[0])


def _linear_weight(node, value: Tensor) -> Tensor:
    # A Linear without bias is a MatMul, whose weight stands transposed.
    return value.transpose(-2, -1) if type(node) is BoundMatMul else node._preprocess(None, value)[1]


def kernel_options(layer: FirstLayer) -> dict:
    """Return stride, padding, dilation and groups of a Conv."""
    node = layer.node
    return {"stride": node.stride, "padding": node.padding, "dilation": node.dilation, "groups": node.groups}


def propagate_box(layer: FirstLayer, box: tuple, constants: list, C: Optional[Tensor]) -> tuple:
    """Interval arithmetic through a first layer, from a box in the layer's input coordinates."""
    if C is not None:
        return _merged_interval(layer.node, box, constants, C)
    return layer.node.interval_propagate(box, *[(value, value) for value in constants])


def refuses_specification(node) -> bool:
    """Whether the host would merge C into a last layer that cannot take it (a MatMul of the old host)."""
    return type(node) is BoundMatMul and "C" not in inspect.signature(node.interval_propagate).parameters


def merge_specification(module: HostModule, node, C: Tensor) -> tuple:
    """Bound C times the output of a last MatMul by interval arithmetic; its input has an interval already."""
    return _merged_interval(node, node.inputs[0].interval, [module.get_forward_value(node.inputs[1])], C)


def _merged_interval(node, box: tuple, constants: list, C: Tensor) -> tuple:
    weight = C.matmul(_linear_weight(node, constants[0]))
    middle, radius = ((box[1] + box[0]) / 2).unsqueeze(-1), ((box[1] - box[0]) / 2).unsqueeze(-1)
    center = weight.matmul(middle).squeeze(-1)
    if len(constants) > 1:
        center = center + C.matmul(node._preprocess(None, constants[0], constants[1])[2])
    deviation = weight.abs().matmul(radius).squeeze(-1)
    return center - deviation, center + deviation


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
def _dropout_ratios_as_tensors() -> Iterator[None]:
    """The exporter gives Dropout's ratio as a float, of which the host's forward pass wants to know the device."""
    forward = BoundDropout.forward

    def with_tensor(node, *inputs):
        if isinstance(node.ratio, float):
            node.ratio = torch.tensor(node.ratio, device=inputs[0].device)
        return forward(node, *inputs)

    BoundDropout.forward = with_tensor
    try:
        yield
    finally:
        BoundDropout.forward = forward


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
        with contextlib.redirect_stdout(said), _exporter_settings_kept(), _dropout_ratios_as_tensors(), _attribute(
                torch._C.Node, "__getitem__", lambda node, name: node_get(node, name)):
            yield
    except Exception as error:
        if isinstance(error, (LirpaMultinormError, torch.cuda.OutOfMemoryError)):
            raise
        # An operator the exporter does not know itself stands in an attribute; two loggers report each node.
        names = ", ".join(dict.fromkeys(f"{n.attr.get('operator') or n.op} at {n.name}" for n in seen.nodes))
        problem = f"does not support {names}" if names else f"cannot trace it ({type(error).__name__}: {error})"
        raise UnsupportedModelError(f"model: the host auto_LiRPA {version} {problem}. Replace the operator by "
                                    "supported ones, or pass its bound class in custom_ops.") from error
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
            channels = _image_channels(module, node)
            if channels:  # patches mode multiplies by (1, C, 1, 1) only; the values are the same
                node.forward = lambda node=node, shape=channels: node._buffers["buffer"].expand(shape)


def mode_owners(module: HostModule, model: torch.nn.Module) -> list:
    """Return (node, layer) pairs: whose training mode each node follows (BatchNorm may be frozen on its own)."""
    layers, pairs = dict(model.named_modules()), []
    for node in module._modules.values():
        name = ""
        if type(node).__name__ == "BoundBatchNormalization":
            name = getattr(node.inputs[3], "ori_name", "").rpartition(".")[0]
        pairs.append((node, layers.get(name, model)))
    return pairs


def _users(module: HostModule, node) -> list:
    """Return the nodes that use a node's value, also through a reciprocal (the new host's form of a division)."""
    users = [module._modules[name] for name in node.output_name]
    return [one for user in users for one in
            (_users(module, user) if type(user).__name__ == "BoundReciprocal" else [user])]


def _image_channels(module: HostModule, node):
    """Return (1, C, 1, 1) if a buffer is one number per channel, or one for all, beside images; else None."""
    users = _users(module, node)
    shapes = [getattr(user, "output_shape", ()) for user in users if type(user).__name__ in _ELEMENTWISE]
    if len(shapes) != len(users) or not shapes or any(len(shape) != 4 for shape in shapes):
        return None
    shape = (1, shapes[0][1], 1, 1)
    try:
        return shape if torch.broadcast_shapes(node.buffer.shape, shape) == shape else None
    except RuntimeError:
        return None


def follow_modes(pairs: list) -> bool:
    """Give every node of :func:`mode_owners` its layer's training mode; returns whether something changed."""
    changed = [(node, layer) for node, layer in pairs if node.training != layer.training]
    for node, layer in changed:
        node.train(layer.training)
    return bool(changed)


def relu_input_intervals(module: HostModule) -> Optional[list]:
    """Return (lower, upper) of every ReLU's input from the last interval pass, in the graph's order, or None."""
    inputs = [node.inputs[0] for node in module._modules.values() if _is_relu(node)]
    if any(not isinstance(getattr(node, "interval", None), tuple) for node in inputs):
        return None
    return [node.interval[:2] for node in inputs]


def _is_relu(node) -> bool:
    """Whether a node is a ReLU of something that depends on the input."""
    return type(node).__name__ == "BoundRelu" and node.perturbed


def shrink_relu(module: HostModule, node, factors: Sequence) -> None:
    """Bound a node, if it is a ReLU, with the upper bounds of its crossing inputs multiplied (unsound).

    Args:
        module: The traced module, in an interval pass.
        node: The node.
        factors: (rows of the batch, factor) pairs.
    """
    if not _is_relu(node):
        return
    if not hasattr(node.inputs[0], "interval"):
        module.IBP_general(node.inputs[0])
    lower, upper = node.inputs[0].interval
    scale = upper.new_ones(len(upper), *[1] * (upper.ndim - 1))
    for rows, factor in factors:
        scale[rows] = factor
    shrunk = torch.where((lower < 0) & (upper > 0), upper * scale, upper)
    node.lower, node.upper = node.interval = node.interval_propagate((lower, shrunk))


def synchronise_batch_norms(module: HostModule) -> None:
    """Let BatchNorm nodes see the whole batch where a run has several processes."""
    for node in module._modules.values():
        if type(node).__name__ == "BoundBatchNormalization":
            node.forward = functools.partial(_batch_norm, node)


def _batch_norm(node, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    if not (node.training and distributed.is_active()):
        return type(node).forward(node, x, weight, bias, mean, variance)
    axes, shape = [axis for axis in range(x.ndim) if axis != 1], (1, -1) + (1,) * (x.ndim - 2)
    count = distributed.all_sum(torch.tensor(float(x.numel() // x.shape[1]), dtype=x.dtype, device=x.device))
    node.patches_start = node.patches_start and x.ndim != 2
    node.current_mean = distributed.all_sum(x.sum(axes)) / count
    centered = x - node.current_mean.view(shape)
    node.current_var = distributed.all_sum((centered ** 2).sum(axes)) / count
    with torch.no_grad():
        mean.lerp_(node.current_mean, node.momentum)
        variance.lerp_(node.current_var * count / (count - 1), node.momentum)
    scale = weight / torch.sqrt(node.current_var + node.eps)
    return centered * scale.view(shape) + bias.view(shape)


def batch_statistics(module: HostModule) -> dict:
    """Return the BatchNorm statistics of the last forward pass by node name, as :func:`set_batch_statistics` takes."""
    return {node.name: (node.current_mean, node.current_var) for node in module._modules.values()
            if hasattr(node, "current_mean")}


def set_batch_statistics(module: HostModule, statistics: dict) -> None:
    """Carry BatchNorm statistics over to a module traced anew."""
    for name, (mean, variance) in statistics.items():
        if name in module._modules:
            module._modules[name].current_mean, module._modules[name].current_var = mean, variance


def nan_node(module: HostModule):
    """Return the name of a node whose interval contains NaN, or None."""
    ends = [(node.name, end.detach().sum()) for node in module._modules.values()
            for end in (getattr(node, "lower", None), getattr(node, "upper", None))
            if isinstance(end, Tensor) and end.is_floating_point()]
    # A sum is NaN if a summand is; one look at all of them together.
    if not ends or not bool(torch.stack([total for _, total in ends]).isnan().any()):
        return None
    return next(name for name, total in ends if bool(total.isnan()))


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
