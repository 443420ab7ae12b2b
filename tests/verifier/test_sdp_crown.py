"""SDP-CROWN: sound inside every set, never worse than its start, exact for linear networks."""

import math

import pytest
import torch
from torch import nn

from lirpa_multinorm import (
    AttackSettings,
    BoundedModule,
    PerturbationL1Box,
    PerturbationL2Box,
    PerturbationLinf,
    PerturbationLpBox,
)
from lirpa_multinorm.attacks.geometry import random_point
from lirpa_multinorm.audit import build_graph, largest_violation
from lirpa_multinorm.audit.graphs import INPUT_SHAPE
from lirpa_multinorm.errors import InvalidArgumentError, NaNBoundError, UnsupportedModelError
from lirpa_multinorm.perturbations import Region
from lirpa_multinorm.verifier import intermediate_bounds as intermediate_bounds
from lirpa_multinorm.verifier.affine_matrices import AffineMatrices
from lirpa_multinorm.verifier.intermediate_bounds import (
    crown_intermediate_bounds,
    initial_bounds,
    optimized_intermediate_bounds,
)
from lirpa_multinorm.verifier.lipschitz.constants import LipschitzConstants
from lirpa_multinorm.verifier.problem import Problem
from lirpa_multinorm.verifier.receptive_fields import ReceptiveFields
from lirpa_multinorm.verifier.relaxations.ascent import OptimizerSettings
from lirpa_multinorm.verifier.relaxations.sdp_crown import Relaxation, optimized_bounds
from lirpa_multinorm.verifier.relu_network import ReluNetwork

SETS = {
    "linf": PerturbationLinf(0.05),
    "l2": PerturbationL2Box(0.3),
    "l1": PerturbationL1Box(0.6),
    "ball": PerturbationL2Box(0.3, clip=None),
    "wide": PerturbationL2Box(2.0),
}
GRAPHS = [
    "mlp",
    "conv",
    "standardize",
    "negate",
    "input_skip",
    "conv_batch_norm",
    "residual",
    "view",
    "relu_first",
    "strided_dilated_grouped",
    "average_pool_first",
]


def module(name="conv", *sets):
    return BoundedModule(build_graph(name), perturbations=list(sets) or list(SETS.values()))


ATTACK = AttackSettings(steps=25)


def prepared(name="conv", batch=4):
    """The module of a graph, and the problem of bounding it on all sets around some inputs."""
    bounded, x = module(name), torch.rand(batch, *INPUT_SHAPE)
    network = ReluNetwork(bounded.model, x)
    regions = [Region(x, one) for one in bounded.perturbations]
    hidden = initial_bounds(network, regions, LipschitzConstants(network, x))
    return bounded, Problem(
        network,
        regions,
        crown_intermediate_bounds(ReceptiveFields(AffineMatrices(network)), regions, hidden),
    )


