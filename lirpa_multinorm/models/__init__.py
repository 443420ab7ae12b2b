"""Networks by name, with the input normalisation inside."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any, Callable

from torch import nn

from ..errors import InvalidArgumentError
from ..utils.hints import did_you_mean
from .cnn import cnn3, cnn5, cnn7, cnn_small
from .distance import DistanceLogits, LinfDistance, MeanShift, linf_dist_mlp
from .init import shi_init_
from .liresnet import LinearResidualConv, MinMax, UnitRows, liresnet
from .masking import DoubleMasking, masked_cnn
from .mlp import mlp
from .normalize import Normalize
from .resnet import BasicBlock, resnet2b, resnet4b
from .saturation import Saturation

__all__ = [
    "MODELS",
    "BasicBlock",
    "DistanceLogits",
    "DoubleMasking",
    "LinearResidualConv",
    "LinfDistance",
    "MeanShift",
    "MinMax",
    "Normalize",
    "Saturation",
    "UnitRows",
    "build_model",
    "cnn3",
    "cnn5",
    "cnn7",
    "cnn_small",
    "linf_dist_mlp",
    "liresnet",
    "masked_cnn",
    "mlp",
    "resnet2b",
    "resnet4b",
    "shi_init_",
]

#: Factories by name; each takes ``(in_shape, num_classes, **options)`` and gives a
#: ``nn.Sequential``.
MODELS: dict[str, Callable[..., nn.Sequential]] = {
    "cnn_small": cnn_small,
    "cnn3": cnn3,
    "cnn5": cnn5,
    "cnn7": cnn7,
    "resnet2b": resnet2b,
    "resnet4b": resnet4b,
    "liresnet": liresnet,
    "mlp": mlp,
    "linf_dist_mlp": linf_dist_mlp,
    "masked_cnn": masked_cnn,
}


def build_model(
    name: str,
    in_shape: Sequence[int],
    num_classes: int,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    saturation: Sequence[float] | None = None,
    **options: Any,
) -> nn.Sequential:
    """Build a network by name; its input is the image in [0, 1].

    Args:
        name: A key of ``MODELS``.
        in_shape: Shape (C, H, W) of one image.
        num_classes: Number of outputs K.
        mean: Subtracted per channel; ``None`` means 0.
        std: Divided by per channel; ``None`` means 1.
        saturation: (low, high) of a :class:`Saturation` in front of all else; ``None`` means none.
        **options: Further arguments of the factory, such as ``width``.

    Returns:
        A ``nn.Sequential`` from (B, C, H, W) to (B, K), flat but for residual blocks; after the
        saturation comes a :class:`Normalize`, unless mean and std change nothing.

    Raises:
        InvalidArgumentError: If a name, shape, number or option cannot be used.

    Example:
        >>> model = build_model("cnn_small", (1, 8, 8), 10, width=4)
        >>> print(*(type(layer).__name__ for layer in model))
        Conv2d ReLU Conv2d ReLU Flatten Linear ReLU Linear
    """
    if name not in MODELS:
        hint = did_you_mean(name, MODELS)
        raise InvalidArgumentError(f"name: no model {name!r}.{hint} Known: {', '.join(MODELS)}.")
    in_shape = tuple(in_shape)
    if len(in_shape) != 3 or not all(_is_count(size) for size in in_shape):
        raise InvalidArgumentError(
            f"in_shape: {in_shape} is not (C, H, W). Pass three positive whole numbers."
        )
    if not _is_count(num_classes) or num_classes < 2:
        raise InvalidArgumentError(
            f"num_classes: {num_classes!r}. Pass a whole number of at least 2."
        )
    _check_options(name, options)
    model = MODELS[name](in_shape, num_classes, **options)
    return nn.Sequential(*_saturation(saturation), *_normalisation(in_shape[0], mean, std), *model)


def _is_count(value: Any) -> bool:
    """Return whether a value is a positive whole number."""
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) > 0


def _check_options(name: str, options: dict[str, Any]) -> None:
    """Refuse unknown options, and values unlike the default: truths, whole numbers, or lists."""
    parameters = dict(list(inspect.signature(MODELS[name]).parameters.items())[2:])
    for key, value in options.items():
        if key not in parameters:
            options_text = ", ".join(parameters) or "none"
            raise InvalidArgumentError(
                f"{key}: the model {name!r} has no such option. It has: {options_text}."
            )
        default = parameters[key].default
        if isinstance(default, bool):
            if not isinstance(value, bool):
                raise InvalidArgumentError(f"{key}: {value!r}. Pass True or False.")
        elif isinstance(default, int) and not _is_count(value):
            raise InvalidArgumentError(f"{key}: {value!r}. Pass one positive whole number.")
        if isinstance(default, tuple) and not (
            isinstance(value, (list, tuple)) and all(map(_is_count, value))
        ):
            raise InvalidArgumentError(f"{key}: {value!r}. Pass a list of positive whole numbers.")


def _saturation(levels: Sequence[float] | None) -> list[nn.Module]:
    """Return the saturation as a layer, or no layer."""
    if levels is None:
        return []
    if not isinstance(levels, (list, tuple)) or len(levels) != 2:
        raise InvalidArgumentError(
            f"saturation: {levels!r}. Pass two numbers, such as (0.1, 0.9), or None."
        )
    return [Saturation(*levels)]


def _normalisation(
    channels: int, mean: Sequence[float] | None, std: Sequence[float] | None
) -> list[nn.Module]:
    """Return the normalisation as a layer, or no layer where it would change nothing."""
    layer = Normalize(
        _per_channel("mean", mean, 0.0, channels), _per_channel("std", std, 1.0, channels)
    )
    changes = bool(layer.mean.any()) or bool((layer.std != 1).any())
    return [layer] if changes else []


def _per_channel(key: str, value: Any, neutral: float, channels: int) -> list[float]:
    """Return a constant per channel; the neutral one where no value is given."""
    if value is None:
        return [neutral] * channels
    values: list[Any] = [value] if isinstance(value, Real) else list(value)
    if len(values) != channels:
        raise InvalidArgumentError(
            f"{key}: {len(values)} numbers for {channels} channels. Pass one per channel."
        )
    return values
