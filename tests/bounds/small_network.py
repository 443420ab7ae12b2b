"""A small network, images for it and its bounds, for the tests of BoundedModule."""

import pytest
from torch import nn

from lirpa_multinorm import PerturbationL2Box, PerturbationLinf
from tests.networks import pixels

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
    return pixels(batch, 2, 4, 4, seed=seed)


def bounds_of(bounded, x, method="IBP", **options):
    return tuple(
        end.detach().clone() for end in bounded.compute_bounds(x, method=method, **options)
    )
