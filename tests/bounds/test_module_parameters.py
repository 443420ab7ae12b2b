"""Parameters, gradients, state and layers of a BoundedModule are its model's."""

import pytest
import torch
from torch import nn

from lirpa_multinorm import BoundedModule, PerturbationLinf, margin_matrix
from tests.bounds.small_network import (
    BATCH,
    OPTIONS,
    SETS,
    bounds_of,
    every_method,
    images,
    network,
)
from tests.checks import assert_same, differ

# --- gradients ------------------------------------------------------------------------------------


def test_an_optimizer_built_before_the_first_use_trains_the_bounds():
    model, x = network(), images()
    bounded = BoundedModule(model, perturbations=SETS)
    ids = [id(parameter) for parameter in bounded.parameters()]
    assert ids == [id(parameter) for parameter in model.parameters()]
    optimizer = torch.optim.SGD(bounded.parameters(), lr=0.02)
    before = bounds_of(bounded, x)
    widths = []
    for _ in range(3):
        optimizer.zero_grad()
        lower, upper = bounded.compute_bounds(x, method="IBP")
        (upper - lower).mean().backward()
        widths.append((upper - lower).mean().item())
        optimizer.step()
    assert [id(parameter) for parameter in bounded.parameters()] == ids
    assert widths[2] < widths[1] < widths[0]
    assert differ(bounds_of(bounded, x), before)
    assert_same(bounds_of(bounded, x), bounds_of(BoundedModule(model, perturbations=SETS), x))


def test_gradients_equal_those_of_the_plain_formula():
    """Interval arithmetic written out in torch for l_inf, inside clip."""
    model, x = nn.Sequential(nn.Flatten(), nn.Linear(32, 8), nn.ReLU(), nn.Linear(8, 3)), images()
    lower, upper = BoundedModule(model, perturbations=[PerturbationLinf(0.1)]).compute_bounds(
        x, method="IBP"
    )
    (2 * upper - lower).sum().backward()
    result = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    lo, hi = (x - 0.1).clamp(0, 1).flatten(1), (x + 0.1).clamp(0, 1).flatten(1)
    for layer in (model[1], model[3]):
        centre, radius = layer((lo + hi) / 2), (hi - lo).div(2).matmul(layer.weight.abs().t())
        lo, hi = centre - radius, centre + radius
        if layer is model[1]:
            lo, hi = lo.relu(), hi.relu()
    assert_same((lower.detach(), upper.detach()), (lo.detach(), hi.detach()))
    (2 * hi - lo).sum().backward()
    assert_same(result, [parameter.grad for parameter in model.parameters()], 1e-4)


@every_method
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_frozen_parameters_stay_frozen(method, training):
    model = network().train(training)
    model[0].weight.requires_grad_(False)
    before = [parameter.requires_grad for parameter in model.parameters()]
    bounded = BoundedModule(model, perturbations=SETS, bound_opts=OPTIONS)
    bounded.compute_bounds(images(), method=method)
    bounded.train(not training).train(training)
    assert [parameter.requires_grad for parameter in model.parameters()] == before


@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])
def test_the_optimized_method_leaves_no_gradients_and_prints_nothing(grad, capsys):
    model = network()
    bounded = BoundedModule(model, perturbations=SETS, bound_opts=OPTIONS)
    with torch.set_grad_enabled(grad):
        lower, _ = bounded.compute_bounds(
            images(), C=margin_matrix(torch.zeros(BATCH).long(), 3), method="CROWN-Optimized"
        )
        assert torch.is_grad_enabled() is grad
    assert lower.shape == (BATCH, 2)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert capsys.readouterr().out == ""


def test_gradients_that_wait_survive_the_optimized_method():
    model = network()
    model(images()).sum().backward()
    before = [parameter.grad.clone() for parameter in model.parameters()]
    BoundedModule(model, perturbations=SETS, bound_opts=OPTIONS).compute_bounds(
        images(), method="CROWN-Optimized"
    )
    assert all(
        torch.equal(item, parameter.grad) for item, parameter in zip(before, model.parameters())
    )


# --- state and layers -----------------------------------------------------------------------------


@pytest.mark.parametrize("traced", [False, True], ids=["untraced", "traced"])
def test_state_dict_is_the_models_both_ways(traced):
    bounded, x = BoundedModule(network(True), perturbations=SETS), images()
    if traced:
        bounded.compute_bounds(x, method="CROWN")
    plain = network(True)
    assert list(bounded.state_dict()) == list(plain.state_dict())
    assert [name for name, _ in bounded.named_parameters()] == [
        name for name, _ in plain.named_parameters()
    ]
    assert [name for name, _ in bounded.named_buffers()] == [
        name for name, _ in plain.named_buffers()
    ]
    result = plain.load_state_dict(bounded.state_dict())
    assert not result.missing_keys and not result.unexpected_keys
    assert torch.allclose(plain(x), bounded(x), atol=1e-6)
    other = network(True)
    other[1].running_mean.fill_(0.3)
    bounded.load_state_dict(other.state_dict())
    assert torch.allclose(bounded(x), other(x), atol=1e-6)
    assert_same(
        bounds_of(bounded, x, "CROWN"),
        bounds_of(BoundedModule(other, perturbations=SETS), x, "CROWN"),
    )


def test_a_wrong_state_dict_is_refused_as_by_torch():
    bounded = BoundedModule(network(), perturbations=SETS)
    with pytest.raises(RuntimeError, match="Missing key"):
        bounded.load_state_dict({})


class Wrapper(nn.Module):
    """A module around the bounded one, as the distributed trainers of torch put one."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x)


@pytest.mark.parametrize("traced", [False, True], ids=["untraced", "traced"])
def test_layers_are_the_models(traced):
    model, x = network(True), images()
    bounded = BoundedModule(model, perturbations=SETS)
    if traced:
        bounded.compute_bounds(x, method="IBP")
    outer = Wrapper(bounded)
    names = ["inner." + name for name, _ in model.named_parameters()]
    assert [name for name, _ in outer.named_parameters()] == names
    assert [id(p) for p in outer.parameters()] == [id(p) for p in model.parameters()]
    assert list(outer.state_dict()) == ["inner." + key for key in model.state_dict()]
    assert [m for m in bounded.modules() if m is not bounded] == list(model.modules())
    seen = []
    assert bounded.apply(seen.append) is bounded
    assert set(seen) == set(model.modules())
    outer.train()
    assert all(module.training for module in model.modules())
    outer.double()
    bounded(x.double())
    assert bounded.compute_bounds(x.double(), method="IBP")[0].dtype == torch.float64


def test_bounds_of_a_bounded_module_are_those_of_its_model():
    inner = BoundedModule(network(), perturbations=SETS[:1])
    outer = BoundedModule(inner, perturbations=SETS)
    assert outer.model is inner.model
    assert_same(
        bounds_of(outer, images()),
        bounds_of(BoundedModule(inner.model, perturbations=SETS), images()),
    )
