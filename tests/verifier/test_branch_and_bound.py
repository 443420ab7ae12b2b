"""Branch and bound: exact on small networks, sound when it is stopped, and done in the end."""

import math
import time

import pytest
import torch
from torch import nn

from lirpa_multinorm import PerturbationL2Box, PerturbationLinf
from lirpa_multinorm.errors import InvalidArgumentError
from lirpa_multinorm.perturbations import Region
from lirpa_multinorm.verifier.branching.branch_and_bound import BranchSettings, branch_and_bound
from lirpa_multinorm.verifier.branching.domains import Domains, Store
from lirpa_multinorm.verifier.relaxations.ascent import OptimizerSettings, Parameters
from lirpa_multinorm.verifier.relaxations.sdp_crown import Relaxation, optimized_bounds
from tests.verifier.problems import problem_on

SETS = {
    "linf": PerturbationLinf(0.3, clip=None),
    "l2": PerturbationL2Box(0.5, clip=None),
    "l2_range": PerturbationL2Box(0.5),
}


def problem_of(ptb, shift):
    """The linear form 'first output' of a small network, moved so that its minimum is the shift."""
    torch.manual_seed(3)
    model = nn.Sequential(
        nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2)
    ).eval()
    for layer in (model[0], model[2], model[4]):
        layer.weight.data.mul_(2)
    region = Region(torch.rand(1, 2), ptb)
    model[4].bias.data[0] += shift - lowest(model, region)
    return problem_on(model, [region]), torch.tensor([[1.0, 0.0]])


def lowest(model, region):
    """The minimum of the first output over the set, on a fine grid of the two inputs."""
    side = torch.linspace(-1, 1, 401)
    points = region.center + torch.cartesian_prod(side, side) * region.perturbation.eps
    inside = region.perturbation.contains(points, region.center.expand(len(points), -1), 1e-6)
    return float(model(points[inside])[:, 0].min())


@pytest.mark.parametrize("name", SETS)
def test_what_is_true_is_proved_and_what_is_false_is_not(name):
    """A margin of 0.02 above zero is proved, one of 0.02 below zero never is."""
    problem, v = problem_of(SETS[name], 0.02)
    assert (optimized_bounds(problem, v) <= 0).any()  # not without splitting
    assert (branch_and_bound(problem, v) > 0).all()
    problem, v = problem_of(SETS[name], -0.02)
    result = branch_and_bound(problem, v, time.perf_counter() + 0.5)
    assert (result <= 0).any() and float(result.min()) <= -0.02 + 1e-4


def test_bounds_are_sound_whenever_it_stops():
    problem, v = problem_of(SETS["l2"], 0.02)
    truth = 0.02
    for seconds in (0, 0.3):
        result = branch_and_bound(problem, v, time.perf_counter() + seconds)
        assert float(result.min()) <= truth + 1e-4
    few = branch_and_bound(problem, v, settings=BranchSettings(max_subproblems=1))
    assert (few >= optimized_bounds(problem, v, OptimizerSettings((5,))) - 0.05).all()


def test_splitting_is_never_worse_than_the_whole():
    problem, v = problem_of(SETS["linf"], 0.02)
    whole = optimized_bounds(problem, v, OptimizerSettings((20, 80)))
    result = branch_and_bound(problem, v)
    assert (result >= whole.clamp(max=0) - 1e-3).all()


def test_a_network_without_relus_is_decided_at_once():
    model = nn.Sequential(nn.Linear(4, 2)).eval()
    x = torch.rand(1, 4)
    v = torch.tensor([[1.0, 0.0]])
    expected = float(model(x)[0, 0] - 0.5 * torch.linalg.vector_norm(model[0].weight[0]))
    result = branch_and_bound(problem_on(model, [Region(x, SETS["l2"])]), v)
    assert float(result) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("name", ["batch_size", "steps", "candidates", "max_subproblems"])
def test_settings_are_checked(name):
    with pytest.raises(InvalidArgumentError, match=f"{name}=0 must be at least 1"):
        BranchSettings(**{name: 0})


def test_a_negative_number_of_splits_is_refused():
    with pytest.raises(InvalidArgumentError, match="max_splits=-1 must be 0 or more, or None"):
        BranchSettings(max_splits=-1)


@pytest.mark.parametrize("most", [0, 1, 5])
def test_no_more_is_split_than_allowed(most, monkeypatch):
    problem, v = problem_of(SETS["l2"], -0.02)  # false: it would go on splitting
    split, taken = [], Store.taken

    def counting(store, index):
        split.append(len(index))
        return taken(store, index)

    monkeypatch.setattr(Store, "taken", counting)
    result = branch_and_bound(problem, v, settings=BranchSettings(max_splits=most))
    assert sum(split) == most and float(result) <= -0.02 + 1e-4


def test_nan_proves_nothing():
    problem, v = problem_of(SETS["l2"], 0.02)
    result = branch_and_bound(problem, v * math.nan, time.perf_counter() + 1)
    assert not (result > 0).any()


def domains(bounds):
    """Domains that can be told apart by their bounds."""
    bound = torch.tensor(bounds)
    each = bound.unsqueeze(1)
    parameters = Parameters([each], [bound], [2 * each], [3 * each], [4 * each])
    return Domains(
        torch.arange(len(bound)),
        [torch.ones(len(bound), 3, dtype=torch.int8)],
        parameters,
        bound,
        -each,
        each,
    )


def test_the_store_keeps_what_is_not_taken_out():
    store = Store(domains([-1.0, -2.0, -3.0]))
    taken = store.taken(torch.tensor([2, 0]))
    assert taken.bound.tolist() == [-3, -1] and store.bound.tolist() == [-2]
    store.add(domains([-4.0, -5.0, -6.0, -7.0, -8.0]))  # more than there is room for
    assert sorted(store.bound.tolist()) == [-8, -7, -6, -5, -4, -2]
    every = store.taken(store.bound.argsort())
    assert every.bound.tolist() == [-8, -7, -6, -5, -4, -2] and len(store.row) == 0
    assert every.row.tolist() == [4, 3, 2, 1, 0, 1]
    assert torch.equal(every.parameters.slopes[0][:, 0], every.bound)
    assert torch.equal(every.parameters.shifts[0][:, 0], 2 * every.bound)
    assert torch.equal(every.parameters.squares[0][:, 0], 4 * every.bound)


def test_the_search_ends_where_its_parts_need_too_much_memory(monkeypatch):
    problem, v = problem_of(SETS["l2"], 0.02)
    assert (branch_and_bound(problem, v) > 0).all()
    large = property(lambda store: 1 << 40, lambda store, elements: None)
    monkeypatch.setattr(Store, "elements", large, raising=False)
    assert (branch_and_bound(problem, v) <= 0).any()


def test_an_optimiser_goes_on_where_it_stood():
    """A first step of Adam is of full size whatever the gradient.

    One that goes on hardly loses anything.
    """
    problem, v = problem_of(SETS["linf"], 0.02)
    relaxation, settings = Relaxation(problem, v), OptimizerSettings(enough=math.inf)
    best, result = relaxation.improved(relaxation.first(), 100, settings)
    slow = OptimizerSettings(slope_rate=0.05, last_rate=1.0, enough=math.inf)
    _, cold = relaxation.improved(result._replace(means=(), squares=()), 1, slow)
    _, warm = relaxation.improved(result, 1, slow)
    here = relaxation.value(result)
    falls = [float((here - relaxation.value(after)).clamp(min=0).max()) for after in (warm, cold)]
    assert falls[0] < falls[1] / 3 and falls[1] > 1e-3
