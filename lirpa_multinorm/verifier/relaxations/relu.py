"""One ReLU layer relaxed over an interval, or over an l_2 ball and an interval at once."""

from __future__ import annotations

import torch
from torch import Tensor


def relu_intercept(
    v: Tensor,
    g: Tensor,
    center: Tensor,
    radius: Tensor,
    lower: Tensor,
    upper: Tensor,
    multiplier: Tensor,
) -> Tensor:
    """Return h with ``v . ReLU(z) >= g . z + h`` for all z in both the ball and the interval.

    By weak duality, for each multiplier m > 0 of the ball,
    ``h = sum_i min over l_i <= z_i <= u_i of (v_i ReLU(z_i) - g_i z_i + m/2 (z_i - c_i)^2) - m/2
    r^2``. On either side of zero the summand is a parabola, so the minimum is known. Without the
    interval this is the offset of SDP-CROWN; with m -> 0 it is CROWN's intercept for the slopes g /
    v, and beta-CROWN's where a bound of the interval is zero.

    Args:
        v: Linear forms of the ReLUs' outputs, (R, n).
        g: Linear forms of the ReLUs' inputs, (R, n); any are allowed.
        center: Centres of the balls, (R, n).
        radius: Radii of the balls, (R,).
        lower: Lower bounds of the interval, (R, n).
        upper: Upper bounds of the interval, (R, n).
        multiplier: m, (R,), positive.

    Returns:
        h, (R,).

    Source: Chiu et al. 2025 (SDP-CROWN), Theorem 4.1, for the ball; the interval is ours.

    Example:
        >>> upper, zero = torch.ones(1, 1), torch.zeros(1, 1)
        >>> v, radius, multiplier = -upper, torch.ones(1), torch.tensor([1e-6])
        >>> relu_intercept(v, v / 2, zero, radius, -upper, upper, multiplier)
        tensor([-0.5000])
        >>> v = v.expand(1, 100)
        >>> relu_intercept(v, v / 2, zero, radius, -upper, upper, torch.tensor([5.]))
        tensor([-5.])
    """
    return relu_heights(v, g, center, lower, upper, multiplier).sum(1) - multiplier / 2 * radius**2


def relu_heights(
    v: Tensor, g: Tensor, center: Tensor, lower: Tensor, upper: Tensor, multiplier: Tensor
) -> Tensor:
    """Return the summands of :func:`relu_intercept`, one per neuron, (R, n)."""
    m = multiplier.unsqueeze(1)
    rising = _parabola(v - g, center, lower.clamp(min=0), upper.clamp(min=0), m)
    falling = _parabola(-g, center, lower.clamp(max=0), upper.clamp(max=0), m)
    return torch.minimum(
        rising.masked_fill(upper < 0, torch.inf), falling.masked_fill(lower >= 0, torch.inf)
    )


def box_heights(v: Tensor, g: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """Return ``min over l <= z <= u and at z = 0 of (v ReLU(z) - g z)`` per neuron, (R, n).

    This is :func:`relu_heights` without the ball, for intervals that hold zero or end there, and
    for stable neurons with the slopes of :func:`crown_slopes`; for other slopes of stable neurons
    it is lower than necessary.

    Args:
        v: Linear forms of the ReLUs' outputs, (R, n).
        g: Linear forms of the ReLUs' inputs, (R, n); any are allowed.
        lower: Lower bounds of the interval, (R, n).
        upper: Upper bounds of the interval, (R, n).

    Example:
        >>> upper, g = torch.ones(1, 3), torch.tensor([[-1., 1., 0.]])
        >>> box_heights(torch.tensor([[-2., 1., 1.]]), g, -upper, upper)
        tensor([[-1., 0., 0.]])
    """
    return torch.minimum(-g * lower.clamp(max=0), (v - g) * upper.clamp(min=0)).clamp(max=0)


def _parabola(slope: Tensor, center: Tensor, lower: Tensor, upper: Tensor, m: Tensor) -> Tensor:
    """Return the minimum of ``slope z + m/2 (z - center)^2`` over an interval."""
    z = torch.minimum(torch.maximum(center - slope / m, lower), upper)
    return slope * z + m / 2 * (z - center) ** 2


def crown_slopes(v: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """Return the slopes s of CROWN, with which ``g = s v``: exact where a neuron is stable.

    Args:
        v: Linear forms of the ReLUs' outputs, (R, n).
        lower: Lower bounds of the interval, (R, n).
        upper: Upper bounds of the interval, (R, n).

    Returns:
        Slopes in [0, 1], (R, n).

    Source: Zhang et al. 2018 (CROWN), with the adaptive lower slope.

    Example:
        >>> lower, upper = torch.tensor([[-1., -1., 1.]]), torch.tensor([[3., 3., 2.]])
        >>> crown_slopes(torch.tensor([[1., -1., 1.]]), lower, upper)
        tensor([[1.0000, 0.7500, 1.0000]])
    """
    return torch.where(v >= 0, lower_slope(lower, upper), chord(lower, upper)[0])


def lower_slope(lower: Tensor, upper: Tensor) -> Tensor:
    """Return the slope of CROWN's line below ReLUs on intervals, exact where stable.

    It is 1 where the interval reaches farther above zero than below, and 0 elsewhere.
    """
    return (upper > -lower).to(upper)


def chord(lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """Return (slope, lift) with ``ReLU(z) <= slope z + lift`` on intervals, exact where stable.

    Example:
        >>> lower, upper = torch.tensor([-1.0, 1.0, -2.0]), torch.tensor([3.0, 2.0, -1.0])
        >>> slope, lift = chord(lower, upper)
        >>> slope.tolist(), lift.abs().tolist()
        ([0.75, 1.0, 0.0], [0.75, 0.0, 0.0])
    """
    # No selection of elements, which torch does many times more slowly than arithmetic.
    below, above = lower.clamp(max=0), upper.clamp(min=0)
    slope = above / (above - below).clamp(min=torch.finfo(above.dtype).tiny)
    return slope, -slope * below
