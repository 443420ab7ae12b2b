"""Networks as ONNX files, with the input normalisation folded into the first layer."""

from __future__ import annotations

import copy
import inspect
import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Callable

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from ..errors import InvalidArgumentError, MissingPackageError, UnsupportedModelError
from ..models.normalize import Normalize
from ..utils.files import write_bytes

INPUT, OUTPUT = "x", "logits"
OPSET = 15  # the first whose evaluator in onnx takes BatchNorm in eval mode as such
_FUSE: list[tuple[type[nn.Module], type[nn.Module], Callable[..., nn.Module]]] = [
    (nn.Conv2d, nn.BatchNorm2d, fuse_conv_bn_eval),
    (nn.Linear, nn.BatchNorm1d, fuse_linear_bn_eval),
]
_LINEAR = ("Conv", "Gemm", "MatMul")
_SHAPING = ("Flatten", "Identity", "Reshape", "Unsqueeze", "Squeeze")


def folded(model: nn.Module) -> nn.Module:
    """Return a copy in eval mode whose input is an image in [0, 1] and whose first layer is linear.

    A :class:`~lirpa_multinorm.models.Normalize` in front of a ``nn.Sequential`` goes into the
    Linear or Conv2d that follows; where that is not exact (zeros are padded after it, or something
    else follows), it becomes a convolution with a kernel of 1 x 1. A BatchNorm goes into the layer
    before it. The logits change by rounding only.

    Args:
        model: Classifier (B, C, H, W) -> (B, K).

    Example:
        >>> model = nn.Sequential(Normalize([0.5], [0.25]), nn.Conv2d(1, 2, 3), nn.ReLU())
        >>> [type(layer).__name__ for layer in folded(model)]
        ['Conv2d', 'ReLU']
    """
    model = copy.deepcopy(model).eval()
    if not isinstance(model, nn.Sequential):
        return model
    layers = _without_batch_norm(model)
    if layers and isinstance(layers[0], Normalize):
        layers = _folded_layers(layers[0], layers[1:])
    return nn.Sequential(*layers).eval()


def _folded_layers(normalize: Normalize, layers: list[nn.Module]) -> list[nn.Module]:
    """Return layers that compute the same without the Normalize in front of them."""
    mean, std = normalize.mean.flatten().double(), normalize.std.flatten().double()
    first = layers[0] if layers else None
    second = layers[1] if len(layers) > 1 else None
    if isinstance(first, nn.Flatten) and first.start_dim == 1 and isinstance(second, nn.Linear):
        pixels = second.in_features // len(mean)
        scale = (1 / std).repeat_interleave(pixels)
        shift = (mean / std).repeat_interleave(pixels)
        weight = second.weight.double()
        _set_parameters(second, weight * scale, (weight * shift).sum(1))
        return layers
    if isinstance(first, nn.Conv2d) and _folds_exactly(first, mean):
        scale, shift = (1 / std).view(-1, 1, 1), (mean / std).view(-1, 1, 1)
        weight = first.weight.double()
        _set_parameters(first, weight * scale, (weight * shift).sum((1, 2, 3)))
        return layers
    conv = nn.Conv2d(len(mean), len(mean), 1).to(normalize.mean)
    assert conv.bias is not None  # as by default
    weight = torch.diag(1 / std).view(conv.weight.shape)
    _set_parameters(conv, weight, mean / std + conv.bias.double())
    return [conv, *layers]


def _without_batch_norm(model: nn.Sequential) -> list[nn.Module]:
    """Return the layers, with each BatchNorm that follows a linear layer put into it."""
    layers: list[nn.Module] = []
    for layer in model:
        for linear, norm, fuse in _FUSE:
            if (
                layers
                and isinstance(layers[-1], linear)
                and isinstance(layer, norm)
                and layer.track_running_stats
            ):
                layers[-1] = fuse(layers[-1], layer)
                break
        else:
            layers.append(layer)
    return layers


def _folds_exactly(conv: nn.Conv2d, mean: Tensor) -> bool:
    """Whether no padding stands for pixels other than 0."""
    padded = conv.padding == "same" if isinstance(conv.padding, str) else any(conv.padding)
    return conv.groups == 1 and (not padded or (conv.padding_mode == "zeros" and not mean.any()))


