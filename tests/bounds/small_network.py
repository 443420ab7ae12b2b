"""A small network, images for it and comparing its bounds, for the tests of BoundedModule."""

import pytest
import torch
from torch import nn

from lirpa_multinorm import PerturbationL2Box, PerturbationLinf

SETS = [PerturbationLinf(0.05), PerturbationL2Box(0.3)]
METHODS = ["IBP", "CROWN-IBP", "CROWN", "CROWN-Optimized"]
every_method = pytest.mark.parametrize("method", METHODS)
OPTIONS = {"optimize_bound_args": {"iteration": 3}}
BATCH = 4


def network(norm=False):
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.BatchNorm2d(4) if norm else nn.Identity(),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64, 6),
        nn.ReLU(),
        nn.Linear(6, 3),
    ).eval()


def images(batch=BATCH, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(batch, 2, 4, 4, generator=generator) * 1.4 - 0.2).clamp(0, 1)


def bounds_of(bounded, x, method="IBP", **options):
    return tuple(
        end.detach().clone() for end in bounded.compute_bounds(x, method=method, **options)
    )


def assert_same(one, other, tolerance=1e-5):
    for first, second in zip(one, other):
        assert torch.allclose(first, second, atol=tolerance)


def differs(one, other):
    return any(not torch.allclose(first, second, atol=1e-4) for first, second in zip(one, other))
