"""The soundness matrix: graph shape x set x method x clip, attacked inside the set.

0 violations.
"""

import pytest
import torch

from lirpa_multinorm import BoundedModule, PerturbationL1Box, PerturbationL2Box, PerturbationLinf
from lirpa_multinorm.attacks import AttackSettings
from lirpa_multinorm.audit import GRAPHS, INPUT_SHAPE, build_graph, largest_violation

TOLERANCE = 2e-5
METHODS = ["IBP", "CROWN-IBP", "CROWN", "CROWN-Optimized"]
ATTACK = AttackSettings(steps=40, restarts=2, step_size=0.3)


def inputs() -> torch.Tensor:
    """Two images with pixels in the middle of the range and on both its ends."""
    x = torch.rand(2, *INPUT_SHAPE, generator=torch.Generator().manual_seed(3)) * 1.6 - 0.3
    return x.clamp(0, 1)


@pytest.mark.parametrize("clip", [(0.0, 1.0), None], ids=["clip", "ball"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("graph", GRAPHS)
def test_no_violation(graph, method, clip):
    model, x = build_graph(graph), inputs()
    sets = [
        PerturbationLinf(0.08, clip),
        PerturbationL2Box(0.5, clip),
        PerturbationL1Box(1.2, clip),
    ]
    options = {"optimize_bound_args": {"iteration": 6}}
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
        for ours, expected in zip(bounded.compute_bounds(x, method=method), union):
            assert torch.allclose(ours, expected, atol=1e-5)
    generator = torch.Generator().manual_seed(0)
    for perturbation, bounds in zip(sets, per_set):
        worst = largest_violation(
            model, x, perturbation, bounds, settings=ATTACK, generator=generator
        )
        assert worst <= TOLERANCE, f"{perturbation} violated by {worst:.2e}"
        worst = largest_violation(
            model, x, perturbation, union, settings=ATTACK, generator=generator
        )
        assert worst <= TOLERANCE, f"union violated by {perturbation}: {worst:.2e}"
