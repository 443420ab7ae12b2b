"""Traces of models: clear errors, and nodes that use the model's own tensors."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator
from typing import Any

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
    """A collector of the nodes that the host logs as unsupported before it raises."""

    def __init__(self) -> None:
        super().__init__()
        self.nodes: list = []

    def emit(self, record: logging.LogRecord) -> None:
        for argument in record.args if isinstance(record.args, tuple) else ():
            if hasattr(argument, "op") and hasattr(argument, "name"):
                self.nodes.append(argument)


@contextlib.contextmanager
def _dropout_ratios_as_tensors() -> Iterator[None]:
    """Give Dropout's ratio to the host's forward pass as a tensor.

    The exporter gives a float, and the pass asks for its device.
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
    """Provide a context in which the host traces a model, with a clear error for its reports.

    Raises:
        UnsupportedModelError: An operator is not supported; the message names it and its node.
    """
    import torch.onnx.symbolic_helper as symbolic_helper

    unsupported = _UnsupportedNodes()
    loggers = {logging.getLogger("auto_LiRPA"), namespace.utils.logger}
    node_get: Any = getattr(symbolic_helper, "_node_get", None)
    propagate = {logger: logger.propagate for logger in loggers}
    for logger in loggers:
        logger.addHandler(unsupported)
        logger.propagate = False  # our error holds its reports
    try:
        with (
            contextlib.redirect_stdout(io.StringIO()),
            _exporter_settings_kept(),
            _dropout_ratios_as_tensors(),
            _attribute(torch._C.Node, "__getitem__", lambda node, name: node_get(node, name)),
        ):
            yield
    except Exception as error:
        if isinstance(error, LirpaMultinormError) or is_out_of_memory(error):
            raise
        if isinstance(error.__context__, LirpaMultinormError):  # host 0.7 raises its own behind it
            raise error.__context__ from error
        # An operator unknown to the exporter is in an attribute; two loggers report each node.
        titles = [
            f"{node.attr.get('operator') or node.op} at {node.name}" for node in unsupported.nodes
        ]
        problem = f"cannot trace it ({type(error).__name__}: {error})"
        if titles:
            problem = f"does not support {', '.join(dict.fromkeys(titles))}"
        raise UnsupportedModelError(
            f"model: the host auto_LiRPA {version} {problem}. Replace the operator by "
            "supported ones, or pass its bound class in custom_ops."
        ) from error
    finally:
        for logger in loggers:
            logger.removeHandler(unsupported)
            logger.propagate = propagate[logger]


def share_tensors(module: HostModule, model: torch.nn.Module) -> None:
    """Let the traced nodes use the model's own parameters and buffers.

    The host copies buffers, so that after training through it the model's BatchNorm statistics
    would be stale.
    """
    tensors: dict[str | None, torch.Tensor] = {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }
    for node in module._modules.values():
        tensor = tensors.get(getattr(node, "ori_name", None))
        if tensor is None:
            continue
        if isinstance(node, BoundParams) and isinstance(tensor, torch.nn.Parameter):
            node._parameters["param"] = tensor
            # The host's forward would switch requires_grad of the user's parameters with train()
            # and eval().
            node.forward = lambda node=node: node._parameters["param"]
        elif isinstance(node, BoundBuffers):
            # An nn.Buffer would be registered anew wherever the host keeps a value.
            is_buffer = getattr(tensor, "_is_buffer", False)
            node._buffers["buffer"] = tensor.detach() if is_buffer else tensor
            channels = _image_channels(module, node)
            if channels:  # patches mode multiplies by (1, C, 1, 1) only; the values are the same
                node.forward = lambda node=node, shape=channels: node._buffers["buffer"].expand(
                    shape
                )


def mode_owners(module: HostModule, model: torch.nn.Module) -> list:
    """Return pairs of each node and the layer whose training mode it follows.

    A BatchNorm node follows its layer, which may be frozen alone, and other nodes the model. Nodes
    of Dropout stay in eval mode: in training mode a model with Dropout is not bounded.
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
    """Return the nodes that use a node's value, also by a reciprocal, the newer host's division."""
    users = [module._modules[name] for name in node.output_name]
    return [
        final
        for user in users
        for final in (_users(module, user) if type(user).__name__ == "BoundReciprocal" else [user])
    ]


def _image_channels(module: HostModule, node) -> tuple[int, ...] | None:
    """Return (1, C, 1, 1) if a buffer is a number, or a number per channel, beside images."""
    users = _users(module, node)
    shapes: list[tuple] = [
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
    """Set the nodes of :func:`mode_owners` to their layers' modes; returns whether any changed."""
    changed = [(node, layer) for node, layer in pairs if node.training != layer.training]
    for node, layer in changed:
        node.train(layer.training)
    return bool(changed)
