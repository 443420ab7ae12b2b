"""Random points, steepest steps and projections of every set."""

import math

import pytest
import torch

from lirpa_multinorm import PerturbationLpBox
from lirpa_multinorm.attacks.geometry import project, random_point, steepest_step
from tests.networks import pixels

NORMS = {"linf": math.inf, "l2": 2, "l1": 1}
every_norm = pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS)
every_clip = pytest.mark.parametrize("clip", [(0.0, 1.0), None], ids=["clip", "ball"])
every_shape = pytest.mark.parametrize("shape", [(5,), (2, 4, 4)], ids=["flat", "image"])
BATCH = 4
EPS = torch.tensor([0.0, 0.1, 0.6, 5.0])


def images(shape):
    return pixels(BATCH, *shape, beyond=0.3)


@every_norm
@every_clip
@every_shape
def test_random_points_lie_in_the_set(shape, clip, norm):
    ball, x = PerturbationLpBox(norm, EPS, clip), images(shape)
    points = [random_point(ball, x, torch.Generator().manual_seed(seed)) for seed in range(10)]
    for point in points:
        assert point.shape == x.shape
        assert ball.contains(point, x, tolerance=1e-6).all()
    assert torch.equal(points[0][0], x[0])  # radius 0
    assert not torch.allclose(points[0][1:], points[1][1:])


@every_norm
def test_random_points_follow_the_generator(norm):
    ball, x = PerturbationLpBox(norm, 0.5), images((3,))
    single, other = (random_point(ball, x, torch.Generator().manual_seed(7)) for _ in range(2))
    assert torch.equal(single, other)


@every_norm
def test_random_points_reach_the_edge(norm):
    """Among many, some lie near the centre and some near the end of the radius."""
    x = torch.full((400, 3), 0.5)
    offset = random_point(PerturbationLpBox(norm, 0.2, clip=None), x) - x
    length = torch.linalg.vector_norm(offset, norm, dim=1)
    assert length.max() > 0.18 and length.min() < 0.1


@every_norm
@every_clip
@every_shape
def test_projection_lands_in_the_set(shape, clip, norm):
    ball, x = PerturbationLpBox(norm, EPS, clip), images(shape)
    far = x + 3 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    point = project(ball, far, x)
    assert ball.contains(point, x, tolerance=1e-6).all()
    assert torch.allclose(project(ball, point, x), point, atol=1e-6)  # points of the set stay


@every_norm
def test_projection_onto_the_ball_is_the_nearest_point(norm):
    """No point of the ball is nearer to the outside point in the Euclidean sense."""
    ball, x = PerturbationLpBox(norm, 0.3, clip=None), torch.zeros(1, 4)
    far = torch.tensor([[0.9, -0.4, 0.1, 0.0]])
    nearest = (project(ball, far, x) - far).norm()
    for seed in range(200):
        other = random_point(ball, x, torch.Generator().manual_seed(seed))
        assert (other - far).norm() >= nearest - 1e-6


PROJECTED = {
    # norm, far point, nearest point within radius 1
    "linf": (math.inf, (3.0, -0.5), (1.0, -0.5)),
    "l2": (2, (3.0, 4.0), (0.6, 0.8)),
    "l1": (1, (1.5, -0.7), (0.9, -0.1)),
    "l1_one_coordinate": (1, (3.0, 1.0), (1.0, 0.0)),
}


@pytest.mark.parametrize("norm,far,nearest", PROJECTED.values(), ids=PROJECTED)
def test_projection_by_hand(norm, far, nearest):
    ball, x = PerturbationLpBox(norm, 1.0, clip=None), torch.zeros(1, 2)
    assert torch.allclose(project(ball, torch.tensor([far]), x), torch.tensor([nearest]))


@every_norm
def test_steps_have_length_one_and_rise(norm):
    x = torch.full((BATCH, 2, 4, 4), 0.5)
    gradient = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    step = steepest_step(PerturbationLpBox(norm, 0.5), gradient, x, x)
    length = torch.linalg.vector_norm(step.flatten(1), norm, dim=1)
    assert torch.allclose(length, torch.ones(BATCH), atol=1e-5)
    assert ((step * gradient).flatten(1).sum(1) > 0).all()


@every_norm
def test_steps_of_no_gradient_are_no_steps(norm):
    x = torch.full((1, 3), 0.5)
    assert torch.equal(
        steepest_step(PerturbationLpBox(norm, 0.5), torch.zeros_like(x), x, x), torch.zeros_like(x)
    )


def test_l1_steps_leave_coordinates_alone_that_cannot_move():
    x = torch.tensor([[1.0, 0.0, 0.5]])
    gradient = torch.tensor([[5.0, -4.0, 1.0]])
    step = steepest_step(PerturbationLpBox(1, 0.5), gradient, x, x)
    assert torch.equal(step, torch.tensor([[0.0, 0.0, 1.0]]))
    step = steepest_step(PerturbationLpBox(1, 0.5, clip=None), gradient, x, x)
    assert torch.equal(step, torch.tensor([[1.0, 0.0, 0.0]]))
