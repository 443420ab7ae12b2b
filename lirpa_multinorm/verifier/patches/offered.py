"""Bounds for patches that a network offers, because it is built for them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ...models import Normalize, Saturation
from ..lipschitz.offered import flat_layers, is_altered
from .search import PatchResult

_PIXELWISE = (Normalize, Saturation, nn.Identity)


def offering_layer(model: nn.Module) -> Any:
    """Return the layer of a model that offers bounds for patches, or None.

    It is the last one, has a method ``patch_bounds(x, height, width)`` as that of
    :class:`.DoubleMasking`, and all layers in front of it work pixel by pixel.

    Example:
        >>> from lirpa_multinorm.models import build_model
        >>> type(offering_layer(build_model("masked_cnn", (1, 28, 28), 10))).__name__
        'DoubleMasking'
        >>> offering_layer(build_model("cnn_small", (1, 28, 28), 10)) is None
        True
    """
    layers = list(flat_layers(model))
    if not layers:
        return None
    *pixelwise, last = layers
    if any(type(layer) not in _PIXELWISE or is_altered(layer) for layer in pixelwise):
        return None
    # A class's own bounds, since a base class's know nothing of what the class changes.
    offers = "patch_bounds" in vars(type(last)) and type(last).__call__ is nn.Module.__call__
    return last if offers and not is_altered(last) else None


def offered_patch_bounds(
    model: nn.Module, x: Tensor, size: tuple[int, int], v: Tensor, enough: Tensor
) -> PatchResult | None:
    """Bound linear forms of the output for patches by the bounds of outputs that a model offers.

    Args:
        model: The model.
        x: Images, (B, C, H, W).
        size: Rows and columns of the patch.
        v: Linear forms of the output, (B, S, K).
        enough: What bounds must exceed, (B, S); -inf: the row is not asked.

    Returns:
        The bounds, or None if the model offers none. They take the clean image's pass.

    Raises:
        UnsupportedModelError: The model is in training mode.
    """
    layer = offering_layer(model)
    if layer is None:
        return None
    for pixelwise in list(flat_layers(model))[:-1]:
        x = pixelwise(x)
    lower, upper = (bound.flatten(1, 2).unsqueeze(2) for bound in layer.patch_bounds(x, *size))
    rows = v.unsqueeze(1)
    # An infinite end that a form does not ask for is no NaN.
    ends = torch.where(rows > 0, lower, torch.where(rows < 0, upper, 0.0))
    bounds = (rows * ends).sum(3)
    places = bounds.unflatten(1, (x.shape[2] - size[0] + 1, x.shape[3] - size[1] + 1))
    proved = (places > enough[:, None, None]).all(3)
    none = torch.zeros(len(x), dtype=torch.long, device=x.device)
    return PatchResult(bounds.amin(1), places, proved, none + 0.5, none)
