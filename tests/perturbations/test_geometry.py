"""The geometry of the sets: boxes around them, what they contain, extremes, far points."""

import math

import pytest
import torch

from lirpa_multinorm import PerturbationL2Box, PerturbationLinf, PerturbationLpBox
from lirpa_multinorm.attacks.geometry import random_point
from lirpa_multinorm.perturbations import Region
from lirpa_multinorm.perturbations.rows import DenseRows
from tests.perturbations.images import every_norm, images


@every_norm
def test_enclosing_box(norm):
    x = torch.tensor([[0.0, 0.05, 0.5, 0.95, 1.0]])
    lower, upper = PerturbationLpBox(norm, 0.1).enclosing_box(x)
    assert torch.allclose(lower, torch.tensor([[0.0, 0.0, 0.4, 0.85, 0.9]]))
    assert torch.allclose(upper, torch.tensor([[0.1, 0.15, 0.6, 1.0, 1.0]]))
    lower, upper = PerturbationLpBox(norm, 0.1, clip=None).enclosing_box(x)
    assert torch.allclose(lower, x - 0.1) and torch.allclose(upper, x + 0.1)


@every_norm
@pytest.mark.parametrize("clip", [(0.0, 1.0), None], ids=["clip", "ball"])
def test_enclosing_box_holds_every_point_and_touches_the_set(norm, clip):
    x, eps = images(), torch.tensor([0.0, 0.2, 0.7])
    ball = PerturbationLpBox(norm, eps, clip)
    lower, upper = ball.enclosing_box(x)
    for seed in range(20):
        point = random_point(ball, x, torch.Generator().manual_seed(seed))
        assert ball.contains(point, x).all()
        assert ((point >= lower - 1e-6) & (point <= upper + 1e-6)).all()
    # One coordinate alone may go to each end of the box.
    for end in (lower, upper):
        for channel, row in ((0, 1), (1, 2)):
            corner = x.clone()
            corner[:, channel, row] = x[:, channel, row]
            corner[:, channel, row, 0] = end[:, channel, row, 0]
            assert ball.contains(corner, x).all()


CONTAINS = {
    # norm, offset of two coordinates from 0.5, radius 0.3, inside?
    "linf_edge": (math.inf, (0.3, -0.3), True),
    "linf_out": (math.inf, (0.31, 0.0), False),
    "l2_edge": (2, (0.18, 0.24), True),
    "l2_out": (2, (0.18, 0.25), False),
    "l1_edge": (1, (0.1, -0.2), True),
    "l1_out": (1, (0.1, -0.21), False),
}


@pytest.mark.parametrize("norm,offset,inside", CONTAINS.values(), ids=CONTAINS)
def test_contains(norm, offset, inside):
    x = torch.full((1, 2), 0.5)
    assert PerturbationLpBox(norm, 0.3).contains(x + torch.tensor([offset]), x).tolist() == [inside]


def test_contains_knows_clip_radius_per_example_and_nan():
    x = torch.full((4, 2), 0.9)
    point = x + torch.tensor([[0.2, 0.0], [0.05, 0.0], [0.05, 0.0], [math.nan, 0.0]])
    ball = PerturbationLinf(torch.tensor([0.5, 0.1, 0.01, 0.5]))
    assert ball.contains(point, x).tolist() == [False, True, False, False]
    assert PerturbationLinf(0.5, clip=None).contains(point, x).tolist() == [True, True, True, False]


def test_radius_per_example():
    x = images()
    ball = PerturbationL2Box(torch.tensor([0.0, 0.1, 0.2]), clip=None)
    lower, upper = ball.enclosing_box(x)
    assert torch.allclose(
        (upper - lower).flatten(1).amax(1), torch.tensor([0.0, 0.2, 0.4]), atol=1e-6
    )
    assert torch.equal(PerturbationL2Box(torch.tensor([0.3])).radius(x), torch.full((3,), 0.3))


@every_norm
def test_radius_carries_the_gradient_of_a_learned_eps(norm):
    eps = torch.tensor(0.2, requires_grad=True)
    ball, x = PerturbationLpBox(norm, eps, clip=None), images()
    rows = DenseRows(torch.randn(1, 4, 18))
    ball.extreme(rows, x, 1).sum().backward()
    dual = {math.inf: 1, 2: 2, 1: math.inf}[norm]
    assert eps.grad.item() == pytest.approx(3 * rows.norm(dual).sum().item(), rel=1e-4)


@every_norm
@pytest.mark.parametrize("clip", [(0.0, 1.0), None], ids=["clip", "ball"])
def test_extremes_are_where_the_centre_says(norm, clip):
    """Both ends: above and below the value at the centre.

    Minimum of a is minus the maximum of -a.
    """
    x, rows = images(), DenseRows(torch.randn(3, 4, 18))
    ball = PerturbationLpBox(norm, torch.tensor([0.0, 0.2, 3.0]), clip)
    centre, upper, lower = rows.apply(x), ball.extreme(rows, x, 1), ball.extreme(rows, x, -1)
    assert (upper >= centre - 1e-6).all() and (lower <= centre + 1e-6).all()
    assert torch.allclose(lower, -ball.extreme(DenseRows(-rows.A), x, 1), atol=1e-5)
    assert torch.allclose(upper[0], centre[0], atol=1e-6)  # radius 0


@pytest.mark.parametrize(
    "clip",
    [
        None,
        (0.0, 1.0),
        (torch.zeros(2), torch.tensor([1.0, 2.0])),
        (torch.zeros(3, 2, 2, 2), torch.linspace(1, 2, 4).view(2, 2)),
    ],
    ids=["plain", "range", "per_channel", "per_example"],
)
def test_some_pixels_see_the_same_set(clip):
    x, pixels = torch.rand(3, 2, 2, 2), torch.tensor([1, 6])
    region = Region(x, PerturbationL2Box(0.7, clip))
    part = region.columns(pixels)
    for ends, some in zip(
        region.perturbation.enclosing_box(x), part.perturbation.enclosing_box(part.center)
    ):
        assert torch.equal(ends.flatten(1)[:, pixels], some)


@pytest.mark.parametrize("norm", [math.inf, 2, 1])
@pytest.mark.parametrize("clip", [None, (0.0, 1.0)])
def test_a_far_point_lies_in_the_set_and_far_along_the_direction(norm, clip):
    ball, x, direction = (
        PerturbationLpBox(norm, 0.3, clip),
        torch.rand(50, 2, 3),
        torch.randn(50, 2, 3),
    )
    point = ball.far_point(direction, x)
    assert ball.contains(point, x, tolerance=1e-6).all()
    reached = (direction * (point - x)).flatten(1).sum(1)
    most = ball.extreme(DenseRows(direction.flatten(1).unsqueeze(1)), x, 1).squeeze(1) - (
        direction * x
    ).flatten(1).sum(1)
    assert (reached <= most + 1e-5).all() and (reached > 0.3 * most).float().mean() > 0.9
    if norm == math.inf or (norm == 2 and clip is None):
        assert torch.allclose(reached, most, atol=1e-5)
