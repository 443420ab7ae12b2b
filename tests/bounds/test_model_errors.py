"""Models that BoundedModule refuses, and weights that are no numbers."""

import math
import re

import pytest
import torch
from torch import nn

from lirpa_multinorm import BoundedModule, PerturbationLpBox
from lirpa_multinorm.audit.graphs import Lambda
from lirpa_multinorm.errors import (
    InvalidArgumentError,
    LirpaMultinormError,
    NaNBoundError,
    UnsupportedModelError,
)
from tests.bounds.error_cases import NAN, OPTIONS, SETS, C, X, every_method, network

OUTPUTS = {
    "tuple": lambda x: (x, x),
    "list": lambda x: [x],
    "dict": lambda x: {"logits": x},
    "none": lambda x: None,
}


@pytest.mark.parametrize("function", OUTPUTS.values(), ids=OUTPUTS)
def test_outputs_that_are_no_tensor(function):
    bounded = BoundedModule(nn.Sequential(network(), Lambda(function)), perturbations=SETS)
    with pytest.raises(
        UnsupportedModelError, match="^model returns .*; wrap it so that it returns one tensor"
    ):
        bounded.compute_bounds(X, method="IBP")


def test_a_model_that_raises():
    def broken(x):
        raise RuntimeError("out of luck")

    bounded = BoundedModule(nn.Sequential(Lambda(broken), network()), perturbations=SETS)
    with pytest.raises(InvalidArgumentError, match="^x: the model cannot be applied.*out of luck"):
        bounded.compute_bounds(X, method="IBP")


class Strange(torch.autograd.Function):
    """An operator that no host knows."""

    @staticmethod
    def symbolic(graph, x):
        return graph.op("strange::Operator", x)

    @staticmethod
    def forward(ctx, x):
        return x.clone()


UNSUPPORTED = {
    "erfinv": (lambda x: torch.erfinv(x / 10), "(?i)erfinv"),
    "custom": (Strange.apply, "strange::Operator"),
    "fft": (lambda x: torch.fft.fft(x).real, "(?i)fft|real|complex"),
}


@pytest.mark.parametrize("method", ["IBP", "CROWN"])
@pytest.mark.parametrize("function,name", UNSUPPORTED.values(), ids=UNSUPPORTED)
def test_unsupported_operators_are_named(function, name, method, capsys):
    bounded = BoundedModule(nn.Sequential(network(), Lambda(function)), perturbations=SETS)
    with pytest.raises(UnsupportedModelError, match="^model: .*auto_LiRPA.*custom_ops") as caught:
        bounded.compute_bounds(X, method=method)
    text = str(caught.value)
    assert re.search(name, text), text
    assert " at /" in text, "the place in the graph"
    assert capsys.readouterr().out == ""


def test_a_failed_trace_leaves_the_model_as_it_was():
    model = nn.Sequential(network(), Lambda(Strange.apply)).train()
    model[0][0].weight.requires_grad_(False)
    before = [parameter.requires_grad for parameter in model.parameters()]
    bounded = BoundedModule(model, perturbations=SETS)
    for _ in range(2):
        with pytest.raises(UnsupportedModelError):
            bounded.compute_bounds(X, method="IBP")
    assert all(module.training for module in model.modules()) and bounded.training
    assert [parameter.requires_grad for parameter in model.parameters()] == before
    assert list(bounded.state_dict()) == list(model.state_dict())


# --- NaN ------------------------------------------------------------------------------------------

PLACES = {"first_weight": 0, "first_bias": 1, "middle_weight": 2, "last_weight": 4, "last_bias": 5}


def damaged(place, value=NAN):
    model = network()
    with torch.no_grad():
        list(model.parameters())[PLACES[place]].flatten()[0] = value
    return model


@every_method
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("specification", [None, C], ids=["outputs", "margins"])
@pytest.mark.parametrize(
    "sets",
    [SETS, SETS[:1], SETS[1:], [PerturbationLpBox(1, 0.5, clip=None)]],
    ids=["union", "linf", "l2", "l1_ball"],
)
def test_nan_weights_never_give_bounds(sets, specification, place, method):
    bounded = BoundedModule(damaged(place), perturbations=sets, bound_opts=OPTIONS)
    with pytest.raises(NaNBoundError, match="NaN.*check the model's weights"):
        bounded.compute_bounds(X, C=specification, method=method)


@every_method
@pytest.mark.parametrize("place", PLACES)
def test_infinite_weights_never_give_nan(place, method):
    """An error of the package, or bounds that say nothing wrong.

    No NaN, and lower not above upper.
    """
    bounded = BoundedModule(damaged(place, math.inf), perturbations=SETS, bound_opts=OPTIONS)
    try:
        lower, upper = bounded.compute_bounds(X, method=method)
    except LirpaMultinormError:
        return
    assert not torch.isnan(lower).any() and not torch.isnan(upper).any() and (lower <= upper).all()


def test_the_module_recovers_when_the_weights_do():
    model = damaged("middle_weight")
    bounded = BoundedModule(model, perturbations=SETS)
    with pytest.raises(NaNBoundError):
        bounded.compute_bounds(X, method="CROWN")
    with torch.no_grad():
        model[3].weight.nan_to_num_(0.0)
    lower, upper = bounded.compute_bounds(X, method="CROWN")
    assert torch.isfinite(lower).all() and (lower <= upper).all()
