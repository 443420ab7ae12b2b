"""Tracing a model, with clear errors, on the model's own tensors."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator

import torch

from ..errors import LirpaMultinormError, UnsupportedModelError
from ..utils.memory import is_out_of_memory
from ._load import (
    BoundBuffers,
    BoundDropout,
    BoundParams,
    HostModule,
    _attribute,
    _exporter_settings_kept,
    namespace,
    version,
)
from .nodes import ELEMENTWISE


class _UnsupportedNodes(logging.Handler):
    """Collects the nodes the host reports as unsupported.

    It only logs them and raises without a name.
    """

    def __init__(self) -> None:
        super().__init__()
        self.nodes = []

    def emit(self, record: logging.LogRecord) -> None:
        for argument in record.args if isinstance(record.args, tuple) else ():
            if hasattr(argument, "op") and hasattr(argument, "name"):
                self.nodes.append(argument)


@contextlib.contextmanager
def _dropout_ratios_as_tensors() -> Iterator[None]:
    """Give Dropout's ratio to the host's forward pass as a tensor.

    The exporter gives it as a float, of which that pass wants to know the device.
    """
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
        UnsupportedModelError: An operator is not supported; the message names it and its place in
            the model.
    """
    import torch.onnx.symbolic_helper as symbolic_helper

    seen, logger = _UnsupportedNodes(), logging.getLogger("auto_LiRPA")
    loggers = {logger, namespace.utils.logger}
    node_get = getattr(symbolic_helper, "_node_get", None)
    said = io.StringIO()
    propagate = {logger: logger.propagate for logger in loggers}
    for one in loggers:
        one.addHandler(seen)
        one.propagate = False  # what it reports stands in our error
    try:
        with (
            contextlib.redirect_stdout(said),
            _exporter_settings_kept(),
            _dropout_ratios_as_tensors(),
            _attribute(torch._C.Node, "__getitem__", lambda node, name: node_get(node, name)),
        ):
            yield
    except Exception as error:
        if isinstance(error, LirpaMultinormError) or is_out_of_memory(error):
            raise
        # An operator the exporter does not know itself stands in an attribute; two loggers report
        # each node.
        names = ", ".join(
            dict.fromkeys(f"{n.attr.get('operator') or n.op} at {n.name}" for n in seen.nodes)
        )
        problem = (
            f"does not support {names}"
            if names
            else f"cannot trace it ({type(error).__name__}: {error})"
        )
        raise UnsupportedModelError(
            f"model: the host auto_LiRPA {version} {problem}. Replace the operator by "
            "supported ones, or pass its bound class in custom_ops."
        ) from error
    finally:
        for one in loggers:
            one.removeHandler(seen)
            one.propagate = propagate[one]


def share_tensors(module: HostModule, model: torch.nn.Module) -> None:
    """Let the traced nodes use the model's own parameters and buffers.

    The host copies buffers, so that after training through it the model's BatchNorm statistics
    would be stale.
    """
    tensors = dict(model.named_parameters(remove_duplicate=False))
    tensors.update(model.named_buffers(remove_duplicate=False))
    for node in module._modules.values():
        own = tensors.get(getattr(node, "ori_name", None))
        if own is None:
            continue
        if isinstance(node, BoundParams) and isinstance(own, torch.nn.Parameter):
            node._parameters["param"] = own
            # The host's forward would switch requires_grad of the user's parameters with train()
            # and eval().
            node.forward = lambda node=node: node._parameters["param"]
        elif isinstance(node, BoundBuffers):
            # One that calls itself a buffer (nn.Buffer) would be registered anew wherever the host
            # keeps a value.
            node._buffers["buffer"] = own.detach() if getattr(own, "_is_buffer", False) else own
            channels = _image_channels(module, node)
            if channels:  # patches mode multiplies by (1, C, 1, 1) only; the values are the same
                node.forward = lambda node=node, shape=channels: node._buffers["buffer"].expand(
                    shape
                )


def mode_owners(module: HostModule, model: torch.nn.Module) -> list:
    """Return (node, layer) pairs.

    Whose training mode each node follows (BatchNorm may be frozen on its own).

    Not those of Dropout, which stay in eval mode: in training a model with one is not bounded.
    """
    layers, pairs = dict(model.named_modules(remove_duplicate=False)), []
    for node in module._modules.values():
        if isinstance(node, BoundDropout):
            node.eval()
            continue
        name = ""
        if type(node).__name__ == "BoundBatchNormalization":
            name = getattr(node.inputs[3], "ori_name", "").rpartition(".")[0]
        pairs.append((node, layers.get(name, model)))
    return pairs


def _users(module: HostModule, node) -> list:
    """Return the nodes that use a node's value, also through a reciprocal.

    A reciprocal is the new host's form of a division.
    """
    users = [module._modules[name] for name in node.output_name]
    return [
        one
        for user in users
        for one in (_users(module, user) if type(user).__name__ == "BoundReciprocal" else [user])
    ]


def _image_channels(module: HostModule, node):
    """Return (1, C, 1, 1) if a buffer is one number per channel, or one for all, beside images.

    Else None.
    """
    users = _users(module, node)
    shapes = [
        getattr(user, "output_shape", ()) for user in users if type(user).__name__ in ELEMENTWISE
    ]
    if len(shapes) != len(users) or not shapes or any(len(shape) != 4 for shape in shapes):
        return None
    shape = (1, shapes[0][1], 1, 1)
    try:
        return shape if torch.broadcast_shapes(node.buffer.shape, shape) == shape else None
    except RuntimeError:
        return None


def follow_modes(pairs: list) -> bool:
    """Give every node of :func:`mode_owners` its layer's training mode.

    Returns whether something changed.
    """
    changed = [(node, layer) for node, layer in pairs if node.training != layer.training]
    for node, layer in changed:
        node.train(layer.training)
    return bool(changed)
