"""A network and inputs for the tests of what BoundedModule refuses."""

import math

import pytest
import torch
from torch import nn

from lirpa_multinorm import PerturbationL2Box, PerturbationLinf, margin_matrix

SETS = [PerturbationLinf(0.1), PerturbationL2Box(0.3)]
METHODS = ["IBP", "CROWN-IBP", "CROWN", "CROWN-Optimized"]
every_method = pytest.mark.parametrize("method", METHODS)
OPTIONS = {"optimize_bound_args": {"iteration": 2}}
BATCH = 2


def network():
    return nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(18, 4),
        nn.ReLU(),
        nn.Linear(4, 3),
    ).eval()


X = torch.rand(BATCH, 1, 3, 3, generator=torch.Generator().manual_seed(0))
C = margin_matrix(torch.tensor([0, 1]), 3)
NAN = math.nan
