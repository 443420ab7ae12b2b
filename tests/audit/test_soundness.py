"""The soundness matrix: graph shape x set x method x clip, attacked inside the set.

0 violations.
"""

import functools

import pytest
import torch

from lirpa_multinorm import BoundedModule, PerturbationL1Box, PerturbationL2Box, PerturbationLinf
from lirpa_multinorm.attacks import AttackSettings
from lirpa_multinorm.audit import GRAPHS, INPUT_SHAPE, build_graph
from tests.checks import assert_contains, assert_same, reached_by_attack
from tests.networks import pixels

TOLERANCE = 2e-5
METHODS = ["IBP", "CROWN-IBP", "CROWN", "CROWN-Optimized"]
ATTACK = AttackSettings(steps=40, restarts=2, step_size=0.3)


def sets_with(clip):
    return [
        PerturbationLinf(0.08, clip),
        PerturbationL2Box(0.5, clip),
        PerturbationL1Box(1.2, clip),
    ]


@functools.cache
def attacked(graph, clip):
    """A graph, images of which some pixels stand at both ends, and what an attack reaches."""
    model, x = build_graph(graph), pixels(2, *INPUT_SHAPE, seed=3, beyond=0.3)
    return model, x, reached_by_attack(model, x, sets_with(clip), settings=ATTACK)


@pytest.mark.parametrize(
    "clip",
    [pytest.param((0.0, 1.0), id="clip"), pytest.param(None, id="ball", marks=pytest.mark.slow)],
)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("graph", GRAPHS)
def test_no_violation(graph, method, clip):
    model, x, ranges = attacked(graph, clip)
    sets, options = sets_with(clip), {"optimize_bound_args": {"iteration": 6}}
    bounded = BoundedModule(model, perturbations=sets, bound_opts=options)
    per_set = [
        tuple(end.detach() for end in ends)
        for ends in bounded.compute_norm_bounds(x, method=method)
    ]
    union = (
        torch.stack([lower for lower, _ in per_set]).amin(0),
        torch.stack([upper for _, upper in per_set]).amax(0),
    )
    if method != "CROWN-Optimized":
        assert_same(bounded.compute_bounds(x, method=method), union)
    for perturbation, bounds, reached in zip(sets, per_set, ranges):
        assert_contains(bounds, reached, TOLERANCE, f"bounds on {perturbation}")
        assert_contains(union, reached, TOLERANCE, f"union by {perturbation}")