def _set_parameters(layer: nn.Linear | nn.Conv2d, weight: Tensor, shift: Tensor) -> None:
    """Give a layer another weight, and a bias that is smaller by ``shift``."""
    bias = 0 if layer.bias is None else layer.bias.double()
    kind = layer.weight.dtype
    layer.weight = nn.Parameter(weight.detach().to(kind))
    layer.bias = nn.Parameter((bias - shift).detach().to(kind))


def write_onnx(model: nn.Module, x: Tensor, path: str | Path, norms: Sequence[float] = ()) -> Path:
    """Write a network, its normalisation folded, and check the file on some images.

    Args:
        model: Classifier (B, ...) -> (B, K) in float32.
        x: Images, shape (b, ...), to trace it with and to compare the logits on; the file takes any
            batch.
        path: The file.
        norms: Norms of the sets it will be verified for.

    Returns:
        The path.

    Raises:
        MissingPackageError: The package onnx is not installed.
        InvalidArgumentError: The model is not in float32.
        UnsupportedModelError: It cannot be expressed in ONNX, or the file computes something else;
            or a norm is finite and no linear layer comes first, where auto_LiRPA's bounds are
            unsound.
    """
    try:
        import onnx
        from onnx.reference import ReferenceEvaluator
    except ImportError as error:
        raise MissingPackageError(
            f"the export needs the package onnx ({error}): pip install onnx"
        ) from error
    for name, parameter in model.named_parameters():
        if parameter.dtype != torch.float32:
            raise InvalidArgumentError(
                f"model: {name} is {parameter.dtype}; the verifier computes in float32, so pass "
                "model.float(), and certify that"
            )
    model, x = folded(model).cpu(), x.detach().cpu().float()
    with torch.no_grad(), warnings.catch_warnings():
        # The exporter warns that it is the old one, and of constants in the trace.
        warnings.simplefilter("ignore")
        logits = model(x)
        content = _exported(model, x[:1])
    graph = onnx.load_from_string(content)
    _without_shared_weights(graph.graph)
    if any(norm < float("inf") for norm in norms):
        _check_first(graph.graph)
    (output,) = ReferenceEvaluator(graph).run([OUTPUT], {INPUT: x.numpy()})
    difference = float((torch.as_tensor(output, device="cpu") - logits).abs().max())
    if not difference <= 1e-3 * max(1.0, float(logits.abs().max())):
        raise UnsupportedModelError(
            f"model: its ONNX file gives logits that differ by {difference:.3g} and is not written;"
            " models whose path depends on the input cannot be exported"
        )
    return write_bytes(path, graph.SerializeToString())


def _exported(model: nn.Module, x: Tensor) -> bytes:
    """Return a network as ONNX, traced with one image, shape (1, ...).

    Raises:
        UnsupportedModelError: It cannot be expressed in ONNX.
    """
    file = io.BytesIO()
    options: dict[str, Any] = {}
    if "dynamo" in inspect.signature(torch.onnx.export).parameters:
        options["dynamo"] = False
    try:
        torch.onnx.export(
            model,
            (x,),
            file,  # type: ignore[arg-type]  # with dynamo=False it may be a buffer
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_axes={INPUT: {0: "batch"}, OUTPUT: {0: "batch"}},
            **options,
        )
    except (RuntimeError, TypeError, ValueError) as error:
        raise UnsupportedModelError(
            f"model: it cannot be written as ONNX ({str(error).splitlines()[0]}); replace "
            "the layer that the message names"
        ) from error
    return file.getvalue()


def _without_shared_weights(graph) -> None:
    """Let layers of equal weights name them directly.

    Readers want a weight, not a copy of one that a node makes.
    """
    weights = {weight.name for weight in graph.initializer}
    copies = {
        node.output[0]: node
        for node in graph.node
        if node.op_type == "Identity" and node.input[0] in weights
    }
    for node in graph.node:
        node.input[:] = [copies[name].input[0] if name in copies else name for name in node.input]
    for node in copies.values():
        graph.node.remove(node)


def _check_first(graph) -> None:
    """Raise UnsupportedModelError unless only linear layers read the input."""
    names = {INPUT}
    for node in graph.node:
        if not names & set(node.input):
            continue
        if node.op_type in _SHAPING:
            names.update(node.output)
        elif node.op_type not in _LINEAR:
            raise UnsupportedModelError(
                f"model: its first operation is {node.op_type}; for p < inf the verifier's bounds "
                "are sound only if a Linear or Conv comes first. Put a Normalize or such a layer "
                "in front, or export l_inf only"
            )
