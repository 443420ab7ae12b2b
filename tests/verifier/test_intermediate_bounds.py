"""Bounds of hidden layers hold every point of the sets, whatever they start from."""

import pytest
import torch
from torch import nn

from lirpa_multinorm import BoundedModule
from lirpa_multinorm.perturbations import Region
from lirpa_multinorm.verifier.affine_matrices import AffineMatrices
from lirpa_multinorm.verifier.intermediate_bounds import (
    crown_intermediate_bounds,
    optimized_intermediate_bounds,
)
from lirpa_multinorm.verifier.problem import Problem
from lirpa_multinorm.verifier.receptive_fields import ReceptiveField, ReceptiveFields
from lirpa_multinorm.verifier.relaxations.ascent import OptimizerSettings
from lirpa_multinorm.verifier.relu_network import ReluNetwork
from tests.checks import assert_no_looser, assert_same, assert_within, points_in
from tests.verifier.problems import SETS, graph_problem, problem_on

COUNT = 100


def receptive_fields(network):
    return ReceptiveFields(AffineMatrices(network))


def as_if_large(monkeypatch, size):
    """Let every receptive field say that it has so many numbers."""
    monkeypatch.setattr(ReceptiveField, "size", property(lambda field: size))
    monkeypatch.setattr(ReluNetwork, "neurons", property(lambda network: size))


def hidden_values(problem):
    """The values of each hidden layer at random points of the regions, (points, examples, n)."""
    layers = problem.network.layers(points_in(problem.regions, COUNT))[:-1]
    return [layer.flatten(1).unflatten(0, (COUNT, -1)) for layer in layers]


def assert_intervals_hold_every_point(problem):
    for values, *interval in zip(hidden_values(problem), *problem.hidden[:2]):
        assert_within(values, interval)


@pytest.mark.parametrize("name", ["conv", "residual", "view", "input_skip"])
def test_hidden_sets_hold_every_point_of_the_sets(name):
    _, problem = graph_problem(name)
    for values, center, radius in zip(hidden_values(problem), *problem.hidden[2:]):
        assert (torch.linalg.vector_norm(values - center, dim=2) <= radius + 1e-5).all()
    assert_intervals_hold_every_point(problem)


@pytest.mark.parametrize("name", ["conv", "residual", "view", "input_skip"])
def test_where_much_is_to_do_the_far_end_is_left_where_the_near_one_decides(name, monkeypatch):
    model, problem = graph_problem(name)
    network, regions, given = problem_on(model, problem.regions, crown=False, lipschitz=False)
    both = crown_intermediate_bounds(receptive_fields(network), regions, given, intersect=False)
    as_if_large(monkeypatch, 1 << 17)
    alone = crown_intermediate_bounds(receptive_fields(network), regions, given, intersect=False)
    left = 0
    for low, high, before, after, center in zip(
        alone.lower, alone.upper, given.lower, given.upper, alone.center
    ):
        decided = (before < 0) & (after > 0) & ((low >= 0) | (high <= 0))
        far_before, far = (
            torch.where(center < 0, *ends) for ends in ((before, after), (low, high))
        )
        assert torch.equal(far[decided], far_before[decided])
        left += int(decided.sum())
    assert left > 0
    for ends, others in zip(both[:2], alone[:2]):  # what can switch, is the same
        for *pair, low, high in zip(ends, others, alone.lower, alone.upper):
            assert_same(*[end * ((low < 0) & (high > 0)) for end in pair])
    assert_intervals_hold_every_point(Problem(network, regions, alone))


def test_tightened_sets_hold_every_point_and_lie_inside(monkeypatch):
    as_if_large(monkeypatch, 1 << 16)  # several parts in each layer
    _, (network, regions, hidden) = graph_problem("conv", 1)
    tight = optimized_intermediate_bounds(
        receptive_fields(network), regions, hidden, OptimizerSettings((4,))
    )
    for ends in zip(zip(*tight[:2]), zip(*hidden[:2])):
        assert_no_looser(*ends, tolerance=1e-6)
    widths = [
        sum(float((high - low).sum()) for low, high in zip(*bounds[:2]))
        for bounds in (tight, hidden)
    ]
    assert widths[0] < widths[1] - 0.1
    assert_intervals_hold_every_point(Problem(network, regions, tight))


class TwoClamps(nn.Module):
    """Two ways from the input, so that a later hidden layer sees the input through no ReLU."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.last(self.first(x).clamp(-0.1, 0.2) + self.second(x).clamp(-0.2, 0.3))


@pytest.mark.parametrize("method", ["SDP-CROWN", "SDP-CROWN-Optimized", "BaB"])
@pytest.mark.parametrize("perturbation", [SETS["linf"], SETS["l2"], SETS["l1"]], ids=repr)
def test_a_hidden_layer_that_no_relu_stands_before(perturbation, method):
    model, x = TwoClamps().eval(), torch.rand(1, 4)
    few_steps = {"optimize_bound_args": {"iteration": 10}}
    bounded, region = BoundedModule(model, bound_opts=few_steps), Region(x, perturbation)
    if method == "BaB":
        C = torch.eye(3)
        shift = model(x).min() - 1.0
        model.last.bias.data -= shift  # margins that can be proved
        lower = bounded.branch_and_bound(region, C)
        assert (lower > 0).any()
    else:
        (bounds,) = bounded.compute_region_bounds([region], method=method)
        lower = bounds.lower
        ((crown, _),) = bounded.compute_region_bounds([region], method="Sparse-CROWN")
        assert (lower >= crown - 1e-6).all() and len(bounds.intermediate.relus) == 4
    assert (model(points_in([region], 2000)) >= lower - 1e-5).all()
