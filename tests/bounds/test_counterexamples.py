"""Counterexample intervals hold every counterexample, and are tighter than the whole set's."""

import math
import time

import pytest
import torch
from torch import nn

from lirpa_multinorm import (
    BoundedModule,
    PerturbationL1Box,
    PerturbationL2Box,
    PerturbationLinf,
    PerturbationLpBox,
)
from lirpa_multinorm.attacks.geometry import project, random_point
from lirpa_multinorm.audit import build_graph
from lirpa_multinorm.audit.graphs import INPUT_SHAPE
from lirpa_multinorm.perturbations import Region
from lirpa_multinorm.verifier.affine_matrices import AffineMatrices
from lirpa_multinorm.verifier.branching import output_constraints as module
from lirpa_multinorm.verifier.branching.branch_and_bound import branch_and_bound
from lirpa_multinorm.verifier.branching.output_constraints import OutputConstraints
from lirpa_multinorm.verifier.folding import folded
from lirpa_multinorm.verifier.intermediate_bounds import crown_intermediate_bounds, initial_bounds
from lirpa_multinorm.verifier.problem import Problem
from lirpa_multinorm.verifier.receptive_fields import ReceptiveFields
from lirpa_multinorm.verifier.relaxations.sdp_crown import Relaxation
from lirpa_multinorm.verifier.relu_network import ReluNetwork

SETS = {
    "linf": PerturbationLinf(0.15),
    "l2": PerturbationL2Box(0.8, clip=None),
    "l2_range": PerturbationL2Box(0.8),
    "l1": PerturbationL1Box(2.0),
}
GRAPHS = ["mlp", "conv", "residual", "view", "input_skip", "conv_batch_norm", "relu_first"]


def problem_of(model, region):
    """The problem of bounding a model on a region."""
    bounded = BoundedModule(model, perturbations=[region.perturbation])
    bounded.compute_region_bounds([region], None, "IBP")
    network = ReluNetwork(bounded.model, region.center)
    matrices = AffineMatrices(network)
    sets = crown_intermediate_bounds(
        ReceptiveFields(matrices), [region], initial_bounds(network, [region])
    )
    return matrices, Problem(network, [region], sets)


def points_of(region, generator, count=1000):
    """Points all over a set: random ones, and ones at its edge."""
    x = region.center.expand(count, *region.center.shape[1:])
    inner = random_point(region.perturbation, x, generator)
    far = project(region.perturbation, x + 3 * torch.randn(x.shape, generator=generator), x)
    return torch.cat([inner, far])


def corner_of(region, direction, generator, count=500):
    """Points of a set that lie far along a direction, and near these."""
    x = region.center.expand(count, *region.center.shape[1:])
    noise = (
        torch.randn(x.shape, generator=generator)
        * direction.abs().mean()
        * torch.linspace(0, 1, count).view(-1, 1, 1, 1)
    )
    return region.perturbation.far_point(direction + noise, x)


@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("ptb", SETS)
@pytest.mark.parametrize("weight", [0.02, 0.1])
def test_they_hold_every_point_where_the_functionals_bound_is_not_positive(
    name, ptb, weight, monkeypatch
):
    """More than every counterexample, and with points in the corner where the bound is lowest."""
    monkeypatch.setattr(module, "_WEIGHT", weight)
    generator = torch.Generator().manual_seed(0)
    region = Region(torch.rand(1, *INPUT_SHAPE, generator=generator), SETS[ptb])
    _, problem = problem_of(build_graph(name), region)
    narrower = 0
    for v in torch.randn(3, 1, 3, generator=generator):
        relaxation, search = Relaxation(problem, v), OutputConstraints(problem, v)
        constant, slopes = relaxation.linear(relaxation.first())
        points = torch.cat(
            [
                points_of(region, generator),
                corner_of(region, -slopes.view_as(region.center), generator),
            ]
        )
        layers = [one.flatten(1) for one in problem.network.layers(points)]
        bounds = (points * slopes.view_as(region.center)).flatten(1).sum(1) + constant
        assert (layers[-1] @ v.squeeze(0) >= bounds - 1e-4).all()
        for share in (0.02, 0.1, 0.3):
            shift = bounds.min() + share * (bounds.mean() - bounds.min())
            lower, upper, empty = search.tightened(*search.first(1), constant - shift, slopes)
            hidden, bad = search.hidden(lower, upper), bounds <= shift
            assert bad.any() and not empty.any()
            for z, low, high, before, after in zip(
                layers, hidden.lower, hidden.upper, *problem.hidden[:2]
            ):
                assert (z[bad] >= low - 1e-4).all() and (z[bad] <= high + 1e-4).all()
                assert (low >= before).all() and (high <= after).all()
                narrower += int((high - low < 0.99 * (after - before)).sum())
    assert narrower > 0


