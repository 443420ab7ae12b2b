"""Counterexample intervals hold every counterexample, and are tighter than the whole set's."""

import itertools
import math
import time

import pytest
import torch
from torch import nn

from lirpa_multinorm import (
    PerturbationL1Box,
    PerturbationL2Box,
    PerturbationLinf,
    PerturbationLpBox,
)
from lirpa_multinorm.attacks.geometry import project
from lirpa_multinorm.audit import build_graph
from lirpa_multinorm.audit.graphs import INPUT_SHAPE
from lirpa_multinorm.perturbations import Region
from lirpa_multinorm.verifier.affine_matrices import AffineMatrices
from lirpa_multinorm.verifier.branching.branch_and_bound import branch_and_bound
from lirpa_multinorm.verifier.branching.output_constraints import OutputConstraints
from lirpa_multinorm.verifier.folding import folded
from lirpa_multinorm.verifier.relaxations.sdp_crown import Relaxation
from tests.checks import assert_no_looser, assert_within, points_in
from tests.networks import with_parameters
from tests.verifier.problems import problem_on

SETS = {
    "linf": PerturbationLinf(0.15),
    "l2": PerturbationL2Box(0.8, clip=None),
    "l2_range": PerturbationL2Box(0.8),
    "l1": PerturbationL1Box(2.0),
}
GRAPHS = ["mlp", "conv", "residual", "view", "input_skip", "conv_batch_norm", "relu_first"]


def problem_of(model, region):
    return problem_on(model, [region], lipschitz=False)


def folded_problem(problem):
    return folded(AffineMatrices(problem.network), problem)


def points_of(region, count=1000):
    """Points all over a set: random ones, and ones at its edge."""
    x = region.center.expand(count, *region.center.shape[1:])
    generator = torch.Generator().manual_seed(0)
    far = project(region.perturbation, x + 3 * torch.randn(x.shape, generator=generator), x)
    return torch.cat([points_in([region], count), far])


def corner_of(region, direction, generator, count=500):
    """Points of a set that lie far along a direction, and near these."""
    x = region.center.expand(count, *region.center.shape[1:])
    noise = (
        torch.randn(x.shape, generator=generator)
        * direction.abs().mean()
        * torch.linspace(0, 1, count).view(-1, 1, 1, 1)
    )
    return region.perturbation.far_point(direction + noise, x)


def widened(interval, factor):
    """Wider intervals, whose bounds the search weighs by as much more."""
    lower, upper = interval
    more = (factor - 1) / 2 * (upper - lower)
    return lower - more, upper + more


@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("ptb", SETS)
def test_they_hold_every_point_where_the_functionals_bound_is_not_positive(name, ptb):
    """More than every counterexample, and with points in the corner where the bound is lowest."""
    generator = torch.Generator().manual_seed(0)
    region = Region(torch.rand(1, *INPUT_SHAPE, generator=generator), SETS[ptb])
    problem = problem_of(build_graph(name), region)
    narrower = [0, 0]
    for v in torch.randn(3, 1, 3, generator=generator):
        relaxation, search = Relaxation(problem, v), OutputConstraints(problem, v)
        constant, slopes = relaxation.linear(relaxation.first())
        direction = slopes.view_as(region.center)
        points = torch.cat([points_of(region), corner_of(region, -direction, generator)])
        layers = [layer.flatten(1) for layer in problem.network.layers(points)]
        bounds = (points * direction).flatten(1).sum(1) + constant
        assert (layers[-1] @ v.squeeze(0) >= bounds - 1e-4).all()
        for (trial, factor), share in itertools.product(enumerate((1, 5)), (0.02, 0.1, 0.3)):
            given = widened(search.first(1), factor)
            shift = bounds.min() + share * (bounds.mean() - bounds.min())
            lower, upper, empty = search.tightened(*given, constant - shift, slopes)
            assert (bounds <= shift).any() and not empty.any()
            assert_no_looser((lower, upper), given, 0)
            hidden = search.hidden(lower, upper)
            for z, *ends in zip(layers, *hidden[:2]):
                assert_within(z[bounds <= shift], ends, 1e-4)
            narrower[trial] += int((upper - lower < 0.99 * (given[1] - given[0])).sum())
    assert min(narrower) > 0


