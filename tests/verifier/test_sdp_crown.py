"""SDP-CROWN: sound inside every set, never worse than its start, exact for linear networks."""

import math

import pytest
import torch
from torch import nn

from lirpa_multinorm import AttackSettings, BoundedModule, PerturbationL2Box, PerturbationLpBox
from lirpa_multinorm.audit import build_graph
from lirpa_multinorm.audit.graphs import INPUT_SHAPE
from lirpa_multinorm.errors import InvalidArgumentError, NaNBoundError, UnsupportedModelError
from lirpa_multinorm.perturbations import Region
from lirpa_multinorm.verifier.relaxations.ascent import OptimizerSettings
from lirpa_multinorm.verifier.relaxations.sdp_crown import optimized_bounds
from tests.checks import assert_contains, assert_no_looser, assert_same, assert_sound
from tests.verifier.problems import GRAPHS, SETS, attacked_graph, graph_module, problem_on


@pytest.mark.parametrize("name", GRAPHS)
def test_an_attack_never_leaves_the_bounds(name):
    model, x, reached = attacked_graph(name)
    problem = problem_on(model, [Region(x, ball) for ball in SETS.values()])
    rows = torch.arange(2 * len(SETS)).repeat_interleave(3)
    eye, settings = torch.eye(3).repeat(2 * len(SETS), 1), OptimizerSettings((6,), enough=math.inf)
    lower, upper = (
        sign * optimized_bounds(problem.rows(rows), sign * eye, settings).view(len(SETS), 2, 3)
        for sign in (1, -1)
    )
    for *bounds, ends in zip(lower, upper, reached):
        assert_contains(bounds, ends)


@pytest.mark.parametrize("name", GRAPHS)
def test_an_attack_never_leaves_the_lipschitz_bounds(name):
    _, x, reached = attacked_graph(name)
    for bounds, ends in zip(graph_module(name).compute_norm_bounds(x, method="Lipschitz"), reached):
        assert_contains(bounds, ends)


@pytest.mark.parametrize("name", ["conv", "standardize"])
def test_it_is_at_least_crown(name):
    bounded, x = graph_module(name, SETS["linf"], SETS["l2"], steps=20), torch.rand(1, *INPUT_SHAPE)
    sdp, crown = (
        bounded.compute_norm_bounds(x, method=method) for method in ("SDP-CROWN", "CROWN")
    )
    gains = []
    for (lower, upper), (low, high) in zip(sdp, crown):
        assert_no_looser((lower, upper), (low, high), 1e-4)
        gains.append(float((high - low - upper + lower).mean()))
    assert max(gains) > 0.01


@pytest.mark.parametrize("clip", [None, (0.0, 1.0)])
@pytest.mark.parametrize("norm, eps", [(math.inf, 0.1), (2, 0.4), (1, 0.7)])
def test_linear_networks_are_bounded_exactly(norm, eps, clip):
    bounded = graph_module("linear_only", PerturbationLpBox(norm, eps, clip))
    x = torch.rand(3, *INPUT_SHAPE)
    assert_same(*[bounded.compute_bounds(x, method=method) for method in ("SDP-CROWN", "CROWN")])


def test_stable_networks_are_bounded_exactly():
    """Where no ReLU can switch, the network is linear on the set; its minimum there is known.

    The set is a ball.
    """
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2)).eval()
    with torch.no_grad():
        model[0].bias.copy_(torch.tensor([9.0, -9.0, 9.0, -9.0, 9.0]))
    x, mask = torch.rand(2, 4), torch.tensor([1.0, 0.0, 1.0, 0.0, 1.0])
    slope = torch.linalg.vector_norm((model[2].weight * mask) @ model[0].weight, dim=1)
    bounded = BoundedModule(model, perturbations=[PerturbationL2Box(0.5, clip=None)])
    lower, upper = bounded.compute_bounds(x, method="SDP-CROWN")
    assert_same((lower, upper), (model(x) - 0.5 * slope, model(x) + 0.5 * slope), atol=1e-4)


def test_optimised_hidden_layers_give_better_bounds():
    bounded, x = graph_module("conv", SETS["linf"]), torch.rand(1, *INPUT_SHAPE)
    (low, high), (lower, upper) = (
        bounded.compute_bounds(x, method=method) for method in ("SDP-CROWN", "SDP-CROWN-Optimized")
    )
    assert_no_looser((lower, upper), (low, high))
    assert float((high - low - upper + lower).max()) > 0
    assert_sound(bounded.model, x, SETS["linf"], (lower, upper), settings=AttackSettings(25))


