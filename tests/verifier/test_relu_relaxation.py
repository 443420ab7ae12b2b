"""One relaxed ReLU layer.

Hand numbers, the formulas it contains, and never above what a search in the set finds.
"""

import math

import pytest
import torch

from lirpa_multinorm.verifier.relaxations.relu import (
    box_heights,
    chord,
    crown_slopes,
    lower_slope,
    relu_intercept,
)

MULTIPLIERS = torch.logspace(-7, 3, 200).tolist()


def layer(rows=20, size=6, scale=1.0):
    center, radius = scale * torch.randn(rows, size), scale * (0.2 + torch.rand(rows))
    below, above = scale * torch.rand(2, rows, size)
    v, g = torch.randn(rows, size), torch.randn(rows, size)
    return v, g, center, radius, center - below, center + above


def value(v, g, z):
    return (v * z.relu() - g * z).sum(-1)


def best(*arguments):
    return torch.stack(
        [relu_intercept(*arguments, torch.full(arguments[3].shape, m)) for m in MULTIPLIERS]
    ).amax(0)


def inside(z, center, radius, lower, upper):
    """Move points into ball and interval.

    Both are convex and hold the centre, so shrinking keeps both.
    """
    z = torch.minimum(torch.maximum(z, lower), upper)
    reach = torch.linalg.vector_norm(z - center, dim=-1, keepdim=True)
    return center + (z - center) * (radius.unsqueeze(-1) / reach.clamp(min=1e-9)).clamp(max=1)


@pytest.mark.parametrize("multiplier", [1e-6, 1e-2, 0.3, 1.0, 5.0, 100.0])
@pytest.mark.parametrize("scale", [1.0, 1e-3])
def test_no_point_of_the_set_lies_below(multiplier, scale):
    v, g, center, radius, lower, upper = layer(scale=scale)
    height = relu_intercept(v, g, center, radius, lower, upper, torch.full((20,), multiplier))
    z = center.expand(500, -1, -1) + 2 * radius.view(1, -1, 1) * torch.randn(500, 20, 6)
    z = inside(z, center, radius, lower, upper)
    for _ in range(60):  # projected descent from every start
        slope = v * (z > 0) - g
        z = inside(z - 0.1 * scale * slope, center, radius, lower, upper)
        assert (value(v, g, z) >= height - 1e-5 * scale).all()


def test_without_interval_it_is_sdp_crowns_offset():
    v, g, center, radius, *_ = layer()
    far, m = torch.full_like(center, 1e4), 0.1 + torch.rand(20)
    phi = torch.minimum(
        torch.minimum(v - g - m.unsqueeze(1) * center, g + m.unsqueeze(1) * center),
        torch.zeros_like(v),
    )
    expected = -(m * (radius**2 - center.square().sum(1)) + phi.square().sum(1) / m) / 2
    assert torch.allclose(relu_intercept(v, g, center, radius, -far, far, m), expected, atol=1e-4)


def test_without_ball_it_is_the_exact_minimum_over_the_interval():
    v, g, center, radius, lower, upper = layer()
    ends = torch.stack([lower, upper, torch.zeros_like(lower).clamp(lower, upper)])
    exact = (v * ends.relu() - g * ends).amin(0)
    result = relu_intercept(v, g, center, radius, lower, upper, torch.full((20,), 1e-7))
    assert torch.allclose(result, exact.sum(1), atol=1e-4)
    assert torch.allclose(box_heights(v, g, lower, upper), exact.clamp(max=0), atol=1e-6)


def test_with_crowns_slopes_it_is_crowns_intercept():
    v, _, center, radius, lower, upper = layer()
    g = v * crown_slopes(v, lower, upper)
    crossing = (lower < 0) & (upper > 0)
    expected = torch.where(crossing & (v < 0), -v * upper * lower / (upper - lower), 0.0).sum(1)
    result = relu_intercept(v, g, center, radius, lower, upper, torch.full((20,), 1e-7))
    assert crossing.any() and torch.allclose(result, expected, atol=1e-4)


def test_ball_and_interval_together_are_better_than_either():
    """v = -1, g = -1/2 in 100 neurons, |z_i| <= 0.2: -0.1 each.

    |z| <= 1: -1/2 times the l_1 norm, 10.
    """
    single, zero = torch.ones(1, 100), torch.zeros(1, 100)
    interval = best(-single, -single / 2, zero, torch.full((1,), 1e3), -0.2 * single, 0.2 * single)
    ball = best(-single, -single / 2, zero, torch.ones(1), -100 * single, 100 * single)
    assert float(interval) == pytest.approx(-10, abs=0.1) and float(ball) == pytest.approx(
        -5, abs=0.1
    )
    v, g, center, radius, lower, upper = layer()
    both, far = best(v, g, center, radius, lower, upper), torch.full_like(center, 100.0)
    either = torch.maximum(
        best(v, g, center, radius, -far, far), best(v, g, center, radius + 1e3, lower, upper)
    )
    assert (both >= either - 1e-2).all() and (both > either + 0.1).any()


def test_stable_neurons_have_their_own_slopes():
    lower, upper = torch.tensor([[-2.0, 1.0, -1.0]]), torch.tensor([[-1.0, 2.0, 1.0]])
    assert lower_slope(lower, upper).tolist() == [[0.0, 1.0, 0.0]]
    assert [lines.tolist() for lines in chord(lower, upper)] == [
        [[0.0, 1.0, 0.5]],
        [[0.0, 0.0, 0.5]],
    ]
    assert crown_slopes(torch.ones(1, 3), lower, upper).tolist() == [[0.0, 1.0, 0.0]]
    assert crown_slopes(-torch.ones(1, 3), lower, upper).tolist() == [[0.0, 1.0, 0.5]]


def test_a_point_is_bounded_by_itself():
    v, g, center, _, _, _ = layer()
    result = relu_intercept(v, g, center, torch.zeros(20), center, center, torch.ones(20))
    assert torch.allclose(result, value(v, g, center), atol=1e-5) and not math.isnan(
        float(result.sum())
    )
