"""Networks as ONNX files, with the input normalisation folded into the first layer."""

from __future__ import annotations

import copy
import inspect
import io
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from ..errors import InvalidArgumentError, MissingPackageError, UnsupportedModelError
from ..models.normalize import Normalize
from ..utils.files import write_bytes

INPUT, OUTPUT = "x", "logits"
OPSET = 15  # the first whose evaluator in onnx takes BatchNorm in eval mode as such
_FUSE = [
    (nn.Conv2d, nn.BatchNorm2d, fuse_conv_bn_eval),
    (nn.Linear, nn.BatchNorm1d, fuse_linear_bn_eval),
]
_LINEAR, _SHAPING = (
    ("Conv", "Gemm", "MatMul"),
    ("Flatten", "Identity", "Reshape", "Unsqueeze", "Squeeze"),
)


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
    if not (layers and isinstance(layers[0], Normalize)):
        return nn.Sequential(*layers).eval()
    normalize, *layers = layers
    mean, std = (one.flatten().double() for one in (normalize.mean, normalize.std))
    linear = (
        1
        if len(layers) > 1 and isinstance(layers[0], nn.Flatten) and layers[0].start_dim == 1
        else 0
    )
    if linear and isinstance(layers[1], nn.Linear):
        pixels = layers[1].in_features // len(mean)
        scale, shift = (one.repeat_interleave(pixels) for one in (1 / std, mean / std))
        layers[1] = _with(
            layers[1], layers[1].weight.double() * scale, (layers[1].weight.double() * shift).sum(1)
        )
    elif layers and isinstance(layers[0], nn.Conv2d) and _folds_exactly(layers[0], mean):
        scale, shift = (one.view(-1, 1, 1) for one in (1 / std, mean / std))
        weight = layers[0].weight.double()
        layers[0] = _with(layers[0], weight * scale, (weight * shift).sum((1, 2, 3)))
    else:
        conv = nn.Conv2d(len(mean), len(mean), 1).to(normalize.mean)
        layers.insert(
            0,
            _with(
                conv, torch.diag(1 / std).view(conv.weight.shape), mean / std + conv.bias.double()
            ),
        )
    return nn.Sequential(*layers).eval()


def _without_batch_norm(model: nn.Sequential) -> list[nn.Module]:
    """Return the layers, each BatchNorm that follows a linear one put into it."""
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


def _with(layer: nn.Module, weight: Tensor, shift: Tensor) -> nn.Module:
    """Give a layer another weight, and a bias that is smaller by ``shift``."""
    bias = 0 if layer.bias is None else layer.bias.double()
    kind = layer.weight.dtype
    layer.weight, layer.bias = (
        nn.Parameter(one.detach().to(kind)) for one in (weight, bias - shift)
    )
    return layer


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
            or a norm is finite and no linear layer comes first, where bounds of auto_LiRPA's own
            are unsound.
    """
    try:
        import onnx
        from onnx.reference import ReferenceEvaluator
    except ImportError as error:
        raise MissingPackageError(
            f"the export needs the package onnx ({error}): pip install onnx"
        ) from error
    for name, one in model.named_parameters():
        if one.dtype != torch.float32:
            raise InvalidArgumentError(
                f"model: {name} is {one.dtype}; the verifier computes in float32, so pass "
                "model.float(), and certify that"
            )
    model = folded(model).cpu()
    x, file = x.detach().cpu().float(), io.BytesIO()
    options = (
        {"dynamo": False} if "dynamo" in inspect.signature(torch.onnx.export).parameters else {}
    )
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # the exporter's: of being the old one, and of constants in the trace
        logits = model(x)
        try:
            torch.onnx.export(
                model,
                (x[:1],),
                file,
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
    graph = onnx.load_from_string(file.getvalue())
    _without_shared_weights(graph.graph)
    if any(norm < float("inf") for norm in norms):
        _check_first(graph.graph)
    found = torch.as_tensor(ReferenceEvaluator(graph).run([OUTPUT], {INPUT: x.numpy()})[0])
    error = float((found - logits).abs().max())
    if not error <= 1e-3 * max(1.0, float(logits.abs().max())):
        raise UnsupportedModelError(
            f"model: its ONNX file gives logits that differ by {error:.3g} and is not written; "
            "models whose path depends on the input cannot be exported"
        )
    return write_bytes(path, graph.SerializeToString())


def _without_shared_weights(graph) -> None:
    """Let layers of equal weights name them directly.

    Readers want a weight, not a copy of one that a node makes.
    """
    weights = {one.name for one in graph.initializer}
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
    names, known = {INPUT}, True
    for node in graph.node:
        if names & set(node.input):
            if node.op_type in _SHAPING:
                names.update(node.output)
            elif node.op_type not in _LINEAR:
                known = False
                break
    if not known:
        raise UnsupportedModelError(
            f"model: its first operation is {node.op_type}; for p < inf the verifier's bounds "
            "are sound only if a Linear or Conv comes first. Put a Normalize or such a layer "
            "in front, or export l_inf only"
        )
