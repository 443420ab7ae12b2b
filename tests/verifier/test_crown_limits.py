"""What CROWN cannot prove.

Limits that no method of its kind exceeds, and the examples that are left out for them.
"""

import math

import pytest
import torch
from torch import nn

from lirpa_multinorm import BoundedModule, PerturbationLinf
from lirpa_multinorm.audit.graphs import INPUT_SHAPE
from lirpa_multinorm.perturbations import Region
from lirpa_multinorm.verifier.relaxations.crown_limits import crown_limits
from tests.checks import assert_same
from tests.networks import dense, with_parameters
from tests.verifier.problems import GRAPHS, SMALL, graph_module, problem_on, scaled

SETS = scaled(SMALL, 2)
METHODS = ["CROWN-IBP", "Sparse-CROWN", "CROWN-Optimized"]
SIZE = math.prod(INPUT_SHAPE)


def limits_of(model, regions, v, **options):
    """Return limits (B, S) of linear forms (B, S, K), one by one."""
    problem = problem_on(model, regions, crown=False, lipschitz=False)
    return torch.stack([crown_limits(problem, form, **options) for form in v.unbind(1)], dim=1)


def lower_bounds(bounded, regions, C, method, **options):
    """Lower bounds on all regions, one below the other."""
    result = bounded.compute_region_bounds(regions, C, method, bound_upper=False, **options)
    return torch.cat([lower for lower, _ in result])


@pytest.mark.parametrize("name", GRAPHS)
def test_no_bound_of_crown_gets_above_them(name):
    """On sets that are small, and on ones where hardly anything is left to prove."""
    sets = [ball for scale in (0.3, 1, 4) for ball in scaled(SETS, scale)]
    bounded, x = graph_module(name, *sets), torch.rand(4, *INPUT_SHAPE)
    v, regions = torch.randn(4 * len(sets), 3, 3), [Region(x, ball) for ball in sets]
    limits = limits_of(bounded.model, regions, v)
    clean = (v @ bounded.model(x).repeat(len(sets), 1).unsqueeze(2)).squeeze(2)
    assert (limits <= clean + 1e-5).all()
    for of_scale in (limits < clean - 1e-3).chunk(3):
        assert of_scale.float().mean() > 0.7
    for method in METHODS:
        if name == "residual" and method != "Sparse-CROWN":
            continue  # auto_LiRPA 0.3 fails on it
        result = lower_bounds(bounded, regions, [*v.chunk(len(sets))], method)
        assert (result <= limits + 1e-5).all()


@pytest.mark.parametrize("ptb", SETS[:1] + SETS[3:], ids=repr)
def test_of_one_hidden_layer_they_are_what_optimised_bounds_reach(ptb):
    model = dense(SIZE, 20, 3).eval()
    bounded = BoundedModule(
        model, perturbations=[ptb], bound_opts={"optimize_bound_args": {"iteration": 60}}
    )
    x, v = torch.rand(5, *INPUT_SHAPE), torch.randn(5, 4, 3)
    clean = (v @ model(x).unsqueeze(2)).squeeze(2)
    lower = bounded.compute_bounds(x, C=v, method="CROWN-Optimized", bound_upper=False)[0]
    limits = limits_of(model, [Region(x, ptb)], v, rounds=8)
    assert (lower <= limits + 1e-5).all() and ((limits - lower) / (clean - lower)).median() < 0.1


def test_hand_computed():
    """-relu(x) on [-1, 1]: the chord at the far end is 1, where the ReLU is, too.

    At 0 it would be 1/2.
    """
    model = nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 1))
    model, ball = with_parameters(model, 1.0, 0.0, 1.0, 0.0), PerturbationLinf(1.0, clip=None)

    def limit(center):
        region = Region(torch.full((1, 1), center), ball)
        return limits_of(model, [region], torch.tensor([[[-1.0]]])).item()

    assert limit(0.1) == pytest.approx(-1.1, abs=2e-3)
    # The gradient of a ReLU that is off is zero: the point stays, and the ReLU goes to its chord.
    assert limit(-0.5) <= -0.25 + 1e-3


@pytest.mark.parametrize("name", GRAPHS)
def test_certificates_are_the_same_with_enough(name):
    """What is left out has a bound that is not above enough.

    Nothing that CROWN proves is left out.
    """
    bounded, x = graph_module(name, *SETS), torch.rand(16, *INPUT_SHAPE)
    v = torch.randn(16 * len(SETS), 4, 3)
    regions, C = [Region(x, ball) for ball in SETS], [*v.chunk(len(SETS))]
    whole, ibp = (lower_bounds(bounded, regions, C, method) for method in ("Sparse-CROWN", "IBP"))
    best, seen = torch.maximum(whole, ibp), 0
    for enough in whole.amin(1).quantile(torch.tensor([0.1, 0.5, 0.9])).tolist():
        result = lower_bounds(bounded, regions, C, "Sparse-CROWN", enough=enough)
        certified = (best > enough + 1e-5).all(1)
        assert (result > enough - 1e-5)[certified].all() and (result <= best + 1e-5).all()
        left_out = ((result < whole - 1e-4) & (ibp <= enough)).any(1)
        assert not (left_out & (whole > enough + 1e-5).all(1)).any()
        seen += int(left_out.sum())
    assert seen > 0


def test_a_model_that_is_affine():
    bounded, x = BoundedModule(dense(SIZE, 3).eval()), torch.rand(2, *INPUT_SHAPE)
    v, regions = torch.randn(2 * len(SETS), 2, 3), [Region(x, ball) for ball in SETS]
    whole, limited = (
        lower_bounds(bounded, regions, [*v.chunk(len(SETS))], "Sparse-CROWN", **options)
        for options in ({}, {"enough": 0.0})
    )
    assert_same(whole, limited)
