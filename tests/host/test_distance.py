"""Distance layers in the host: exact intervals, sound lines for CROWN, clear refusals."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from lirpa_multinorm import BoundedModule, PerturbationL2Box, PerturbationLinf
from lirpa_multinorm.bounds import margin_matrix
from lirpa_multinorm.errors import UnsupportedModelError
from lirpa_multinorm.host.distance import interval_distances, linear_bounds
from lirpa_multinorm.models import DistanceLogits, LinfDistance, MeanShift, build_model
from tests.checks import (
    assert_differentiable,
    assert_no_looser,
    assert_same,
    assert_sound,
    assert_within,
)
from tests.networks import pixels

SETS = [PerturbationLinf(0.05), PerturbationL2Box(0.2)]


def network(seed=0, dtype=torch.float32, **options) -> nn.Sequential:
    """Layers with random weights, between which means are shifted."""
    generator = torch.Generator().manual_seed(seed)
    options = {"hidden": [12, 9], **options}
    model = build_model("linf_dist_mlp", (1, 6, 6), 3, (0.3,), (0.5,), **options).to(dtype)
    for layer in model:
        if isinstance(layer, LinfDistance):
            nn.init.normal_(layer.weight, generator=generator)
    model(torch.rand(50, 1, 6, 6, generator=generator, dtype=dtype))
    return model.eval()


def box(rows=3, inputs=4, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    center = torch.randn(rows, inputs, generator=generator, dtype=dtype)
    radius = torch.rand(rows, inputs, generator=generator, dtype=dtype)
    weight = torch.randn(5, inputs, generator=generator, dtype=dtype)
    return center - radius, center + radius, weight


@pytest.mark.parametrize("p", [1, 2, 8, 1000, math.inf], ids=str)
def test_intervals_are_those_of_all_points_of_a_fine_grid(p):
    lower, upper, weight = box(inputs=2)
    steps = torch.linspace(0, 1, 201, dtype=lower.dtype)
    shares = torch.cartesian_prod(steps, steps)
    grid = lower.unsqueeze(1) + shares * (upper - lower).unsqueeze(1)
    size = (grid.unsqueeze(2) - weight).abs()
    largest = size.amax(3, keepdim=True)
    values = torch.linalg.vector_norm(size / largest, p, dim=3) * largest.squeeze(3)
    nearest, farthest = interval_distances(lower, upper, weight, p)
    assert_within(values, (nearest.unsqueeze(1), farthest.unsqueeze(1)), 1e-9)
    assert_same(values.amax(1), farthest, 1e-9, 1e-9)  # at a corner of the grid
    assert bool((values.amin(1) - nearest < 0.02).all())


def test_intervals_by_hand():
    lower, upper = torch.tensor([[-1.0, 2.0]]), torch.tensor([[1.0, 3.0]])
    nearest, farthest = interval_distances(lower, upper, torch.zeros(1, 2), math.inf)
    assert (nearest.item(), farthest.item()) == (2.0, 3.0)
    assert interval_distances(lower, upper, torch.tensor([[0.0, 2.5]]), math.inf)[0].item() == 0


@pytest.mark.parametrize("p", [8, math.inf], ids=str)
def test_intervals_have_gradients(p):
    lower, upper, weight = box()
    weight.requires_grad_()
    assert_differentiable(lambda: sum(interval_distances(lower, upper, weight, p)).sum(), weight)


def test_lines_hold_in_the_box_and_are_no_looser_than_the_interval():
    lower, upper, weight = box(rows=6)
    lines = linear_bounds(lower, upper, weight)
    generator = torch.Generator().manual_seed(1)
    shares = torch.rand(500, *lower.shape, generator=generator, dtype=lower.dtype)
    shares = torch.where(shares < 0.2, 0.0, torch.where(shares > 0.8, 1.0, shares))
    points = lower + shares * (upper - lower)
    values = (points.unsqueeze(2) - weight).abs().amax(3)
    ends, interval = [], interval_distances(lower, upper, weight, math.inf)
    for (index, slope, height), sign in zip(lines, (1, -1)):
        at_points = points.gather(2, index.expand(500, -1, -1)) * slope + height
        assert bool((sign * (values - at_points) >= -1e-9).all())
        at_ends = [bound.gather(1, index) * slope + height for bound in (lower, upper)]
        ends.append(torch.minimum(*at_ends) if sign > 0 else torch.maximum(*at_ends))
    assert_no_looser(ends, interval, 1e-9)


@pytest.mark.parametrize("method", ["IBP", "CROWN-IBP", "CROWN", "CROWN-Optimized"])
def test_bounds_hold_for_every_method_and_norm(method):
    model, x = network(), pixels(3, 1, 6, 6)
    C = margin_matrix(torch.tensor([0, 1, 2]), 3)
    bounded = BoundedModule(model, perturbations=SETS)
    assert_sound(model, x, SETS, bounded.compute_norm_bounds(x, C, method), C)


def test_crown_is_no_looser_than_intervals_behind_one_layer():
    model, x = network(hidden=[]), pixels(3, 1, 6, 6)
    bounded = BoundedModule(model, perturbations=SETS)
    crown, ibp = (bounded.compute_norm_bounds(x, None, method) for method in ("CROWN", "IBP"))
    for tight, loose in zip(crown, ibp):
        assert_no_looser(tight, loose)


def test_intervals_hold_behind_pooling():
    model, x = network(pool=2), pixels(3, 1, 6, 6)
    bounded = BoundedModule(model, perturbations=SETS)
    for method in ("IBP", "CROWN-IBP"):
        assert_sound(model, x, SETS, bounded.compute_norm_bounds(x, None, method))


def test_intervals_follow_the_exponent():
    model, x = network(), pixels(2, 1, 6, 6)
    bounded = BoundedModule(model, perturbations=SETS[:1])
    before = bounded.compute_bounds(x, method="IBP")
    model[2].set_p(8)
    after = bounded.compute_bounds(x, method="IBP")
    assert_sound(model, x, SETS[0], after)
    assert not torch.equal(before[0], after[0])


def test_crown_refuses_a_finite_exponent():
    model = network()
    model[2].set_p(8)
    bounded = BoundedModule(model, perturbations=SETS[:1])
    with pytest.raises(UnsupportedModelError, match=r"p=8 has no linear bounds.*set_p\(math.inf\)"):
        bounded.compute_bounds(pixels(2, 1, 6, 6), method="CROWN")


def test_methods_of_piecewise_linear_networks_refuse_distances():
    bounded = BoundedModule(network(), perturbations=SETS[:1])
    with pytest.raises(UnsupportedModelError, match="distances at '2'"):
        bounded.compute_bounds(pixels(2, 1, 6, 6), method="SDP-CROWN")


def test_a_users_operators_stand_beside_ours():
    bounded = BoundedModule(network(), custom_ops={"my::Operator": object})
    assert bounded(pixels(2, 1, 6, 6)).shape == (2, 3)


def test_layers_stand_alone():
    x = pixels(4, 6)
    for layer in (LinfDistance(6, 5), DistanceLogits(6, 5), MeanShift(6)):
        model = nn.Sequential(layer).eval()
        lower, upper = BoundedModule(model, perturbations=SETS[:1]).compute_bounds(x, method="IBP")
        assert_within(model(x).detach(), (lower.detach(), upper.detach()))
