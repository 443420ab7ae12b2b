"""Regions whose bounds are compared for tightness, and which of them lies in which.

Threat sets are what an attacker may do; covers hold a threat set and are sound for it; training
regions lie inside a threat set and certify nothing.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from lirpa_multinorm import AttackSettings, PerturbationL2Box, PerturbationLinf, pgd
from lirpa_multinorm.perturbations import Region, cure_l2_region, sabr_region, small_ball_region
from lirpa_multinorm.perturbations.rows import DenseRows

from .networks import Subject

ATTACK = AttackSettings(steps=50, restarts=2)
DIRECTIONS = 64
HOST = "host's l_2 ball"
#: What must lie in what, whatever the network: threat sets in their covers, training regions in
#: their threat sets.
INSIDE: list[tuple[str, str]] = [
    ("l_2 ball and pixel range", "l_2 ball"),
    ("l_2 ball and pixel range", "SABR's box at the l_2 radius"),
    ("SABR's small box", "l_inf set"),
    ("small l_2 ball", "l_2 ball and pixel range"),
]


class Case(NamedTuple):
    """A region and what it stands for.

    Args:
        region: Around all images.
        kind: "threat set", "cover" (holds the threat set) or "training region".
        of: The threat set meant, "l_inf" or "l_2".
    """

    region: Region
    kind: str
    of: str


def cases(
    network: Subject, scale: float, settings: dict[str, Any]
) -> tuple[dict[str, Case], dict[str, Tensor]]:
    """Return the regions by name, and the points that attack the two threat sets."""
    linf, ball = PerturbationLinf(scale * network.eps_inf), PerturbationL2Box(scale * network.eps_2)
    generator = torch.Generator().manual_seed(0)
    points = dict(
        zip(
            ("l_inf", "l_2"),
            pgd(network.model, network.x, network.y, [linf, ball], ATTACK, generator),
        )
    )
    ratio, small, tiny = (settings[name] for name in ("ratio_inf", "ratio_2", "ratio_cure_l2"))
    inner = [PerturbationL2Box(ball.eps * (1 - part)) for part in (small, tiny)]
    near = pgd(network.model, network.x, network.y, inner, ATTACK, generator)
    return {
        "l_inf set": Case(Region(network.x, linf), "threat set", "l_inf"),
        "SABR's small box": Case(
            sabr_region(network.x, points["l_inf"], linf, ratio), "training region", "l_inf"
        ),
        "l_2 ball and pixel range": Case(Region(network.x, ball), "threat set", "l_2"),
        "l_2 ball": Case(Region(network.x, ball.unclipped()), "cover", "l_2"),
        HOST: Case(Region(network.x, ball.unclipped()), "cover", "l_2"),
        "SABR's box at the l_2 radius": Case(
            Region(network.x, PerturbationLinf(ball.eps)), "cover", "l_2"
        ),
        "small l_2 ball": Case(
            small_ball_region(network.x, near[0], ball, small, clipped=True),
            "training region",
            "l_2",
        ),
        "CURE's l_2 box": Case(
            cure_l2_region(network.x, near[1], ball, tiny), "training region", "l_2"
        ),
    }, points


def containment(regions: dict[str, Case]) -> dict[str, dict[str, float]]:
    """Return how far each region sticks out of each other one, in units of the other's half-width.

    The largest ``h_A(u) - h_B(u)`` over random directions, the axes' among them, for support
    functions h: A lies in B only if there is none.
    """
    center = next(iter(regions.values())).region.center
    generator = torch.Generator().manual_seed(1)
    u = torch.randn(DIRECTIONS, center[0].numel(), generator=generator)
    u = torch.cat(
        [u / u.norm(dim=1, keepdim=True), torch.eye(len(u[0]))[:: max(1, len(u[0]) // DIRECTIONS)]]
    )
    rows = DenseRows(torch.cat([u, -u]).unsqueeze(0))
    reach = {
        name: case.region.perturbation.extreme(rows, case.region.center, 1)
        for name, case in regions.items()
    }
    half = {name: (value[:, : len(u)] + value[:, len(u) :]) / 2 for name, value in reach.items()}
    return {
        inside: {
            around: float(
                ((reach[inside] - reach[around]) / half[around].repeat(1, 2).clamp(min=1e-6)).max()
            )
            for around in regions
            if around != inside
        }
        for inside in regions
    }


def attacked_share(case: Case, points: Tensor) -> dict[str, float]:
    """Return which share of the points that attack the threat set a region holds."""
    inside = case.region.perturbation.contains(points, case.region.center)
    return {"attacked points inside %": 100 * float(inside.float().mean())}