def assert_intervals_hold_every_point(network, regions, sets):
    """Random points of the regions have hidden layers inside the sets' intervals."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(100):
        points = torch.cat(
            [random_point(region.perturbation, region.center, generator) for region in regions]
        )
        for layer, lower, upper in zip(network.layers(points)[:-1], sets.lower, sets.upper):
            assert ((layer.flatten(1) >= lower - 1e-5) & (layer.flatten(1) <= upper + 1e-5)).all()


@pytest.mark.parametrize("name", GRAPHS)
def test_an_attack_never_leaves_the_bounds(name):
    bounded, problem = prepared(name, 2)
    rows, eye = (
        torch.arange(2 * len(SETS)).repeat_interleave(3),
        torch.eye(3).repeat(2 * len(SETS), 1),
    )
    settings = OptimizerSettings((6,), enough=math.inf)
    lower, upper = (
        sign * optimized_bounds(problem.rows(rows), sign * eye, settings).view(len(SETS), 2, 3)
        for sign in (1, -1)
    )
    assert (lower <= upper).all()
    for region, bounds in zip(problem.regions, zip(lower, upper)):
        assert largest_violation(bounded.model, *region, bounds, settings=ATTACK) <= 1e-5


@pytest.mark.parametrize("name", GRAPHS)
def test_an_attack_never_leaves_the_lipschitz_bounds(name):
    bounded, x = module(name), torch.rand(2, *INPUT_SHAPE)
    for ptb, bounds in zip(
        bounded.perturbations, bounded.compute_norm_bounds(x, method="Lipschitz")
    ):
        assert largest_violation(bounded.model, x, ptb, bounds, settings=ATTACK) <= 1e-5


@pytest.mark.parametrize("name", ["conv", "standardize"])
def test_it_is_at_least_crown(name):
    bounded, x = module(name, SETS["linf"], SETS["l2"]), torch.rand(1, *INPUT_SHAPE)
    sdp, crown = (
        bounded.compute_norm_bounds(x, method=method) for method in ("SDP-CROWN", "CROWN")
    )
    gains = []
    for (lower, upper), (low, high) in zip(sdp, crown):
        assert (lower >= low - 1e-4).all() and (upper <= high + 1e-4).all()
        gains.append(float((high - low - upper + lower).mean()))
    assert max(gains) > 0.01


@pytest.mark.parametrize("clip", [None, (0.0, 1.0)])
@pytest.mark.parametrize("norm, eps", [(math.inf, 0.1), (2, 0.4), (1, 0.7)])
def test_linear_networks_are_bounded_exactly(norm, eps, clip):
    bounded = module("linear_only", PerturbationLpBox(norm, eps, clip))
    x = torch.rand(3, *INPUT_SHAPE)
    for one, other in zip(
        bounded.compute_bounds(x, method="SDP-CROWN"), bounded.compute_bounds(x, method="CROWN")
    ):
        assert torch.allclose(one, other, atol=1e-5)


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
    assert torch.allclose(lower, model(x) - 0.5 * slope, atol=1e-4)
    assert torch.allclose(upper, model(x) + 0.5 * slope, atol=1e-4)


@pytest.mark.parametrize("name", ["conv", "residual", "view", "input_skip"])
def test_hidden_sets_hold_every_point_of_the_sets(name):
    _, (network, regions, hidden) = prepared(name)
    generator = torch.Generator().manual_seed(0)
    for _ in range(100):
        points = torch.cat(
            [random_point(region.perturbation, region.center, generator) for region in regions]
        )
        for layer, lower, upper, center, radius in zip(network.layers(points)[:-1], *hidden):
            value = layer.flatten(1)
            assert ((value >= lower - 1e-5) & (value <= upper + 1e-5)).all()
            assert (torch.linalg.vector_norm(value - center, dim=1) <= radius + 1e-5).all()


@pytest.mark.parametrize("name", ["conv", "residual", "view", "input_skip"])
def test_where_much_is_to_do_the_far_end_is_left_where_the_near_one_decides(name, monkeypatch):
    bounded, (network, regions, _) = prepared(name)
    given, windows = initial_bounds(network, regions), ReceptiveFields(AffineMatrices(network))
    both = crown_intermediate_bounds(windows, regions, given, intersect=False)
    monkeypatch.setattr("lirpa_multinorm.verifier.intermediate_bounds._MAX_ELEMENTS", 1)
    alone = crown_intermediate_bounds(windows, regions, given, intersect=False)
    left = 0
    for low, high, before, after, center in zip(
        alone.lower, alone.upper, given.lower, given.upper, alone.center
    ):
        decided = (before < 0) & (after > 0) & ((low >= 0) | (high <= 0))
        far_before, far = (
            torch.where(center < 0, one, other) for one, other in ((before, after), (low, high))
        )
        assert torch.equal(far[decided], far_before[decided])
        left += int(decided.sum())
    assert left > 0
    for ends, others in zip(both[:2], alone[:2]):  # what can switch, is the same
        for one, other, low, high in zip(ends, others, alone.lower, alone.upper):
            assert torch.allclose(
                *[end * ((low < 0) & (high > 0)) for end in (one, other)], atol=1e-5
            )
    assert_intervals_hold_every_point(network, regions, alone)


def test_many_functionals_of_one_example_have_the_bounds_of_as_many_examples():
    _, problem = prepared("conv", 1)
    v, generator = torch.randn(6, 3), torch.Generator().manual_seed(0)
    for place in range(len(problem.regions)):
        one = problem.rows(torch.tensor([place]))
        splits = [
            torch.randint(-1, 2, (6, low.shape[1]), generator=generator) * ((low < 0) & (high > 0))
            for low, high in zip(one.hidden.lower, one.hidden.upper)
        ]
        single, many = (
            Relaxation(which, v, splits)
            for which in (one, one.rows(torch.zeros(6, dtype=torch.long)))
        )
        found = single.first()
        assert torch.allclose(single.value(found), many.value(found), atol=1e-5)
        ends = [
            which.improved(found, 3, OptimizerSettings(enough=math.inf))[0]
            for which in (single, many)
        ]
        assert torch.allclose(*ends, atol=1e-4)
        assert all(
            torch.allclose(*pair, atol=1e-5)
            for pair in zip(single.losses(found), many.losses(found))
        )


def test_tightened_sets_hold_every_point_and_lie_inside(monkeypatch):
    monkeypatch.setattr(intermediate_bounds, "_MAX_ELEMENTS", 7 * 50)  # several parts in each layer
    _, (network, regions, hidden) = prepared("conv", 1)
    tight = optimized_intermediate_bounds(
        ReceptiveFields(AffineMatrices(network)), regions, hidden, OptimizerSettings((4,))
    )
    smaller = [
        (low >= before - 1e-6).all() and (high <= after + 1e-6).all()
        for low, before, high, after in zip(tight.lower, hidden.lower, tight.upper, hidden.upper)
    ]
    assert (
        all(smaller)
        and sum(float((high - low).sum()) for low, high in zip(tight.lower, tight.upper))
        < sum(float((high - low).sum()) for low, high in zip(hidden.lower, hidden.upper)) - 0.1
    )
    assert_intervals_hold_every_point(network, regions, tight)


def test_optimised_hidden_layers_give_better_bounds():
    bounded, x = module("conv", SETS["linf"]), torch.rand(1, *INPUT_SHAPE)
    (low, high), (lower, upper) = (
        bounded.compute_bounds(x, method=method) for method in ("SDP-CROWN", "SDP-CROWN-Optimized")
    )
    assert (lower >= low - 1e-5).all() and (upper <= high + 1e-5).all()
    assert float((high - low - upper + lower).max()) > 0
    assert (
        largest_violation(bounded.model, x, SETS["linf"], (lower, upper), settings=ATTACK) <= 1e-5
    )


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


def test_each_functional_is_bounded_on_its_own():
    """Dropping the finished ones, or bounding one by one, changes nothing but rounding."""
    _, problem = prepared()
    v = torch.randn(20, 3)
    together = optimized_bounds(problem, v, OptimizerSettings((10,), enough=math.inf))
    for row in (0, 7, 19):
        index = torch.tensor([row])
        alone = optimized_bounds(
            problem.rows(index), v[index], OptimizerSettings((10,), enough=math.inf)
        )
        assert torch.allclose(alone, together[index], atol=1e-4)


def test_the_search_stops_where_it_is_enough():
    _, problem = prepared()
    v = torch.randn(20, 3)
    full = optimized_bounds(problem, v, OptimizerSettings((5, 25), enough=math.inf))
    level = float(full.median())
    found = optimized_bounds(problem, v, OptimizerSettings((5, 25), enough=level))
    first = optimized_bounds(problem, v, OptimizerSettings(()))
    assert (full >= first).all() and (found >= first).all() and (found <= full + 1e-4).all()
    assert ((found > level) == (full > level)).float().mean() >= 0.9
    assert torch.allclose(found[full <= level], full[full <= level], atol=0.02)


def test_a_group_is_given_up_with_its_lowest():
    """Rows of one example belong together.

    Where the lowest stays below, the others keep their first bound.
    """
    _, problem = prepared()
    rows, v = torch.arange(20).repeat_interleave(2), torch.randn(40, 3)
    arguments = problem.rows(rows), v
    first = optimized_bounds(*arguments, OptimizerSettings(()))
    alone = optimized_bounds(*arguments, OptimizerSettings((10,)))
    found = optimized_bounds(*arguments, OptimizerSettings((10,)), groups=rows)
    passed = {"whole": 0, "lost": 0}
    for pair in rows.view(-1, 2) * 0 + torch.arange(40).view(-1, 2):
        lead, other = pair[first[pair].argsort()].tolist()
        assert found[lead] == pytest.approx(float(alone[lead]), abs=1e-4)
        expected = alone if alone[lead] > 0 else first
        passed["whole" if alone[lead] > 0 else "lost"] += bool(first[lead] <= 0)
        assert found[other] == pytest.approx(float(expected[other]), abs=1e-4)
    assert passed["lost"] and torch.equal(
        (found > 0).view(-1, 2).all(1), (alone > 0).view(-1, 2).all(1)
    )


@pytest.mark.parametrize("sets", [["l2"], ["linf"], ["linf", "l2"]], ids="-".join)
def test_later_stages_have_nothing_to_do_where_the_first_is_enough(sets):
    regions = [Region(torch.rand(2, *INPUT_SHAPE), SETS[name]) for name in sets]
    found = module("conv").compute_region_bounds(regions, method="SDP-CROWN-Optimized", enough=-1e3)
    assert all(bool(torch.isfinite(end).all()) for bounds in found for end in bounds)


def test_more_steps_are_no_worse():
    _, problem = prepared()
    v = torch.randn(20, 3)
    bounds = [
        optimized_bounds(problem, v, OptimizerSettings((steps,), enough=math.inf))
        for steps in (1, 5, 40)
    ]
    assert (
        (bounds[0] <= bounds[1]).all()
        and (bounds[1] <= bounds[2]).all()
        and (bounds[0] < bounds[2]).any()
    )


def test_pixel_range_is_no_looser_than_the_ball():
    x = 0.1 * torch.rand(4, *INPUT_SHAPE)  # dark images: half of every ball lies outside the range
    balls = [PerturbationL2Box(0.5, clip=None), PerturbationL2Box(0.5)]
    (low, high), (lower, upper) = module("conv", *balls).compute_norm_bounds(x, method="SDP-CROWN")
    assert (lower >= low - 1e-5).all() and (
        upper <= high + 1e-5
    ).all()  # the better of both is kept
    assert float((high - low).mean()) > 1.1 * float((upper - lower).mean())


def test_radius_per_example():
    x, eps = torch.rand(2, *INPUT_SHAPE), torch.tensor([0.0, 0.4])
    many = module("conv", PerturbationL2Box(eps)).compute_bounds(x, method="SDP-CROWN")
    for row in range(2):
        one = module("conv", PerturbationL2Box(float(eps[row]))).compute_bounds(
            x[row : row + 1], method="SDP-CROWN"
        )
        assert all(torch.allclose(a[row : row + 1], b, atol=1e-3) for a, b in zip(many, one))
    assert torch.allclose(many[0][0], many[1][0], atol=1e-4)  # a radius of zero is a point


def test_nan_weights_raise():
    bounded, x = module("conv"), torch.rand(1, *INPUT_SHAPE)
    bounded.model[0].weight.data[0, 0, 0, 0] = math.nan
    for method in ("SDP-CROWN", "Lipschitz"):
        with pytest.raises(NaNBoundError):
            bounded.compute_bounds(x, method=method)


def test_options_of_other_methods_are_refused():
    bounded, x = module("conv"), torch.rand(1, *INPUT_SHAPE)
    with pytest.raises(InvalidArgumentError, match="enough: not supported by CROWN"):
        bounded.compute_bounds(x, method="CROWN", enough=0.0)
    with pytest.raises(InvalidArgumentError, match="final_node_name: not supported by SDP-CROWN"):
        bounded.compute_bounds(x, method="SDP-CROWN", final_node_name="x")
    with pytest.raises(UnsupportedModelError, match="sigmoid"):
        module("sigmoid_first").compute_bounds(x, method="SDP-CROWN")


def test_gradient_mode_of_the_caller_does_not_matter():
    bounded, x = module("mlp", SETS["l2"]), torch.rand(1, *INPUT_SHAPE)
    with torch.no_grad():
        quiet = bounded.compute_bounds(x, method="SDP-CROWN")
    loud = bounded.compute_bounds(x, method="SDP-CROWN")
    assert all(
        torch.equal(one, other) and not other.requires_grad for one, other in zip(quiet, loud)
    )
    assert all(one.grad is None for one in bounded.model.parameters())


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
    generator = torch.Generator().manual_seed(0)
    points = random_point(perturbation, x.expand(2000, -1), generator)
    assert (model(points) >= lower - 1e-5).all()
