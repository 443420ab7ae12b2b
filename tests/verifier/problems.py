"""Graphs and sets that every relaxation is tried on, and the problems of bounding networks."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lirpa_multinorm import (
    BoundedModule,
    PerturbationL1Box,
    PerturbationL2Box,
    PerturbationLinf,
    PerturbationLpBox,
)
from lirpa_multinorm.attacks import AttackSettings
from lirpa_multinorm.audit import build_graph
from lirpa_multinorm.audit.attack import Bounds
from lirpa_multinorm.audit.graphs import INPUT_SHAPE
from lirpa_multinorm.perturbations import Region
from lirpa_multinorm.verifier.affine_matrices import AffineMatrices
from lirpa_multinorm.verifier.intermediate_bounds import crown_intermediate_bounds, initial_bounds
from lirpa_multinorm.verifier.lipschitz.constants import LipschitzConstants
from lirpa_multinorm.verifier.problem import Problem
from lirpa_multinorm.verifier.receptive_fields import ReceptiveFields
from lirpa_multinorm.verifier.relu_network import ReluNetwork
from tests.checks import reached_by_attack

SETS = {
    "linf": PerturbationLinf(0.05),
    "l2": PerturbationL2Box(0.3),
    "l1": PerturbationL1Box(0.6),
    "ball": PerturbationL2Box(0.3, clip=None),
    "wide": PerturbationL2Box(2.0),
}
#: Those on which CROWN is not far from exact.
SMALL = [SETS[name] for name in ("linf", "l2", "l1", "ball")]
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


def scaled(sets: Sequence[PerturbationLpBox], factor: float) -> list[PerturbationLpBox]:
    return [PerturbationLpBox(ball.norm, factor * ball.eps, ball.clip) for ball in sets]


def graph_module(
    name: str = "conv", *sets: PerturbationLpBox, steps: int | None = None
) -> BoundedModule:
    """A graph with sets, or all of SETS; optimisers take so many steps."""
    options = None if steps is None else {"optimize_bound_args": {"iteration": steps}}
    sets = list(sets) or list(SETS.values())
    return BoundedModule(build_graph(name), perturbations=sets, bound_opts=options)


def problem_on(
    model: nn.Module, regions: Sequence[Region], crown: bool = True, lipschitz: bool = True
) -> Problem:
    """The problem of bounding a model on regions, its hidden layers by IBP or by CROWN."""
    x = regions[0].center
    network = ReluNetwork(model, x)
    constants = LipschitzConstants(network, x) if lipschitz else None
    hidden = initial_bounds(network, regions, constants)
    if crown:
        fields = ReceptiveFields(AffineMatrices(network))
        hidden = crown_intermediate_bounds(fields, regions, hidden)
    return Problem(network, regions, hidden)


def graph_problem(name: str = "conv", batch: int = 4) -> tuple[nn.Module, Problem]:
    """The model of a graph, and the problem of bounding it on all sets around some inputs."""
    model, x = build_graph(name), torch.rand(batch, *INPUT_SHAPE)
    return model, problem_on(model, [Region(x, ball) for ball in SETS.values()])


@functools.cache
def attacked_graph(name: str) -> tuple[nn.Module, Tensor, list[Bounds]]:
    """The model of a graph, two inputs, and what an attack reaches on each of the SETS."""
    model = build_graph(name)
    x = torch.rand(2, *INPUT_SHAPE, generator=torch.Generator().manual_seed(0))
    return model, x, reached_by_attack(model, x, list(SETS.values()), settings=AttackSettings(25))
