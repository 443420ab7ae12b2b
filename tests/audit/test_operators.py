"""A sample of the operator table.

Every operator by one method per norm is sound or refused by name.
"""

import pytest
import torch

from lirpa_multinorm import (
    AttackSettings,
    BoundedModule,
    PerturbationL1Box,
    PerturbationL2Box,
    PerturbationLinf,
)
from lirpa_multinorm.audit import METHODS, OPERATORS, audit, build_operator
from lirpa_multinorm.errors import LirpaMultinormError

ATTACK = AttackSettings(steps=4, step_size=0.5)
OPTIONS = {"optimize_bound_args": {"iteration": 2}}
SETS = [
    PerturbationLinf(0.016, clip=None),
    PerturbationL2Box(0.1),
    PerturbationL1Box(0.24, clip=None),
]


def images(name, batch):
    return torch.rand(
        batch, *OPERATORS[name].input_shape, generator=torch.Generator().manual_seed(1)
    )


def wrong_cells(name, methods, batch):
    """Return what is neither sound nor refused by name, and whether there are bounds at all."""
    rows = audit(
        build_operator(name, seed=1),
        images(name, batch),
        SETS,
        methods,
        bound_opts=OPTIONS,
        settings=ATTACK,
    )
    assert all(row.sound or row.message for row in rows if not row.wrong)
    return [
        f"{row.method}, {row.perturbation}: {row.outcome} by {row.violation} {row.message}"
        for row in rows
        if row.wrong
    ], any(row.outcome != "refused" for row in rows)


@pytest.mark.parametrize("name", OPERATORS)
def test_no_cell_is_wrong(name):
    try:
        BoundedModule(build_operator(name, seed=1))(images(name, 1))
    except (
        LirpaMultinormError
    ) as error:  # no method of the host's bounds it; the slow test asks them all
        assert str(error)
        return
    wrong, bounded = wrong_cells(name, ["CROWN"], batch=1)
    if not bounded:
        wrong, _ = wrong_cells(name, ["IBP"], batch=1)
    assert not wrong


@pytest.mark.slow
@pytest.mark.parametrize("name", OPERATORS)
def test_no_cell_of_any_method_is_wrong(name):
    wrong, _ = wrong_cells(name, METHODS, batch=2)
    assert not wrong


def test_networks_come_from_their_seed_and_leave_the_generator():
    state = torch.get_rng_state()
    first, again, other = (build_operator("PReLU(8)", seed).state_dict() for seed in (0, 0, 1))
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)
