"""The audit of a network of one's own.

Every outcome is told apart, and nothing of the network is changed.
"""

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
)
from lirpa_multinorm.audit import METHODS, attacked_range, audit, outcomes
from lirpa_multinorm.errors import InvalidArgumentError

SETS = [PerturbationLinf(0.05), PerturbationL2Box(0.1), PerturbationL1Box(0.2)]
ATTACK = AttackSettings(steps=10)


@pytest.fixture
def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)), torch.rand(2, 4)


def test_every_method_and_set_has_its_row(network):
    few_steps = {"optimize_bound_args": {"iteration": 10}}
    rows = audit(*network, SETS, bound_opts=few_steps, settings=ATTACK)
    assert [(row.method, row.perturbation) for row in rows] == [
        (method, ball) for method in METHODS for ball in SETS
    ]
    assert all(
        row.sound and not row.wrong and row.violation < 1e-5 and row.looseness > 0.99
        for row in rows
    )
    loose = {row.method: row.looseness for row in rows if row.perturbation is SETS[0]}
    assert loose["CROWN"] < loose["IBP"]


def test_the_range_of_an_affine_map_is_reached(network):
    layer, x = nn.Linear(4, 3), network[1]
    center, reach = layer(x), 0.05 * layer.weight.abs().sum(1)
    low, high = attacked_range(layer, x, PerturbationLinf(0.05, clip=None))
    assert torch.allclose(low, center - reach, atol=1e-5) and torch.allclose(
        high, center + reach, atol=1e-5
    )
    (row,) = audit(layer, x, [PerturbationLinf(0.05, clip=None)], ["IBP"])
    assert row.looseness == pytest.approx(1, abs=1e-3)


def test_a_specification_is_audited(network):
    C = torch.tensor([[[1.0, -1.0, 0.0]]]).expand(2, 1, 3)
    assert all(row.sound for row in audit(*network, SETS, ["IBP", "CROWN"], C=C, settings=ATTACK))


@pytest.mark.parametrize("methods", [["IBP"], ["Lipschitz", "CROWN"]])
def test_a_bounded_module_is_audited_as_its_model(network, methods):
    model, x = network
    rows, plain = (
        audit(item, x, SETS, methods, settings=ATTACK) for item in (BoundedModule(model), model)
    )
    assert [row.numbers() for row in rows] == [row.numbers() for row in plain]


def test_refusals_carry_the_message(network):
    rows = audit(
        nn.Sequential(network[0], nn.Tanh()),
        network[1],
        SETS[:1],
        ["Sparse-CROWN", "CROWN"],
        settings=ATTACK,
    )
    assert [row.outcome for row in rows] == ["refused", "sound"]
    assert (
        rows[0].message
        and rows[0].violation is None
        and rows[0].looseness is None
        and not rows[0].wrong
    )


@pytest.mark.parametrize("shift, size", [(0.5, 0.1), (math.nan, math.inf)])
def test_bounds_that_the_attack_leaves_are_unsound(network, monkeypatch, shift, size):
    exact = BoundedModule.compute_region_bounds

    def shifted(self, regions, C, method):
        return [(lower + shift, upper + shift) for lower, upper in exact(self, regions, C, method)]

    monkeypatch.setattr(BoundedModule, "compute_region_bounds", shifted)
    (row,) = audit(*network, SETS[:1], ["CROWN"], settings=ATTACK)
    assert row.outcome == "unsound" and row.wrong and row.violation >= size


def test_exceptions_of_others_are_raw(network, monkeypatch):
    def broken(*_):
        raise KeyError("missing")

    monkeypatch.setattr(BoundedModule, "compute_region_bounds", broken)
    (row,) = audit(*network, SETS[:1], ["IBP"], settings=ATTACK)
    assert (row.outcome, row.message) == ("raw", "KeyError: 'missing'") and row.wrong


def test_a_bounded_network_of_another_function_is_not_sound(network, monkeypatch):
    class Wide(BoundedModule):
        """Computes twice the model, and bounds it so widely that no attack shows it."""

        def forward(self, x):
            return 2 * self.model(x)

        def compute_region_bounds(self, regions, C, method):
            return [(torch.full((2, 3), -9.0), torch.full((2, 3), 9.0)) for _ in regions]

    monkeypatch.setattr(outcomes, "BoundedModule", Wide)
    (row,) = audit(*network, SETS[:1], ["IBP"], settings=ATTACK)
    assert row.outcome == "forward differs" and row.wrong and row.violation < 0


def test_the_model_is_left_as_it_was(network):
    model, x = network
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    audit(model, x, SETS, ["IBP"], settings=ATTACK)
    assert model.training and torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_arguments_that_cannot_be_used_are_named(network):
    with pytest.raises(
        InvalidArgumentError, match="model must be a torch.nn.Module, found function"
    ):
        audit(lambda x: x, network[1], SETS)
    with pytest.raises(InvalidArgumentError, match="methods is empty; give at least one of IBP, "):
        audit(*network, SETS, [])
    with pytest.raises(InvalidArgumentError, match="perturbations"):
        audit(*network, [])
