"""Margin bounds over a region, by this package or by the host, and what they say.

Beside the bounds stands what the intervals of the layers look like: mean width and the share of
unstable neurons.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from lirpa_multinorm import BoundedModule, host, margin_matrix
from lirpa_multinorm.perturbations import Region

from .common import host_bounds
from .networks import Subject
from .tightness_regions import HOST

#: How far a bound may be above the margin that an attack reaches: both round.
TOLERANCE = 1e-4


def region_bounds(
    network: Subject, name: str, region: Region, method: str, batch: int
) -> tuple[Tensor, list[dict]] | None:
    """Return lower margin bounds (n, K-1) and what the layers' intervals look like.

    Args:
        network: What is bounded, with its labels.
        name: Of the region; :data:`HOST` has the host bound it.
        region: Around all images.
        method: Of the bounds.
        batch: How many images are bounded at a time.

    Returns:
        Bounds and layers, or None where the host fails.
    """
    bound = bounds_by_host if name == HOST else bounds_by_us
    parts = [
        bound(
            network.model,
            region.rows(rows),
            margin_matrix(network.y[rows], network.model(network.x[:1]).shape[1]),
            method,
        )
        for rows in torch.arange(len(network.x)).split(batch)
    ]
    if None in parts:
        return None
    counts = [len(lower) for lower, _ in parts]
    layers = [
        {
            key: sum(layer[key] * count for layer, count in zip(same, counts)) / sum(counts)
            for key in ("width", "unstable %")
        }
        for same in zip(*[layers for _, layers in parts])
    ]
    return torch.cat([lower for lower, _ in parts]), layers


def bounds_by_us(model, region: Region, C: Tensor, method: str) -> tuple[Tensor, list[dict]]:
    """Return this package's lower bounds and its layers."""
    bounded = BoundedModule(model, perturbations=[region.perturbation])
    (bounds,) = bounded.compute_region_bounds([region], [C], method, bound_upper=False)
    return bounds.lower.detach(), _layers(bounds.intermediate.relus)


def bounds_by_host(
    model, region: Region, C: Tensor, method: str
) -> tuple[Tensor, list[dict]] | None:
    """Return the host's lower bounds over the plain ball and its layers, or None if it fails."""
    bounds = host_bounds(model, region.center, 2, region.perturbation.eps, C, method)
    return None if bounds is None else (bounds[0], _layers(host.last_relu_bounds(bounds[1])))


def _layers(intervals: Iterable[tuple[Tensor, Tensor]]) -> list[dict]:
    """Return the mean interval width of each layer, and its share of unstable neurons."""
    return [
        {
            "width": float((high - low).mean()),
            "unstable %": 100 * float(((low < 0) & (high > 0)).float().mean()),
        }
        for low, high in intervals
    ]


@torch.no_grad()
def lowest_margins(network: Subject, points: Tensor) -> Tensor:
    """Return the lowest margin of the network at each of the points, (n,)."""
    logits = network.model(points)
    margins = torch.einsum("bsk,bk->bs", margin_matrix(network.y, logits.shape[1]), logits)
    return margins.min(1)[0]


def summary(lower: Tensor, attacked: Tensor, kind: str) -> dict[str, Any]:
    """Return what margin bounds say of the threat set.

    Args:
        lower: Bounds, (n, K-1).
        attacked: The margins that the threat set's attack reaches, (n,).
        kind: Of the region, see :class:`benchmarks.tightness_regions.Case`.
    """
    worst = lower.min(1)[0]
    share = 100 * float((worst > 0).float().mean())
    means = {"margin": float(worst.mean()), "gap to PGD": float((attacked - worst).mean())}
    if kind != "training region":
        return {
            **means,
            "certified %": share,
            "above PGD": int((worst > attacked + TOLERANCE).sum()),
        }
    return {
        **means,
        "certified %": None,
        "positive %": share,
        "positive but attacked %": 100 * float(((worst > 0) & (attacked <= 0)).float().mean()),
    }
