"""A sample of the operator table: every operator by one method per norm is sound or refused by name."""

import pytest
import torch

from lirpa_multinorm import AttackSettings, PerturbationL1Box, PerturbationL2Box, PerturbationLinf
from lirpa_multinorm.audit import METHODS, OPERATORS, audit, build_operator

ATTACK = AttackSettings(steps=8, step_size=0.3)
OPTIONS = {"optimize_bound_args": {"iteration": 2}}
SETS = [PerturbationLinf(0.016, clip=None), PerturbationL2Box(0.1), PerturbationL1Box(0.24, clip=None)]


@pytest.mark.parametrize("name", OPERATORS)
def test_no_cell_is_wrong(name):
    model, (_, shape, _) = build_operator(name, seed=1), OPERATORS[name]
    x = torch.rand(2, *shape, generator=torch.Generator().manual_seed(1))
    turn = list(OPERATORS).index(name)
    for index, one in enumerate(SETS):
        cell, = audit(model, x, [one], [METHODS[(turn + 3 * index) % len(METHODS)]], bound_opts=OPTIONS,
                      settings=ATTACK)
        assert not cell.wrong, f"{cell.method}, {one}: {cell.outcome} by {cell.violation} {cell.message}"
        assert cell.sound or cell.message


def test_networks_come_from_their_seed_and_leave_the_generator():
    state = torch.get_rng_state()
    first, again, other = (build_operator("PReLU(8)", seed).state_dict() for seed in (0, 0, 1))
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)