def test_hand_computed(monkeypatch):
    """f = relu(x) + 1/2 - y >= x + 1/2 - y on [-1, 1]^2 with the lower line x.

    OutputConstraints have y >= x + 1/2.
    """
    monkeypatch.setattr(module, "_WEIGHT", 0.375)
    model = nn.Sequential(nn.Linear(2, 1), nn.ReLU(), nn.Linear(1, 1)).eval()
    for value, parameter in zip(([[1.0, 0.0]], 0.0, 1.0, 0.5), model.parameters()):
        parameter.data.copy_(torch.tensor(value))
    region = Region(torch.zeros(1, 2), PerturbationLinf(1.0, clip=None))
    _, problem = problem_of(model, region)
    search = OutputConstraints(problem, torch.ones(1, 1))
    lower, upper, empty = search.tightened(
        *search.first(1), torch.tensor([0.5]), torch.tensor([[1.0, -1.0]])
    )
    # It lacks 3/2, the interval's width is 2, so that w = 1/2: -x >= min of (-x + (x - y + 1/2) /
    # 2) = -3/4.
    assert lower.tolist() == [[pytest.approx(-1.0)]] and upper.item() == pytest.approx(
        0.75, abs=1e-3
    )
    assert not empty.any()
    # Where f >= 4 - y there is none: it lacks 5 * 3/8, so that w = 2/5, and x >= -7/5 + 8/5 as well
    # as x <= 7/5 - 8/5.
    monkeypatch.setattr(module, "_NEAR", 0.375)
    lower, upper, empty = search.tightened(
        *search.first(1), torch.tensor([4.0]), torch.tensor([[0.0, -1.0]])
    )
    assert empty.all() and torch.equal(lower, upper)


@pytest.mark.parametrize("ptb", ["linf", "l2", "l2_range"])
def test_branch_and_bound_proves_nothing_that_is_false(ptb):
    """The linear form is moved so that the lowest value met in the set is 1e-3 below zero."""
    generator = torch.Generator().manual_seed(1)
    for name in ("mlp", "conv", "residual"):
        model, region = (
            build_graph(name),
            Region(torch.rand(1, *INPUT_SHAPE, generator=generator), SETS[ptb]),
        )
        v = torch.randn(1, 3, generator=generator)
        last = [one for one in model.modules() if isinstance(one, nn.Linear)][-1]
        points = points_of(region, generator)
        with torch.no_grad():
            last.bias -= (
                ((model(points) @ v.squeeze(0)).min() + 1e-3) * v.squeeze(0) / (v * v).sum()
            )
            assert -2e-3 < (model(points) @ v.squeeze(0)).min() < 0
        found = branch_and_bound(folded(*problem_of(model, region)), v, time.perf_counter() + 1.0)
        assert (found <= 0).all()


@pytest.mark.parametrize("eps", [1e-8, 1e-7, 1e-6, 1e-5])
@pytest.mark.parametrize("norm", [math.inf, 2, 1])
def test_rounding_empties_no_interval(eps, norm):
    """Neurons that are zero at the centre, and a linear form that is negative there.

    The set is as small as rounding.
    """
    torch.manual_seed(0)
    for _ in range(3):
        model, x = (
            nn.Sequential(
                nn.Linear(50, 30), nn.ReLU(), nn.Linear(30, 20), nn.ReLU(), nn.Linear(20, 1)
            ),
            torch.rand(1, 50),
        )
        with torch.no_grad():
            model[0].weight.mul_(10)
            for place in (0, 2):
                model[place].bias -= model[: place + 1](x).squeeze(0)
            model[4].bias -= model(x).squeeze(0) + 1e-6
        region = Region(x, PerturbationLpBox(norm, eps, None))
        matrices, problem = problem_of(model.eval(), region)
        v = torch.ones(1, 1)
        relaxation, search = Relaxation(problem, v), OutputConstraints(problem, v)
        lower, upper = search.first(1)
        for _ in range(5):
            lower, upper, empty = search.tightened(
                lower, upper, *relaxation.linear(relaxation.first())
            )
            assert not empty.any()
        assert (
            branch_and_bound(folded(matrices, problem), v, time.perf_counter() + 0.1) <= 0
        ).all()


def test_a_network_without_relus_and_a_functional_that_looks_at_nothing():
    _, problem = problem_of(
        nn.Sequential(nn.Linear(4, 2)).eval(), Region(torch.rand(1, 4), SETS["l2"])
    )
    search = OutputConstraints(problem, torch.ones(1, 2))
    lower, upper = search.first(3)
    assert lower.shape == upper.shape == (3, 0) and search.hidden(lower, upper).lower == []
    for slopes in (None, torch.ones(3, 4)):
        assert search.tightened(lower, upper, torch.zeros(3), slopes)[2].tolist() == [False] * 3


def test_neurons_are_the_costliest_behind_the_first_layer(monkeypatch):
    monkeypatch.setattr(module, "_MAX_NEURONS", 2)
    _, problem = problem_of(build_graph("conv"), Region(torch.rand(1, *INPUT_SHAPE), SETS["linf"]))
    v = torch.randn(1, 3)
    relaxation = Relaxation(problem, v)
    losses = relaxation.losses(relaxation.first())
    search = OutputConstraints(problem, v)
    lower, upper = search.first(1)
    places = losses[-1][0].topk(2).indices.sort().values
    assert torch.equal(lower[0], problem.hidden.lower[-1][0, places]) and len(losses) == 2
    assert math.isclose(float(upper[0, 0]), float(problem.hidden.upper[-1][0, places[0]]))
