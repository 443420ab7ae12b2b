"""What CROWN cannot prove.

Limits that no method of its kind exceeds, and the examples that are left out for them.
"""

import math

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
from lirpa_multinorm.audit import build_graph
from lirpa_multinorm.audit.graphs import INPUT_SHAPE
from lirpa_multinorm.perturbations import Region
from lirpa_multinorm.verifier.intermediate_bounds import initial_bounds
from lirpa_multinorm.verifier.problem import Problem
from lirpa_multinorm.verifier.relaxations.crown_limits import crown_limits
from lirpa_multinorm.verifier.relu_network import ReluNetwork

SETS = [
    PerturbationLinf(0.1),
    PerturbationL2Box(0.6),
    PerturbationL1Box(1.2),
    PerturbationL2Box(0.6, clip=None),
]
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
METHODS = ["CROWN-IBP", "Sparse-CROWN", "CROWN-Optimized"]


def limits_of(bounded, regions, v, **options):
    """Return limits (B, S) of linear forms (B, S, K), one by one."""
    x = torch.cat([region.center for region in regions])
    bounded.compute_region_bounds(regions, None, "IBP")  # traces the model
    network = ReluNetwork(bounded.model, x)
    problem = Problem(network, regions, initial_bounds(network, regions))
    return torch.stack([crown_limits(problem, one, **options) for one in v.unbind(1)], dim=1)


@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("scale", [0.3, 1, 4])
def test_no_bound_of_crown_gets_above_them(name, scale):
    sets = [PerturbationLpBox(one.norm, scale * one.eps, one.clip) for one in SETS]
    bounded, x = BoundedModule(build_graph(name), perturbations=sets), torch.rand(4, *INPUT_SHAPE)
    v = torch.randn(4 * len(sets), 5, 3)
    regions = [Region(x, one) for one in sets]
    limits, clean = (
        limits_of(bounded, regions, v),
        (v @ bounded.model(x).repeat(len(sets), 1).unsqueeze(2)).squeeze(2),
    )
    assert (limits <= clean + 1e-5).all() and (limits < clean - 1e-3).float().mean() > 0.7
    for method in METHODS:
        if name == "residual" and method != "Sparse-CROWN":
            continue  # auto_LiRPA 0.3 fails on it
        found = bounded.compute_region_bounds(
            regions, [*v.chunk(len(sets))], method, bound_upper=False
        )
        assert (torch.cat([lower for lower, _ in found]) <= limits + 1e-5).all()


@pytest.mark.parametrize("ptb", SETS[:1] + SETS[3:])
def test_of_one_hidden_layer_they_are_what_optimised_bounds_reach(ptb):
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(math.prod(INPUT_SHAPE), 20), nn.ReLU(), nn.Linear(20, 3)
    ).eval()
    bounded = BoundedModule(
        model, perturbations=[ptb], bound_opts={"optimize_bound_args": {"iteration": 60}}
    )
    x, v = torch.rand(5, *INPUT_SHAPE), torch.randn(5, 4, 3)
    clean = (v @ model(x).unsqueeze(2)).squeeze(2)
    lower = bounded.compute_bounds(x, C=v, method="CROWN-Optimized", bound_upper=False)[0]
    limits = limits_of(bounded, [Region(x, ptb)], v, rounds=8)
    assert (lower <= limits + 1e-5).all() and ((limits - lower) / (clean - lower)).median() < 0.1


def test_hand_computed():
    """-relu(x) on [-1, 1]: the chord at the far end is 1, where the ReLU is, too.

    At 0 it would be 1/2.
    """
    model = nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 1)).eval()
    for value, parameter in zip((1.0, 0.0, 1.0, 0.0), model.parameters()):
        parameter.data.fill_(value)
    bounded = BoundedModule(model, perturbations=[PerturbationLinf(1.0, clip=None)])
    found = limits_of(
        bounded,
        [Region(torch.full((1, 1), 0.1), bounded.perturbations[0])],
        torch.tensor([[[-1.0]]]),
    )
    assert found.item() == pytest.approx(-1.1, abs=2e-3)
    # The gradient of a ReLU that is off is zero: the point stays, and the ReLU goes to its chord.
    found = limits_of(
        bounded,
        [Region(torch.full((1, 1), -0.5), bounded.perturbations[0])],
        torch.tensor([[[-1.0]]]),
    )
    assert found.item() <= -0.25 + 1e-3


@pytest.mark.parametrize("name", GRAPHS)
def test_certificates_are_the_same_with_enough(name):
    """What is left out has a bound that is not above enough.

    Nothing that CROWN proves is left out.
    """
    bounded, x = BoundedModule(build_graph(name), perturbations=SETS), torch.rand(16, *INPUT_SHAPE)
    v = torch.randn(16 * len(SETS), 4, 3)
    regions, C = [Region(x, one) for one in SETS], [*v.chunk(len(SETS))]
    whole, ibp = (
        torch.cat(
            [
                lower
                for lower, _ in bounded.compute_region_bounds(regions, C, method, bound_upper=False)
            ]
        )
        for method in ("Sparse-CROWN", "IBP")
    )
    seen = 0
    for enough in whole.amin(1).quantile(torch.tensor([0.1, 0.5, 0.9])).tolist():
        found = bounded.compute_region_bounds(
            regions, C, "Sparse-CROWN", bound_upper=False, enough=enough
        )
        found = torch.cat([lower for lower, _ in found])
        certified = (torch.maximum(whole, ibp) > enough + 1e-5).all(1)
        assert (found > enough - 1e-5)[certified].all()
        assert (found <= torch.maximum(whole, ibp) + 1e-5).all()
        left_out = ((found < whole - 1e-4) & (ibp <= enough)).any(1)
        assert not (left_out & (whole > enough + 1e-5).all(1)).any()
        seen += int(left_out.sum())
    assert seen > 0


def test_a_model_that_is_affine():
    model = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(INPUT_SHAPE), 3)).eval()
    bounded, x = BoundedModule(model, perturbations=SETS), torch.rand(2, *INPUT_SHAPE)
    v = torch.randn(2 * len(SETS), 2, 3)
    regions, C = [Region(x, one) for one in SETS], [*v.chunk(len(SETS))]
    whole, limited = (
        torch.cat(
            [
                lower
                for lower, _ in bounded.compute_region_bounds(
                    regions, C, "Sparse-CROWN", bound_upper=False, **options
                )
            ]
        )
        for options in ({}, {"enough": 0.0})
    )
    assert torch.allclose(whole, limited, atol=1e-5)
