"""Bounds of the rounding errors of distance networks, layer by layer in l_inf.

A distance rounds once, ``fl(x_i - w_i)``, since an absolute value and a maximum are exact: it is
off by no more than its input is, and one unit of itself. So errors neither grow nor add up over
the inputs of a layer, and in l_inf

    e_out <= L e_in + d,   d the layer's own rounding of values as large as any on the set.

A layer says d by a method ``rounding_error(largest, unit)``: a bound in l_inf of what rounding adds
where its exact outputs have absolute values of at most ``largest`` (B,), unit the unit roundoff.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Callable

import torch
from torch import Tensor, nn

from ...errors import UnsupportedModelError
from ...perturbations import Region
from ..lipschitz.offered import (
    DROPOUTS,
    MEANS,
    computes_as,
    layer_constant,
    moved,
    offered_layers,
    reaches_of,
)

_EXACT = (nn.Flatten, nn.ReLU, nn.Identity, nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)
_SLACK = 1 + 1e-6  # of what is calculated here


@torch.no_grad()
def offered_rounding(model: nn.Module, regions: Sequence[Region]) -> Tensor:
    """Bound how far computed outputs can be from exact arithmetic's, anywhere on some sets.

    Args:
        model: A ``nn.Sequential`` in eval mode.
        regions: (centre, set) pairs, together R examples.

    Returns:
        Bounds (R, K), in the type of the centres.

    Raises:
        UnsupportedModelError: A layer offers no constant in l_inf, or its rounding is not known;
            the message names it.
    """
    x = torch.cat([region.center for region in regions]).detach()
    unit, reaches, value = torch.finfo(x.dtype).eps / 2, reaches_of(regions), x
    error = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    for layer in offered_layers(model):
        before = value.flatten(1).abs().amax(1).double() + reaches[math.inf] + 2 * error
        value = layer(value)
        constant = layer_constant(layer, math.inf)
        if constant == math.inf:
            raise UnsupportedModelError(
                f"model: {layer} offers no finite constant in l_inf, in which rounding is bounded"
            )
        reaches = moved(reaches, layer, value[0].numel())
        largest = value.flatten(1).abs().amax(1).double() + reaches[math.inf] + 2 * error * constant
        error = (error * constant + _own_error(layer, before, largest, unit)) * _SLACK
    bound = (error * _SLACK).to(x.dtype)
    return (
        torch.nextafter(bound, bound.new_tensor(math.inf)).unsqueeze(1).expand(-1, value[0].numel())
    )


def _own_error(layer: nn.Module, before: Tensor, largest: Tensor, unit: float) -> Tensor:
    """Return what rounding in a layer adds, (B,), from the largest input and the largest output."""
    offered: Callable[[Tensor, float], Tensor] | None = getattr(layer, "rounding_error", None)
    if callable(offered):
        # The computed output may be larger than the exact one, by this error itself.
        return offered(largest, unit) * (1 + 16 * unit)
    if computes_as(layer, (*_EXACT, *DROPOUTS)):
        return torch.zeros_like(largest)
    if computes_as(layer, MEANS):
        sides = (
            layer.kernel_size if isinstance(layer.kernel_size, tuple) else [layer.kernel_size] * 3
        )
        return before * (2 * unit * (math.prod(sides) + 2))
    raise UnsupportedModelError(f"model: what rounding does in {layer} is not known")
