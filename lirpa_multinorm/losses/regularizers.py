"""Shi's regularisers: tight bounds and balanced ReLUs while the radius grows."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from ..bounds import IntermediateIntervals
from ..utils import distributed

TOLERANCE = 0.5


def shi_regularizer(hidden: IntermediateIntervals, tolerance: float = TOLERANCE) -> Tensor:
    """Return the mean over ReLU layers of the tightness and the balance term.

    Tightness: ``relu(t - r_in / r) / t`` with r the mean half-width of a layer's input, r_in of the
    network's. Balance: ``(relu(t - m) + relu(t - v)) / t``, with m the ratio of the mean centres
    and v that of the squared deviations of stably active and stably inactive neurons, each folded
    to at most 1; left out where a ratio is not defined.

    Args:
        hidden: Bounds of the network's input and of every ReLU's input on a training region.
        tolerance: t, in (0, 1].

    Returns:
        A scalar; 0 for a network without ReLU.

    Source: Shi et al. 2021, "Fast Certified Robust Training with Short Warmup", section 4.3, as
        used by SABR.
    """
    input_radius = _radius(*hidden.input)
    terms = [
        _tightness(input_radius, _radius(lower, upper), tolerance)
        + _balance(lower, upper, tolerance)
        for lower, upper in hidden.relus
    ]
    if not terms:
        return torch.zeros_like(input_radius)
    return cast(Tensor, sum(terms)) / len(terms)


def _radius(lower: Tensor, upper: Tensor) -> Tensor:
    return distributed.mean((upper - lower) / 2)


def _tightness(input_radius: Tensor, radius: Tensor, tolerance: float) -> Tensor:
    return F.relu(tolerance - input_radius / radius.clamp(min=1e-12)) / tolerance


def _balance(lower: Tensor, upper: Tensor, tolerance: float) -> Tensor:
    center, active, inactive = (lower + upper) / 2, lower > 0, upper < 0
    deviation = (center - distributed.mean(center)) ** 2
    parts = (
        (distributed.mean(center * active), -distributed.mean(center * inactive)),
        (distributed.mean(deviation * active), distributed.mean(deviation * inactive)),
    )
    # Not where no neuron is stably inactive; without a look at the values, which would wait.
    ratios = torch.stack([above.detach() / below.detach() for above, below in parts])
    defined = torch.isfinite(ratios).all()
    penalties = [
        F.relu(tolerance - _folded(above.where(defined, 0.0) / below.where(defined, 1.0)))
        for above, below in parts
    ]
    return (cast(Tensor, sum(penalties)) / tolerance).where(defined, 0.0)


def _folded(ratio: Tensor) -> Tensor:
    return torch.minimum(ratio, 1 / ratio.clamp(min=1e-12))
