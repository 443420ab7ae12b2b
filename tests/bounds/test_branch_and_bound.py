"""Branch and bound: exact on small networks, sound when it is stopped, and done in the end."""

import math
import time

import pytest
import torch
from torch import nn

from lirpa_multinorm import BoundedModule, PerturbationL2Box, PerturbationLinf
from lirpa_multinorm.bounds.affine_matrices import AffineMatrices
from lirpa_multinorm.bounds.branch_and_bound import BranchSettings, branch_and_bound
from lirpa_multinorm.bounds.hidden_sets import crown_sets, hidden_sets
from lirpa_multinorm.bounds.lipschitz import lipschitz_bounds
from lirpa_multinorm.bounds.problem import Problem
from lirpa_multinorm.bounds.relu_network import ReluNetwork
from lirpa_multinorm.bounds.sdp_crown import OptimizerSettings, optimized_bounds
from lirpa_multinorm.bounds.windows import Windows
from lirpa_multinorm.errors import InvalidArgumentError
from lirpa_multinorm.perturbations import Region

SETS = {"linf": PerturbationLinf(0.3, clip=None), "l2": PerturbationL2Box(0.5, clip=None),
        "l2_range": PerturbationL2Box(0.5)}


def problem_of(ptb, shift, rows=2):
    """The functional 'first output' of a small network, moved so that the lowest of its minima is the shift."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2)).eval()
    for layer in (model[0], model[2], model[4]):
        layer.weight.data.mul_(2)
    region = Region(torch.rand(rows, 2), ptb)
    model[4].bias.data[0] += shift - lowest(model, region)
    return prepared(model, region), torch.tensor([[1.0, 0.0]]).expand(rows, -1).contiguous()


def prepared(model, region):
    """The problem of bounding a model on a region."""
    bounded = BoundedModule(model, perturbations=[region.perturbation])
    network = ReluNetwork(bounded, region.center)
    hidden = hidden_sets(bounded, network, [region], lipschitz_bounds(network, region.center))
    return Problem(network, [region], crown_sets(Windows(AffineMatrices(network)), [region], hidden))


def lowest(model, region):
    """The minimum of the first output over the sets, on a fine grid of the two inputs."""
    side = torch.linspace(-1, 1, 401)
    offsets = torch.cartesian_prod(side, side) * region.perturbation.eps
    found = []
    for center in region.center:
        points = center + offsets
        inside = region.perturbation.contains(points, center.expand(len(points), -1), 1e-6)
        found.append(model(points[inside])[:, 0].min())
    return float(min(found))


@pytest.mark.parametrize("name", SETS)
def test_what_is_true_is_proved_and_what_is_false_is_not(name):
    """A margin of 0.02 above zero is proved, one of 0.02 below zero never is."""
    problem, v = problem_of(SETS[name], 0.02)
    assert (optimized_bounds(problem, v) <= 0).any()  # not without splitting
    assert (branch_and_bound(problem, v) > 0).all()
    problem, v = problem_of(SETS[name], -0.02)
    found = branch_and_bound(problem, v, time.perf_counter() + 0.5)
    assert (found <= 0).any() and float(found.min()) <= -0.02 + 1e-4


def test_bounds_are_sound_whenever_it_stops():
    problem, v = problem_of(SETS["l2"], 0.02)
    truth = 0.02
    for seconds in (0, 0.3):
        found = branch_and_bound(problem, v, time.perf_counter() + seconds)
        assert float(found.min()) <= truth + 1e-4
    few = branch_and_bound(problem, v, settings=BranchSettings(max_subproblems=1))
    assert (few >= optimized_bounds(problem, v, OptimizerSettings((5,))) - 0.05).all()


def test_splitting_is_never_worse_than_the_whole():
    problem, v = problem_of(SETS["linf"], 0.02)
    whole = optimized_bounds(problem, v, OptimizerSettings((20, 80)))
    found = branch_and_bound(problem, v)
    assert (found >= whole.clamp(max=0) - 1e-3).all()


def test_a_network_without_relus_is_decided_at_once():
    model = nn.Sequential(nn.Linear(4, 2)).eval()
    x = torch.rand(1, 4)
    v = torch.tensor([[1.0, 0.0]])
    expected = float(model(x)[0, 0] - 0.5 * torch.linalg.vector_norm(model[0].weight[0]))
    assert float(branch_and_bound(prepared(model, Region(x, SETS["l2"])), v)) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("name", ["batch_size", "steps", "candidates", "max_subproblems"])
def test_settings_are_checked(name):
    with pytest.raises(InvalidArgumentError, match=f"{name}=0 must be at least 1"):
        BranchSettings(**{name: 0})


def test_nan_proves_nothing():
    problem, v = problem_of(SETS["l2"], 0.02)
    found = branch_and_bound(problem, v * math.nan, time.perf_counter() + 1)
    assert not (found > 0).any()
