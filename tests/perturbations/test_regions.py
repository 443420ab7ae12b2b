"""Small regions around attacked points: what lies inside what."""

import math

import pytest
import torch

from lirpa_multinorm import (
    PerturbationL1Box,
    PerturbationL2Box,
    PerturbationLinf,
    PerturbationLpBox,
)
from lirpa_multinorm.attacks.geometry import random_point
from lirpa_multinorm.errors import InvalidArgumentError
from lirpa_multinorm.perturbations import cure_l2_region, sabr_region, small_ball_region

RATIOS = [1e-5, 0.1, 0.4, 1.0]
ratios = pytest.mark.parametrize("ratio", RATIOS, ids=str)
REGIONS = {
    "sabr": (sabr_region, PerturbationLinf(0.1)),
    "cure": (cure_l2_region, PerturbationL2Box(0.5)),
    "small_ball": (small_ball_region, PerturbationL1Box(0.5)),
}


def images(low=0.3, high=0.7):
    return torch.rand(4, 2, 3, 3, generator=torch.Generator().manual_seed(0)) * (high - low) + low


def corners(region):
    return region.perturbation.enclosing_box(region.center)


@ratios
@pytest.mark.parametrize("clip", [(0.0, 1.0), None], ids=["clip", "ball"])
@pytest.mark.parametrize(
    "eps", [0.1, torch.tensor([0.05, 0.1, 0.15, 0.0])], ids=["one_eps", "eps_per_example"]
)
def test_sabr_box_lies_inside_the_set(ratio, clip, eps):
    ball, x = PerturbationLinf(eps, clip), images()
    for seed in range(5):
        x_adv = random_point(ball, x, torch.Generator().manual_seed(seed))
        region = sabr_region(x, x_adv, ball, ratio)
        for corner in corners(region):
            assert ball.contains(corner, x, tolerance=1e-6).all()
        lower, upper = corners(region)
        width = (upper - lower).flatten(1)
        assert torch.allclose(
            width, 2 * ratio * ball.radius(x).unsqueeze(1).expand_as(width), atol=1e-6
        )


@ratios
def test_sabr_box_stays_in_clip_where_clip_leaves_little_room(ratio):
    ball, x = PerturbationLinf(0.1), images(-0.2, 1.2).clamp(0, 1)
    assert ((x == 0) | (x == 1)).any()
    x_adv = random_point(ball, x, torch.Generator().manual_seed(1))
    region = sabr_region(x, x_adv, ball, ratio)
    region.perturbation.check_input(region.center)
    lower, upper = corners(region)
    assert lower.min() >= -1e-6 and upper.max() <= 1 + 1e-6
    room = ball.enclosing_box(x)
    roomy = room[1] - room[0] >= 2 * ratio * 0.1
    outside = torch.maximum(room[0] - lower, upper - room[1])
    assert (outside[roomy] <= 1e-6).all()


def test_sabr_of_the_whole_ball_is_the_ball():
    ball, x = PerturbationLinf(0.1, clip=None), images()
    region = sabr_region(x, x + 0.1, ball, 1.0)
    assert torch.allclose(region.center, x) and region.perturbation.eps == pytest.approx(0.1)


def test_sabr_keeps_attacked_points_with_room():
    """A point at least tau inside the set is the centre itself."""
    x = torch.full((1, 2), 0.5)
    region = sabr_region(x, x + 0.05, PerturbationLinf(0.1), 0.4)
    assert torch.allclose(region.center, x + 0.05)


@pytest.mark.parametrize("ball", [PerturbationL2Box(0.1), PerturbationL1Box(0.1)], ids=["l2", "l1"])
def test_sabr_needs_an_linf_set(ball):
    with pytest.raises(InvalidArgumentError, match="^perturbation=.*l_inf"):
        sabr_region(images(), images(), ball, 0.1)


@ratios
def test_cure_corners_reach_as_far_as_said(ratio):
    """eps (1 + (sqrt(d) - 1) ratio), attained where the attack moved all pixels equally."""
    eps, x = 0.5, images()
    ball, size = PerturbationL2Box(eps, clip=None), x[0].numel()
    x_adv = x + (1 - ratio) * eps / math.sqrt(size)
    region = cure_l2_region(x, x_adv, ball, ratio)
    assert (region.perturbation.norm, region.perturbation.clip) == (math.inf, None)
    reach = (corners(region)[1] - x).flatten(1).norm(dim=1)
    assert torch.allclose(
        reach, torch.tensor(eps * (1 + (math.sqrt(size) - 1) * ratio)).expand(4), rtol=1e-5
    )


@ratios
@pytest.mark.parametrize("norm", [math.inf, 2, 1], ids=["linf", "l2", "l1"])
def test_small_ball_lies_inside_the_ball(norm, ratio):
    x, eps = images(), torch.tensor([0.1, 0.5, 0.9, 0.0])
    ball = PerturbationLpBox(norm, eps, clip=None)
    for seed in range(5):
        x_adv = random_point(
            ball.with_eps(eps * (1 - ratio)), x, torch.Generator().manual_seed(seed)
        )
        region = small_ball_region(x, x_adv, ball, ratio)
        assert (region.perturbation.norm, region.perturbation.clip) == (norm, None)
        assert torch.allclose(region.perturbation.radius(x), eps * ratio)
        # The farthest point of the small ball, straight on from the attacked one.
        point = random_point(region.perturbation, x_adv, torch.Generator().manual_seed(seed + 100))
        ahead = x_adv + (x_adv - x) * (ratio / max(1 - ratio, 1e-12)) if ratio < 1 else point
        assert ball.contains(point, x).all() and ball.contains(ahead, x).all()


@ratios
def test_a_clipped_small_ball_lies_inside_the_set(ratio):
    """Inside the ball and the range of valid inputs, which the plain small ball leaves."""
    x, ball = images().clamp(0, 1), PerturbationL2Box(0.8)
    x_adv = random_point(ball.with_eps(0.8 * (1 - ratio)), x, torch.Generator().manual_seed(0))
    region = small_ball_region(x, x_adv, ball, ratio, clipped=True)
    assert region.perturbation.clip == ball.clip and region.perturbation.eps == pytest.approx(
        0.8 * ratio
    )
    for seed in range(20):
        point = random_point(region.perturbation, x_adv, torch.Generator().manual_seed(seed))
        assert ball.contains(point, x).all()


def test_small_ball_of_ratio_one_is_the_ball():
    x = images()
    region = small_ball_region(x, x, PerturbationL2Box(0.5), 1.0)
    assert region.center is x and region.perturbation.eps == 0.5


@pytest.mark.parametrize("ratio", [0, -0.1, 1.1, math.nan, math.inf], ids=str)
@pytest.mark.parametrize("function,ball", REGIONS.values(), ids=REGIONS)
def test_bad_ratio(function, ball, ratio):
    with pytest.raises(InvalidArgumentError, match="^ratio="):
        function(images(), images(), ball, ratio)
