"""The batched attack leaves no traces on the model, the modes or the inputs."""

import pytest
import torch
from torch import nn

from lirpa_multinorm import BoundedModule
from lirpa_multinorm.attacks import AttackSettings, pgd
from tests.attacks.pgd_cases import SETS, batch, network, seeded


def mixed_modes(model):
    model.train()
    model[1].eval()  # a frozen BatchNorm inside a model in training
    return model


class Broken(nn.Module):
    def forward(self, x):
        raise RuntimeError("broken")


def test_modes_are_restored():
    model, (x, y) = mixed_modes(network()), batch()
    before = [module.training for module in model.modules()]
    seen = []
    model.register_forward_hook(
        lambda *_: seen.append([module.training for module in model.modules()])
    )
    pgd(model, x, y, SETS, AttackSettings(steps=2))
    assert [module.training for module in model.modules()] == before
    assert seen and not any(mode for modes in seen for mode in modes)  # attacked in eval mode


def test_modes_are_restored_after_an_error():
    model, (x, y) = nn.Sequential(mixed_modes(network()), Broken()), batch()
    model.train()
    model[0][1].eval()
    before = [module.training for module in model.modules()]
    with pytest.raises(RuntimeError, match="broken"):
        pgd(model, x, y, SETS)
    assert [module.training for module in model.modules()] == before


def test_modes_of_a_bounded_module_are_restored():
    """Its network is no submodule of it."""
    model, (x, y) = mixed_modes(network()), batch()
    bounded = BoundedModule(model, perturbations=SETS[:2])
    bounded.compute_bounds(x, method="IBP")
    before = [module.training for module in model.modules()]
    pgd(bounded, x, y, SETS[:2], AttackSettings(steps=2))
    assert [module.training for module in model.modules()] == before
    assert bounded.training


def test_weights_and_statistics_are_untouched():
    model, (x, y) = network().train(), batch()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    pgd(model, x, y, SETS, AttackSettings(steps=3))
    assert all(
        parameter.grad is None and parameter.requires_grad for parameter in model.parameters()
    )
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_inputs_are_untouched():
    model, (x, y) = network(), batch()
    before = x.clone()
    pgd(model, x, y, SETS, AttackSettings(steps=3))
    assert torch.equal(x, before) and not x.requires_grad


def test_works_where_gradients_are_off():
    model, (x, y) = network(), batch()
    expected = pgd(model, x, y, SETS, AttackSettings(steps=3), seeded())
    with torch.no_grad():
        points = pgd(model, x, y, SETS, AttackSettings(steps=3), seeded())
    assert all(torch.equal(item, other) for item, other in zip(points, expected))