@pytest.mark.parametrize("factor, weight", [(1, 2 / 15), (3.75, 1 / 2)])
def test_hand_computed(factor, weight):
    """f = relu(x) + 1/2 - y >= x + 1/2 - y on [-1, 1]^2 with the lower line x.

    Where f is not positive y >= x + 1/2. It lacks 3/2, the interval's width is 2, so that w = 1/10
    * 2 / (3/2), and as much more for a wider one: -x >= min of (-x + w (x - y + 1/2)) = w / 2 - 1.
    """
    model = nn.Sequential(nn.Linear(2, 1), nn.ReLU(), nn.Linear(1, 1))
    model = with_parameters(model, [[1.0, 0.0]], 0.0, 1.0, 0.5)
    problem = problem_of(model, Region(torch.zeros(1, 2), PerturbationLinf(1.0, clip=None)))
    search = OutputConstraints(problem, torch.ones(1, 1))
    given = widened(search.first(1), factor)
    lower, upper, empty = search.tightened(*given, torch.tensor([0.5]), torch.tensor([[1.0, -1.0]]))
    # x >= min of (x + w (x - y + 1/2)) = -1 - 3/2 w.
    assert lower.item() == pytest.approx(max(-factor, -1 - 1.5 * weight), abs=1e-3)
    assert upper.item() == pytest.approx(1 - weight / 2, abs=1e-3)
    assert not empty.any()
    # Where f >= 4 - y there is none: the bounds of x pass each other.
    lower, upper, empty = search.tightened(*given, torch.tensor([4.0]), torch.tensor([[0.0, -1.0]]))
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
        last = [layer for layer in model.modules() if isinstance(layer, nn.Linear)][-1]
        points = points_of(region)
        with torch.no_grad():
            last.bias -= (
                ((model(points) @ v.squeeze(0)).min() + 1e-3) * v.squeeze(0) / (v * v).sum()
            )
            assert -2e-3 < (model(points) @ v.squeeze(0)).min() < 0
        stop = time.perf_counter() + 1.0
        result = branch_and_bound(folded_problem(problem_of(model, region)), v, stop)
        assert (result <= 0).all()


@pytest.mark.parametrize("eps", [1e-8, 1e-7, 1e-6, 1e-5])
@pytest.mark.parametrize("norm", [math.inf, 2, 1])
def test_rounding_empties_no_interval(eps, norm):
    """Neurons that are zero at the centre, and a linear form that is negative there.

    The set is as small as rounding.
    """
    torch.manual_seed(0)
    for _ in range(2):
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
        problem = problem_of(model.eval(), region)
        v = torch.ones(1, 1)
        relaxation, search = Relaxation(problem, v), OutputConstraints(problem, v)
        lower, upper = search.first(1)
        for _ in range(5):
            lower, upper, empty = search.tightened(
                lower, upper, *relaxation.linear(relaxation.first())
            )
            assert not empty.any()
        stop = time.perf_counter() + 0.1
        assert (branch_and_bound(folded_problem(problem), v, stop) <= 0).all()


def test_a_network_without_relus_and_a_functional_that_looks_at_nothing():
    problem = problem_of(
        nn.Sequential(nn.Linear(4, 2)).eval(), Region(torch.rand(1, 4), SETS["l2"])
    )
    search = OutputConstraints(problem, torch.ones(1, 2))
    lower, upper = search.first(3)
    assert lower.shape == upper.shape == (3, 0) and search.hidden(lower, upper).lower == []
    for slopes in (None, torch.ones(3, 4)):
        assert search.tightened(lower, upper, torch.zeros(3), slopes)[2].tolist() == [False] * 3


def test_neurons_are_the_costliest_behind_the_first_layer():
    """Of more of them than it takes."""
    model = nn.Sequential(
        nn.Linear(8, 30), nn.ReLU(), nn.Linear(30, 300), nn.ReLU(), nn.Linear(300, 3)
    )
    problem = problem_of(model, Region(torch.rand(1, 8), PerturbationLinf(0.3)))
    v = torch.randn(1, 3)
    relaxation, search = Relaxation(problem, v), OutputConstraints(problem, v)
    costs = relaxation.losses(relaxation.first())
    lower, upper = search.first(1)
    count = lower.shape[1]
    assert len(costs) == 2 and 0 < count < int((costs[-1] > 0).sum())
    places = costs[-1][0].topk(count).indices.sort().values
    assert torch.equal(lower[0], problem.hidden.lower[-1][0, places])
    assert torch.equal(upper[0], problem.hidden.upper[-1][0, places])