def test_the_options_iterations_count_for_our_optimisers_too():
    x, bounds = torch.rand(2, *INPUT_SHAPE), []
    for options in (
        None,
        {"optimize_bound_args": {"iteration": 1}},
        {"optimize_bound_args": {"iteration": 100}},
    ):
        bounded = BoundedModule(
            build_graph("conv"), bound_opts=options, perturbations=[SETS["linf"]]
        )
        bounds.append(bounded.compute_bounds(x, method="SDP-CROWN-Optimized")[0])
    assert (bounds[1] <= bounds[0] + 1e-5).all() and (bounds[1] <= bounds[2] + 1e-5).all()
    assert (bounds[1] < bounds[2] - 1e-4).any()


@pytest.mark.parametrize("sets", [["l2"], ["linf"], ["linf", "l2"]], ids="-".join)
def test_later_stages_have_nothing_to_do_where_the_first_is_enough(sets):
    regions = [Region(torch.rand(2, *INPUT_SHAPE), SETS[name]) for name in sets]
    result = graph_module("conv").compute_region_bounds(
        regions, method="SDP-CROWN-Optimized", enough=-1e3
    )
    assert all(bool(torch.isfinite(end).all()) for bounds in result for end in bounds)


def test_pixel_range_is_no_looser_than_the_ball():
    x = 0.1 * torch.rand(4, *INPUT_SHAPE)  # dark images: half of every ball lies outside the range
    balls = [PerturbationL2Box(0.5, clip=None), PerturbationL2Box(0.5)]
    (low, high), (lower, upper) = graph_module("conv", *balls, steps=10).compute_norm_bounds(
        x, method="SDP-CROWN"
    )
    assert_no_looser((lower, upper), (low, high))  # the better of both is kept
    assert float((high - low).mean()) > 1.1 * float((upper - lower).mean())


def test_radius_per_example():
    x, eps = torch.rand(2, *INPUT_SHAPE), torch.tensor([0.0, 0.4])

    def bounds(radius, rows):
        bounded = graph_module("conv", PerturbationL2Box(radius), steps=10)
        return bounded.compute_bounds(x[rows], method="SDP-CROWN")

    many = bounds(eps, slice(0, 2))
    for row in range(2):
        alone = bounds(float(eps[row]), slice(row, row + 1))
        assert_same([end[row : row + 1] for end in many], alone, atol=1e-3)
    assert torch.allclose(many[0][0], many[1][0], atol=1e-4)  # a radius of zero is a point


def test_nan_weights_raise():
    bounded, x = graph_module("conv"), torch.rand(1, *INPUT_SHAPE)
    bounded.model[0].weight.data[0, 0, 0, 0] = math.nan
    for method in ("SDP-CROWN", "Lipschitz"):
        with pytest.raises(NaNBoundError):
            bounded.compute_bounds(x, method=method)


def test_options_of_other_methods_are_refused():
    bounded, x = graph_module("conv"), torch.rand(1, *INPUT_SHAPE)
    with pytest.raises(InvalidArgumentError, match="enough: not supported by CROWN"):
        bounded.compute_bounds(x, method="CROWN", enough=0.0)
    with pytest.raises(InvalidArgumentError, match="final_node_name: not supported by SDP-CROWN"):
        bounded.compute_bounds(x, method="SDP-CROWN", final_node_name="x")
    with pytest.raises(UnsupportedModelError, match="sigmoid"):
        graph_module("sigmoid_first").compute_bounds(x, method="SDP-CROWN")


def test_gradient_mode_of_the_caller_does_not_matter():
    bounded, x = graph_module("mlp", SETS["l2"], steps=5), torch.rand(1, *INPUT_SHAPE)
    with torch.no_grad():
        quiet = bounded.compute_bounds(x, method="SDP-CROWN")
    loud = bounded.compute_bounds(x, method="SDP-CROWN")
    assert_same(quiet, loud, 0, 0)
    assert not any(end.requires_grad for end in loud)
    assert all(parameter.grad is None for parameter in bounded.model.parameters())
