"""Networks in float64, and their intervals by hand, for the tests of intermediate bounds."""

import pytest
import torch
from torch import nn

from lirpa_multinorm import PerturbationL1Box, PerturbationL2Box, PerturbationLinf
from tests.checks import assert_same
from tests.losses.slow_intervals import input_ends, propagate
from tests.networks import batch_norm_conv, linear, mlp, normalized_conv, pixels

LINF, L2, L1 = PerturbationLinf(0.1), PerturbationL2Box(0.3), PerturbationL1Box(0.5)
NETWORKS = [linear, mlp, normalized_conv, batch_norm_conv]
networks = pytest.mark.parametrize("make", NETWORKS, ids=lambda make: make.__name__)


def images(count=3, seed=0):
    return pixels(count, 2, 4, 4, seed=seed, beyond=0.1, dtype=torch.float64)


def by_hand(x, perturbation):
    """The set around x as the slow formulas name it."""
    if perturbation.is_box():
        return "box", (x - perturbation.eps).clamp(min=0), (x + perturbation.eps).clamp(max=1)
    return "ball", x, perturbation.eps, perturbation.norm, True


def assert_close(found, expected):
    assert_same(found, expected, rtol=1e-10, atol=1e-12)


def assert_intervals(found, model, x, perturbation, statistics=None):
    region = by_hand(x, perturbation)
    _, relus = propagate(model, region, torch.zeros(len(x), dtype=torch.long), statistics)
    assert_close(found.input, input_ends(model, region))
    assert len(found.relus) == len(relus) == sum(isinstance(layer, nn.ReLU) for layer in model)
    assert_close(found.relus, relus)


def by_region(bounded, regions):
    """Bounds by IBP of (x, set) pairs."""
    return bounded.compute_region_bounds(regions, None, "IBP")
