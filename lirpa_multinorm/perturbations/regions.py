"""Small regions around attacked points, as certified training propagates them.

They are training devices, **not bounds** for the set the attack searched: a loss computed on them
may certify nothing. Which region lies inside which set is said with each.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..errors import InvalidArgumentError
from .broadcast import column
from .lp_box import PerturbationLinf, PerturbationLpBox
from .stack import Region


def sabr_region(x: Tensor, x_adv: Tensor, perturbation: PerturbationLpBox, ratio: float) -> Region:
    """Return SABR's small box of half-width ``ratio * eps`` around the attacked point.

    The box is pushed inside the l_inf set:
    ``centre = clamp(x_adv, lower + tau, upper - tau)`` with tau = ratio * eps; the box is cut with
    clip. It lies inside the l_inf set except at pixels where clip leaves less room than 2 tau.

    Args:
        x: Clean inputs, shape (B, ...).
        x_adv: Attacked inputs, same shape.
        perturbation: The l_inf set around x.
        ratio: lambda in (0, 1].

    Returns:
        The region (centre, set).

    Raises:
        InvalidArgumentError: ratio out of range, or a set that is not l_inf.

    Source: Müller et al. 2023, "Certified Training: Small Boxes are All You Need", section 4.

    Example:
        >>> x = torch.full((1, 2), 0.5)
        >>> region = sabr_region(x, x + 0.1, PerturbationLinf(eps=0.1), ratio=0.4)
        >>> region.center, region.perturbation.eps
        (tensor([[0.5600, 0.5600]]), 0.04...)
    """
    _check_ratio(ratio)
    if perturbation.norm != math.inf:
        raise InvalidArgumentError(
            f"perturbation={perturbation} must be an l_inf set; SABR's box is defined for it"
        )
    tau = perturbation.eps * ratio
    lower, upper = perturbation.enclosing_box(x)
    width = column(perturbation.radius(x) * ratio, x)
    # As torch.clamp does where the limits cross, the upper one wins.
    center = torch.minimum(torch.maximum(x_adv, lower + width), upper - width)
    return Region(_inside_clip(center, perturbation), PerturbationLinf(tau, perturbation.clip))


def cure_l2_region(
    x: Tensor, x_adv: Tensor, perturbation: PerturbationLpBox, ratio: float
) -> Region:
    """Return CURE's small box of half-width ``ratio * eps`` around a point attacked in l_2.

    The point is attacked within ``(1 - ratio) eps``.

    The box is **not** inside the ball: its corners reach ``eps (1 + (sqrt(d) - 1) ratio)``, and it
    does not cover the ball either. The paper's ratio is 1e-5.

    Args:
        x: Clean inputs (unused; the signature is that of every region).
        x_adv: Points with ``||x_adv - x||_2 <= (1 - ratio) eps``, shape (B, ...).
        perturbation: The l_2 set around x.
        ratio: lambda_2 in (0, 1].

    Returns:
        The region (centre, set).

    Source: Jiang and Singh 2024 (CURE), section 3.3 and Algorithm 1.
    """
    _check_ratio(ratio)
    return Region(x_adv, PerturbationLinf(perturbation.eps * ratio, perturbation.clip))


def small_ball_region(
    x: Tensor, x_adv: Tensor, perturbation: PerturbationLpBox, ratio: float, clipped: bool = False
) -> Region:
    """Return the ball of radius ``ratio eps``, of the same norm, around an attacked point.

    The point is attacked within ``(1 - ratio) eps``, so that the ball lies inside the ball of
    radius eps by the triangle inequality; with ratio 1 it is that ball (attack radius 0). It is the
    analogue of SABR's box for any norm.

    Args:
        x: Clean inputs (unused; the signature is that of every region).
        x_adv: Points with ``||x_adv - x||_p <= (1 - ratio) eps``, shape (B, ...).
        perturbation: The set around x.
        ratio: lambda in (0, 1].
        clipped: Whether the small ball is cut with clip as the set is, which bounds it tighter and
            costs more; the plain ball costs a dual norm in the first layer only.

    Returns:
        The region (centre, set).
    """
    _check_ratio(ratio)
    clip = perturbation.clip if clipped else None
    return Region(x_adv, PerturbationLpBox(perturbation.norm, perturbation.eps * ratio, clip))


def _check_ratio(ratio: float) -> None:
    if not 0 < ratio <= 1:
        raise InvalidArgumentError(f"ratio={ratio!r} must lie in (0, 1]")


def _inside_clip(center: Tensor, perturbation: PerturbationLpBox) -> Tensor:
    box = perturbation.clip_box(center)
    return center if box is None else torch.minimum(torch.maximum(center, box[0]), box[1])
