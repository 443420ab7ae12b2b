"""Without x, bounds are those of the last inputs, with their own set or the module's."""

import math

import pytest
import torch
from torch import nn

from lirpa_multinorm import (
    BoundedModule,
    PerturbationL2Box,
    PerturbationLinf,
    PerturbationLpBox,
    host,
)
from lirpa_multinorm.audit.graphs import Lambda as Function
from lirpa_multinorm.errors import InvalidArgumentError
from tests.checks import assert_same, assert_sound


def normalised():
    torch.manual_seed(1)
    return nn.Sequential(
        Function(lambda x: (x - 0.4) / 0.2), nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)
    ).eval()


@pytest.mark.parametrize("method", ["IBP", "CROWN-IBP", "CROWN"])
@pytest.mark.parametrize("norm", [math.inf, 2, 1])
def test_x_left_out_means_the_last_inputs_with_their_set(norm, method):
    model, x = normalised(), torch.rand(3, 4)
    perturbed = host.BoundedTensor(x, host.PerturbationLpNorm(norm=norm, eps=0.1))
    bounded = BoundedModule(model, torch.empty_like(x))
    bounded(perturbed)
    bounds = bounded.compute_bounds(method=method)
    assert_same(bounds, bounded.compute_bounds((perturbed,), method=method), 0, 0)
    assert_sound(model, x, PerturbationLpBox(norm, 0.1, clip=None), bounds)


def test_x_left_out_means_the_module_s_sets_around_the_last_inputs():
    model, x = normalised(), torch.rand(3, 4)
    bounded = BoundedModule(model, perturbations=[PerturbationLinf(0.1), PerturbationL2Box(0.3)])
    bounded(x)
    result, expected = (bounded.compute_bounds(*given, method="IBP") for given in ((), (x,)))
    assert_same(result, expected, 0, 0)
    assert len(bounded.compute_norm_bounds(method="IBP")) == 2


def test_x_left_out_of_a_module_made_with_a_perturbed_input():
    model, x = normalised(), torch.rand(3, 4)
    ball = PerturbationLinf(0.1)
    bounds = BoundedModule(model, host.BoundedTensor(x, ball)).compute_bounds(method="IBP")
    assert bounds[0].shape == (3, 3)
    assert_sound(model, x, ball, bounds)


@pytest.mark.parametrize("sets", [None, [PerturbationLinf(0.1)]])
def test_x_left_out_before_any_input(sets):
    with pytest.raises(InvalidArgumentError, match="x is left out"):
        BoundedModule(normalised(), perturbations=sets).compute_bounds(method="IBP")


def test_x_left_out_without_any_set():
    bounded = BoundedModule(normalised())
    bounded(torch.rand(1, 4))
    with pytest.raises(InvalidArgumentError, match="perturbations"):
        bounded.compute_bounds(method="IBP")


def test_perturbations_are_set_after_construction():
    bounded, x = BoundedModule(normalised()), torch.rand(2, 4)
    bounded.perturbations = [host.PerturbationLpNorm(norm=2, eps=0.1)]
    ball = PerturbationLpBox(2, 0.1, clip=None)
    expected = BoundedModule(normalised(), perturbations=[ball]).compute_bounds(x, method="IBP")
    assert torch.equal(bounded.compute_bounds(x, method="IBP")[0], expected[0])
    with pytest.raises(InvalidArgumentError):
        bounded.perturbations = [0.1]


class TwoInputs(nn.Module):
    """A sum of two inputs."""

    def forward(self, x, y):
        return x + y


def test_the_module_s_sets_are_for_one_input():
    bounded, x = BoundedModule(TwoInputs(), perturbations=[PerturbationLinf(0.1)]), torch.rand(2, 4)
    with pytest.raises(InvalidArgumentError, match="one input"):
        bounded.compute_bounds((x, x), method="IBP")
