"""A network as an attack runs it: BatchNorm folded into convolutions, other types and layouts."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Callable

import torch
from torch import Tensor, nn

from ..utils.memory import is_out_of_memory
from ..utils.modes import tensor_float_32
from .first_conv import FirstConv2d, gains
from .flatten import LayoutFlatten, flattens_rows

PRECISIONS = ("float32", "tf32", "bfloat16")
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def attack_view(
    model: nn.Module, precision: str = "float32", channels_last: bool = False
) -> Callable[[Tensor], Tensor]:
    """Return the eval-mode model as a function, faster to run and to differentiate at its inputs.

    The layers of an ``nn.Sequential``, nested or not, get folded: a BatchNorm behind a convolution
    goes into copies of the convolution's weights. Other modules, and all with hooks, run as they
    are. A BatchNorm behind a Linear layer stays too: it acts on few numbers, while folding would
    copy the largest weight. The view holds the weights of the moment, so make a new one after an
    update.

    Args:
        model: The network, already in eval mode; it is not changed.
        precision: One of :data:`PRECISIONS`; "bfloat16" runs under autocast and gives outputs in
            the inputs' type.
        channels_last: Whether folded 2d convolutions run in channels-last layout.

    Returns:
        A function of the inputs; to be run inside :func:`matmul_precision`.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.Flatten()).eval()
        >>> x = torch.rand(3, 1, 2, 2)
        >>> torch.allclose(attack_view(model)(x), model(x), atol=1e-6)
        True
    """
    layers = _flat(model)
    run = model
    if layers is not None:
        run = nn.Sequential(*_copied(_folded(layers), precision, channels_last))
    return (lambda inputs: _autocast(run, inputs)) if precision == "bfloat16" else run


class Batched:
    """A network as a function of batches; a network of single inputs runs example by example.

    The first batch with several inputs shows which of the two the network is.

    Args:
        run: The network, or its view.

    Example:
        >>> flat = Batched(lambda inputs: inputs.reshape(1, 4))
        >>> flat(torch.rand(3, 2, 2)).shape
        torch.Size([3, 4])
    """

    def __init__(self, run: Callable[[Tensor], Tensor]) -> None:
        self._run, self._single = run, False

    def __call__(self, inputs: Tensor) -> Tensor:
        """Return the outputs of a batch (B, ...), one row per input."""
        if len(inputs) == 1:
            return self._run(inputs)
        if not self._single:
            try:
                outputs = self._run(inputs)
                if len(outputs) == len(inputs):
                    return outputs
            except Exception as error:  # what a network raises is its own affair
                if is_out_of_memory(error):
                    raise
        outputs = torch.cat([self._run(example) for example in inputs.split(1)])
        self._single = True
        return outputs


def matmul_precision(precision: str) -> AbstractContextManager[None]:
    """Let CUDA multiply with TensorFloat-32 in the block, backward passes too, for "tf32"."""
    return tensor_float_32(True) if precision == "tf32" else contextlib.nullcontext()


def _autocast(run: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
    with torch.autocast(inputs.device.type, dtype=torch.bfloat16):
        return run(inputs).to(inputs.dtype)


def _flat(module: nn.Module) -> list[nn.Module] | None:
    """Return the layers of a Sequential in order; None where the module must run as it is."""
    if type(module) is not nn.Sequential or _is_altered(module):
        return None
    layers: list[nn.Module] = []
    for child in module:
        layers += _flat(child) or [child]
    return layers


def _is_altered(module: nn.Module) -> bool:
    """Whether hooks, or a forward of the object itself, do more than its class does."""
    return "forward" in vars(module) or any(getattr(module, name) for name in _HOOKS)


def _is_plain(layer: nn.Module, kinds: tuple) -> bool:
    """Whether a layer is exactly of one of the classes, so that its weights define it."""
    return type(layer) in kinds and not _is_altered(layer)


def _folded(layers: Sequence[nn.Module]) -> list[nn.Module]:
    folded: list[nn.Module] = []
    for layer in layers:
        foldable = _is_plain(layer, _NORMS) and layer.running_mean is not None
        if foldable and folded and _is_plain(folded[-1], _CONVOLUTIONS):
            folded[-1] = _fold(folded[-1], layer)
        else:
            folded.append(layer)
    return folded


def _fold(conv: Any, norm: Any) -> nn.Module:
    """Return a convolution equal to a convolution and a BatchNorm in eval mode."""
    scale = (norm.running_var + norm.eps).rsqrt()
    if norm.affine:
        scale = scale * norm.weight.detach()
    shift = -norm.running_mean if conv.bias is None else conv.bias.detach() - norm.running_mean
    bias = shift * scale + (norm.bias.detach() if norm.affine else 0)
    weight = conv.weight.detach() * scale.view(-1, *[1] * (conv.weight.ndim - 1))
    return _with_weights(conv, weight, bias)


def _copied(layers: Sequence[nn.Module], precision: str, channels_last: bool) -> list[nn.Module]:
    """Set type and layout of convolution and Linear weights once, instead of in every pass."""
    # Layers of others may take views that only the usual layout allows.
    channels_last = channels_last and all(
        type(layer).__module__.startswith("torch.nn.") for layer in _from_first(layers)
    )
    weighted = (*_CONVOLUTIONS, nn.Linear)
    copies = [
        _converted(layer, precision, channels_last) if _is_plain(layer, weighted) else layer
        for layer in layers
    ]
    first = next((index for index, layer in enumerate(copies) if _is_plain(layer, weighted)), None)
    if first is not None:
        layer = copies[first]
        if isinstance(layer, nn.Conv2d) and gains(layer):
            copies[first] = FirstConv2d(layer)
    if channels_last:
        copies = [
            LayoutFlatten() if flattens_rows(layer) and not _is_altered(layer) else layer
            for layer in copies
        ]
    return copies


def _from_first(layers: Sequence[nn.Module]) -> Sequence[nn.Module]:
    """Return the layers from the first 2d convolution on."""
    first = next(
        (index for index, layer in enumerate(layers) if isinstance(layer, nn.Conv2d)), len(layers)
    )
    return layers[first:]


def _converted(layer: Any, precision: str, channels_last: bool) -> nn.Module:
    """Return a convolution or Linear with weights of another type or layout."""
    weight, bias = layer.weight.detach(), None if layer.bias is None else layer.bias.detach()
    if precision == "bfloat16" and weight.dtype == torch.float32:
        weight, bias = weight.bfloat16(), None if bias is None else bias.bfloat16()
    if channels_last and isinstance(layer, nn.Conv2d):
        # Not contiguous(): it leaves weights of one input channel as they are, and with them the
        # layout of all that follows.
        weight = weight.to(memory_format=torch.channels_last)
    return _with_weights(layer, weight, bias)


def _with_weights(layer: nn.Module, weight: Tensor, bias: Tensor | None) -> nn.Module:
    """Return a shallow copy of a layer with other weights, plain tensors without gradients."""
    other = copy.copy(layer)
    other.__dict__["_parameters"] = {"weight": weight, "bias": bias}
    return other
