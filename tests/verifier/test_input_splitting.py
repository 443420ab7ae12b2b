"""Splitting the input of few dimensions: bounds of all cells that reach into the set."""

import math
import time

import pytest
import torch
from torch import nn

from lirpa_multinorm import BoundedModule, PerturbationLinf, PerturbationLpBox, Region
from lirpa_multinorm.verifier.branching.input_splitting import split_inputs
from tests.networks import Single


def interval(cells, v):
    """x_0^2 - x_1 on cells from below, by intervals."""
    lower, upper = cells.perturbation.enclosing_box(cells.center)
    squares = torch.where(
        (lower < 0) & (upper > 0), torch.zeros(()), torch.minimum(lower**2, upper**2)
    )
    return (squares[:, :1] - upper[:, 1:]) * v[:, :, 0] + v[:, :, 1]


@pytest.mark.parametrize("norm", [math.inf, 2, 1])
@pytest.mark.parametrize("lift, positive", [(2.0, True), (1.2, True), (0.9, False)])
def test_what_is_positive_is_proved(norm, lift, positive):
    # The minimum of x_0^2 - x_1 on a ball of radius 1 around 0 is -1, at (0, 1).
    region = Region(torch.zeros(1, 2), PerturbationLpBox(norm, 1.0, clip=None))
    bound = split_inputs(region, torch.tensor([[1.0, lift]]), interval, time.perf_counter() + 0.5)
    assert bool(bound > 0) == positive and float(bound) <= lift - 1 + 1e-5


def test_time_that_is_over_leaves_nothing():
    region = Region(torch.zeros(1, 2), PerturbationLinf(1.0, clip=None))
    assert (
        float(split_inputs(region, torch.ones(1, 2), interval, time.perf_counter() - 1))
        == -math.inf
    )


def test_branch_and_bound_of_two_inputs_proves_what_has_no_unstable_neuron_to_split():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 1)
    )
    x, ball = torch.zeros(1, 2), PerturbationLpBox(2, 1.0, clip=None)
    angle, radius = torch.meshgrid(
        torch.linspace(0, 2 * math.pi, 300), torch.linspace(0, 1, 100), indexing="ij"
    )
    points = torch.stack([radius * angle.cos(), radius * angle.sin()], dim=-1).view(-1, 2)
    with torch.no_grad():
        values = model(points)
        model[-1].bias += 0.02 * (values.max() - values.min()) - values.min()
    lower = BoundedModule(model).branch_and_bound(
        Region(x, ball), torch.ones(1, 1), time.perf_counter() + 20
    )
    assert 0 < float(lower) <= float(model(points).min()) + 1e-6


def test_a_network_of_a_single_input_is_not_split_into_cells():
    torch.manual_seed(0)
    model, x = Single(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))), torch.rand(1, 4)
    lower = BoundedModule(model).branch_and_bound(
        Region(x, PerturbationLinf(0.05)), torch.eye(2), time.perf_counter() + 3
    )
    assert bool((lower <= model(x)[0] + 1e-6).all() and lower.isfinite().all())


def test_what_is_returned_when_time_is_over_within_a_round_is_sound():
    region = Region(torch.zeros(1, 2), PerturbationLinf(1.0, clip=None))
    v = torch.tensor([[1.0, 1.001]])  # the minimum is 0.001: many cells stay open for long

    def slow(cells, v):
        time.sleep(0.02)
        return interval(cells, v) - 0.01

    start = time.perf_counter()
    bound = split_inputs(region, v, slow, start + 0.3)
    assert -1.0 < float(bound) <= 0.001 and time.perf_counter() - start < 5


@pytest.mark.parametrize("norm", [1, 2, math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_cells_shrink_and_hold_all_of_the_ball(norm, dtype):
    center = torch.tensor([[0.3, -0.7, 5.0]], dtype=dtype)
    region, rounds = Region(center, PerturbationLpBox(norm, 0.4, None)), []

    def nothing(cells, v):
        rounds.append(cells.perturbation.enclosing_box(cells.center))
        return torch.full((len(cells.center), len(v[0])), -1.0, dtype=dtype)

    split_inputs(region, torch.ones(1, 2, dtype=dtype), nothing, time.perf_counter() + 20)
    points = center + 0.4 * (2 * torch.rand(4000, 3, dtype=dtype) - 1)
    points = points[region.perturbation.contains(points, center.expand(len(points), -1), 0.0)]
    assert len(rounds) > 9
    for lower, upper in rounds[:9]:
        held = (points >= lower.unsqueeze(1)) & (points <= upper.unsqueeze(1))
        assert bool(held.all(2).any(0).all())
    smallest, half = float((rounds[8][1] - rounds[8][0]).prod(1).min()), 0.8**3 / 2**8
    if norm == math.inf:
        assert smallest == pytest.approx(half, rel=1e-3)
    else:  # smaller than halves alone would make them
        assert smallest < 0.99 * half
